"""Arrivals, results and shortcuts through the index for tests: real SQLite, real files, time as an argument."""

import atexit
import itertools
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, create_engine, make_url, select, text

from config.coding import BILATERAL, LUNG, MILLILITRE, NEGATIVE, POSITIVE, VOLUME, Code
from storage import jobs, quiet_time, recording, series
from storage import listings as listing
from storage.arrival import Arrival, IndexedHeader, Outcome
from storage.coded import CodedFinding, CodedMeasurement, Content
from storage.database import Database, open_database
from storage.folder import FolderStore
from storage.jobs import ClaimedJob, ModelRef
from storage.listings import Kind
from storage.models import listing_kinds, listing_weeks, listings
from storage.results import NewObject, NewResult

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
MODEL = ModelRef("demo", "1", "model-digest-1")
DISEASE = Code("233604007", "SCT", "Pneumonia")
INDEX = "index.sqlite"
QUIET_S = 30.0
LEASE_S = 60.0
ATTEMPTS = 3
_uids = itertools.count(1)


def fresh_url(folder: Path) -> str:
    """A new, empty index: SQLite, or the PostgreSQL server that DICOM_NODE_TEST_DATABASE names."""
    server = os.environ.get("DICOM_NODE_TEST_DATABASE")
    if not server:
        return f"sqlite:///{folder}/{INDEX}"
    name = f"test_{uuid.uuid4().hex}"
    _on_server(server, f"CREATE SCHEMA {name}")
    own = make_url(server).update_query_dict({"options": f"-csearch_path={name}"})
    return own.render_as_string(hide_password=False)


@cache
def _empty_index() -> Path:
    """A SQLite index of this version without rows: to copy it takes a tenth of making another."""
    folder = Path(tempfile.mkdtemp(prefix="empty-index-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    open_database(f"sqlite:///{folder}/{INDEX}").close()
    return folder / INDEX


@cache
def _empty_database(server: str) -> str:
    """The name of a PostgreSQL database of this version without rows, to copy as `_empty_index`."""
    name = f"empty_{uuid.uuid4().hex}"
    _on_server(server, f"CREATE DATABASE {name}")
    open_database(_database_url(server, name)).close()
    return name


def _copied_database(server: str) -> str:
    """The URL of a new, empty index on a PostgreSQL server."""
    name = f"test_{uuid.uuid4().hex}"
    _on_server(server, f"CREATE DATABASE {name} TEMPLATE {_empty_database(server)}")
    return _database_url(server, name)


def _database_url(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def _on_server(server: str, statement: str) -> None:
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(statement))
    admin.dispose()


@dataclass
class Store:
    """One index and its file store in a folder."""

    folder: Path
    url: str = ""
    database: Database = field(init=False)
    files: FolderStore = field(init=False)
    _copied_on: str = ""

    def __post_init__(self) -> None:
        server = os.environ.get("DICOM_NODE_TEST_DATABASE", "")
        if server and not self.url:
            self.url = _copied_database(server)
            self._copied_on = server
        elif not self.url:
            self.url = fresh_url(self.folder)
            index = self.folder / INDEX
            if self.url.startswith("sqlite") and self.folder.is_dir() and not index.exists():
                shutil.copyfile(_empty_index(), index)
        self.database = open_database(self.url)
        self.files = FolderStore(self.folder / "files")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()
        if self._copied_on:
            _on_server(self._copied_on, f"DROP DATABASE {make_url(self.url).database} WITH (FORCE)")

    def arrival(
        self,
        number: int,
        *,
        series_uid: str = "1.2.3",
        study_uid: str = "1.2",
        content: str = "",
        patient_id: str = "P1",
        calling_ae: str = "CT",
        sop_uid: str | None = None,
    ) -> Arrival:
        """One slice, with its file written; its bytes depend on its UID unless `content` is given."""
        uid = sop_uid or f"{series_uid}.{number}"
        file = self.files.write_durably([(content or f"pixels of {uid}").encode()])
        header = IndexedHeader(patient_id=patient_id, modality="CT", instance_number=str(number))
        return Arrival(uid, CT_IMAGE, series_uid, study_uid, EXPLICIT_LE, calling_ae, "NODE", "127.0.0.1", file, header)

    def receive(self, *numbers: int, now: float, quiet_s: float = QUIET_S, **how: str) -> list[Outcome]:
        """Record the arrival of slices in one transaction."""
        arrivals = [self.arrival(number, **how) for number in numbers]  # type: ignore[arg-type]
        with self.database.transaction() as tx:
            return recording.record_instances(tx, arrivals, now, quiet_s)

    def close_due(self, now: float, model: ModelRef | None = MODEL) -> list[int | None]:
        """Close the due series, as the scheduler does. Returns the jobs' ids."""
        with self.database.transaction() as tx:
            return [
                series.close_series(tx, due.series_pk, now, series.Closing(model))
                for due in quiet_time.due_series(tx, now)
            ]

    def claim(self, now: float, worker: str = "worker-1", attempts: int = ATTEMPTS) -> ClaimedJob | None:
        with self.database.transaction() as tx:
            return jobs.claim(tx, worker, now, LEASE_S, attempts)

    def finish(self, job: ClaimedJob, now: float, *destinations: str, probability: float = 0.9) -> int:
        """Do what the worker does at the end: write a report to disk, then commit in one transaction."""
        with self.database.transaction() as tx:
            return jobs.finish(tx, job.job_id, job.fence, now, analysed(probability), [self.report()], destinations)

    def report(self, uid: str | None = None) -> NewObject:
        """A report object with its own UID."""
        uid = uid or f"2.25.{next(_uids)}"
        return NewObject("report", uid, COMPREHENSIVE_3D_SR, "2.25.9001", self.files.write_durably([uid.encode()]))

    def reported(self, *destinations: str, now: float = 0.0) -> int:
        """One series received, closed, analysed and reported at `now` + QUIET_S. Returns the result's id."""
        self.receive(1, 2, now=now)
        self.close_due(now + QUIET_S)
        job = self.claim(now + QUIET_S)
        assert job is not None
        return self.finish(job, now + QUIET_S, *destinations)

    def rows(self, statement: str, **values: object) -> list[dict[str, object]]:
        """The rows of any query, as a site would write it."""
        with self.database.read() as tx:
            return [dict(row) for row in tx.execute(text(statement), values).mappings()]

    def states(self, table: str) -> list[object]:
        """The states of a table's rows, oldest first."""
        return [row["state"] for row in self.rows(f"SELECT state FROM {table} ORDER BY id")]

    def events(self) -> list[object]:
        """The audit trail's events, oldest first."""
        return [row["event"] for row in self.rows("SELECT event FROM audit ORDER BY id")]


def said(probability: float = 0.9, lung_volume_ml: float = 4200.0) -> Content:
    """What the first model says: a disease with a certainty, and the lungs' volume."""
    interpretation = POSITIVE if probability >= 0.5 else NEGATIVE
    finding = CodedFinding("Disease", DISEASE, interpretation, probability, 0.5, site=LUNG, laterality=BILATERAL)
    volume = CodedMeasurement(VOLUME, lung_volume_ml, MILLILITRE, LUNG, BILATERAL, segment="Lungs")
    return Content((finding,), (volume,))


def analysed(probability: float = 0.9) -> NewResult:
    """A result as the pipeline returns it."""
    return NewResult(
        "ANALYSED",
        MODEL.name,
        MODEL.version,
        MODEL.digest,
        said(probability),
        {"unet": "u" * 64, "decovnet": "d" * 64},
        threshold=0.5,
        pixel_digest="p" * 64,
        device="cpu",
        precision="exact",
        versions={"torch": "2"},
        timings={"unet": 1.5},
        checks=[{"code": "SLICES", "sentence": "120 slices"}],
    )


def not_analysed(code: str, sentence: str) -> NewResult:
    """A result that says why the series was not analysed."""
    return NewResult("NOT_ANALYSED", MODEL.name, MODEL.version, MODEL.digest, reason_code=code, reason_text=sentence)


def check_listings(tx: Connection) -> None:
    """Each listing is what it would be if it were made anew, and so is each count."""
    counts: dict[tuple[str, int], int] = {}
    for (pk,) in tx.execute(text("SELECT id FROM series")).all():
        received_at, wanted = listing.listed(tx, pk)
        of_series = select(listings, listing_kinds).join(listing_kinds, listing_kinds.c.id == listings.c.kind)
        rows = tx.execute(of_series.where(listings.c.series_pk == pk)).mappings().all()
        found = {
            (Kind(*(row[name] for name in listing.KIND)), row["result_id"], row["job_id"], row["probability"])
            for row in rows
        }
        assert found == {(one.kind, one.result_id, one.job_id, one.probability) for one in wanted}
        for row in rows:
            assert row["received_at"] == received_at
            for week in ("", listing.week_of(received_at)):
                counts[week, row["kind"]] = counts.get((week, row["kind"]), 0) + 1
    kept = {(row.week, row.kind): row.rows for row in tx.execute(select(listing_weeks)) if row.rows}
    assert kept == counts
