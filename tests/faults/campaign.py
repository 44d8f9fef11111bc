"""A node that is killed and restarted, its senders and destinations, and the promises that must hold in the end."""

import hashlib
import io
import itertools
import json
import os
import signal
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode, split_dataset
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.demo import pacs
from storage import audit, deliveries, job_state, series, series_state
from storage.database import Database
from storage.files import FileStore
from storage.folder import FolderStore
from storage.models import audit as audit_rows
from tests.attacker import ACCEPT, Attacker, pdu
from tests.factories import Grid, chest, slice_dataset
from tests.programs import free_port, listening, wait_for
from tests.s3 import S3
from tests.stow_server import archive
from tests.zygote import Zygote

ROOT = Path(__file__).resolve().parents[2]
GRID = Grid((6, 16, 20))
PATIENCE_S = float(os.environ.get("NODE_FAULT_PATIENCE_S", "120"))
MACHINES = {"job": job_state.TRANSITIONS, "delivery": deliveries.TRANSITIONS, "series": series_state.TRANSITIONS}
BORN = {"job": "QUEUED", "delivery": "PENDING", "series": "OPEN"}
# Comprehensive 3D SR, Comprehensive SR, and Enhanced SR for "not analysed".
REPORTS = [f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (34, 33, 22)]
COMMITMENT = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"


class Pacs:
    """A Storage and Storage Commitment SCP that keeps every object, each time that it arrives.

    slow_s: how long it takes to store. answer: the status of a C-STORE by its number from 0. host: where it listens.
    """

    def __init__(
        self,
        port: int = 0,
        slow_s: float = 0.0,
        answer: Callable[[int], int] = lambda _: 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.received: list[tuple[str, bytes]] = []
        self._slow_s = slow_s
        self._answer = answer
        self._count = itertools.count()
        self._reports: dict[str, Dataset] = {}
        entity = AE(ae_title="PACS")
        entity.maximum_associations = 20
        for sop_class in (*REPORTS, COMMITMENT):
            entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
        handlers: list[evt.EventHandlerType] = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action)]
        self._server = entity.start_server((host, port), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def _store(self, event: evt.Event) -> int:
        status = self._answer(next(self._count))
        if status in (0, 0xB000):
            self.received.append((str(event.request.AffectedSOPInstanceUID), event.encoded_dataset(False)))
        time.sleep(self._slow_s)
        return status

    def _action(self, event: evt.Event) -> tuple[int, None]:
        information = event.action_information
        threading.Thread(target=self._commit, args=(event.assoc, information), daemon=True).start()
        return 0, None

    def _commit(self, association: Any, information: Dataset) -> None:
        time.sleep(0.05)
        try:
            association.send_n_event_report(information, 1, COMMITMENT, COMMITMENT_INSTANCE)
        except (RuntimeError, ValueError):
            pass  # the node died

    def reports(self) -> dict[str, Dataset]:
        """What was received, by SOP Instance UID."""
        for uid, data in list(self.received):
            if uid not in self._reports:
                self._reports[uid] = read_dataset(io.BytesIO(data), is_implicit_VR=False, is_little_endian=True)
        return dict(self._reports)

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def ct_series(slices: int = GRID.shape[0], series_uid: str | None = None) -> dict[str, bytes]:
    """Encoded data sets of one new series by SOP Instance UID, explicit VR little endian."""
    study, uid = generate_uid(), series_uid or generate_uid()
    grid = Grid((slices, *GRID.shape[1:]))
    noise = np.random.default_rng().integers(0, 5, grid.shape, dtype=np.int16)
    hu = chest(grid) + noise
    made = {}
    for z in range(slices):
        sop = generate_uid()
        dataset = slice_dataset(
            grid, z, hu[z], SOPInstanceUID=sop, StudyInstanceUID=study, SeriesInstanceUID=uid, PatientID=study[-12:]
        )
        del dataset.file_meta
        made[str(sop)] = encode(dataset, False, True) or b""
    return made


def send(
    port: int,
    instances: Mapping[str, bytes],
    acknowledged: dict[str, str],
    host: str = "127.0.0.1",
    sop_class: str = CTImageStorage,
) -> bool:
    """Send the instances that are not acknowledged yet on one association. False if it ended early.

    acknowledged: receives the SHA-256 of each data set as soon as it is answered with success.
    """
    try:
        sender = Attacker(port, host=host)
        sender.socket.settimeout(20)
    except OSError:
        return False
    try:
        if sender.associate(sop_class=sop_class) != ACCEPT:
            return False
        for uid, data in instances.items():
            if uid not in acknowledged:
                if sender.store(uid.encode(), data, sop_class=sop_class) != 0:
                    return False
                acknowledged[uid] = hashlib.sha256(data).hexdigest()
        sender.send(pdu(5, bytes(4)))
        sender.answer()
        return True
    except (OSError, ValueError):
        return False
    finally:
        sender.close()


class Archive:
    """The demonstration's PACS, which answers queries and returns what it holds, with what `check` needs."""

    def __init__(self, folder: Path) -> None:
        self.server = pacs.Pacs(folder, ae_title="PACS")
        self.server.start()
        self.port = self.server.port

    @property
    def received(self) -> list[tuple[str, bytes]]:
        """Every object, each time that it arrived."""
        paths = self.server.received()
        return [(str(dcmread(p).SOPInstanceUID), p.read_bytes()[split_dataset(p)[1] :]) for p in paths]

    def reports(self) -> dict[str, Dataset]:
        """What was received, by SOP Instance UID."""
        return {str(report.SOPInstanceUID): report for report in map(dcmread, self.server.received())}

    def stop(self) -> None:
        """Stop listening."""
        self.server.stop()


class Dicomweb:
    """An archive that is reached by HTTP, with what `check` needs."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.archive = self._stack.enter_context(archive())

    def destination(self, name: str) -> dict[str, str]:
        """The node's settings for it."""
        return {"kind": "stow", "name": name, "url": self.archive.url}

    @property
    def received(self) -> list[tuple[str, bytes]]:
        """Every object, each time that it arrived."""
        return [(uid, content) for uid, contents in list(self.archive.held.items()) for content in list(contents)]

    def reports(self) -> dict[str, Dataset]:
        """What was received, by SOP Instance UID."""
        return {uid: dcmread(io.BytesIO(content)) for uid, content in self.received}

    def stop(self) -> None:
        """Stop listening."""
        self._stack.close()


class Node:
    """A node in a folder, which may die at any moment, and its service manager, which restarts it.

    index: the URL of a PostgreSQL database; without one, SQLite in the folder.
    models: those that analyse each series, by name; without any, the demonstration model does.
    s3: the bucket of its files; without one, they are in the folder.
    pacs_host: where its PACS listens. arguments: of `dicom-node run`.
    """

    address = "127.0.0.1"
    arguments: tuple[str, ...] = ()

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        pacs_port: int,
        commitment: str = "request",
        index: str = "",
        models: Sequence[str] = (),
        s3: S3 | None = None,
        pacs_host: str = "127.0.0.1",
        **variables: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._zygote = zygote
        self._pid = 0
        self.port = free_port()
        self.data = folder / "node"
        self.faults = folder / "faults"
        self.faults.mkdir(exist_ok=True)
        self.log = folder / "log"
        self.starts = 0
        self._power_is_back = False
        self._index = index
        self.s3 = s3
        self.models = set(models) or {"demonstration"}
        destination = {
            "name": "pacs", "ae_title": "PACS", "host": pacs_host, "port": pacs_port, "commitment": commitment
        }  # fmt: skip
        self.variables = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DICOM_NODE_", "NODE_"))},
            "NODE_FAULTS": str(self.faults),
            "DICOM_NODE_DATA_DIR": str(self.data),
            "DICOM_NODE_STORAGE__DATABASE_URL": index,
            "DICOM_NODE_RECEIVER__PORT": str(self.port),
            "DICOM_NODE_COMPLETION__QUIET_S": "0.6",
            "DICOM_NODE_COMPLETION__SELECT": "all",
            "DICOM_NODE_MODELS": json.dumps([{"name": model} for model in models]),
            "DICOM_NODE_DESTINATIONS": json.dumps([destination]),
            "DICOM_NODE_SENDER__FIRST_RETRY_S": "0.2",
            "DICOM_NODE_SENDER__LONGEST_RETRY_S": "1",
            "DICOM_NODE_SENDER__LEASE_S": "2",
            "DICOM_NODE_SENDER__POLL_S": "0.05",
            "DICOM_NODE_SENDER__COMMITMENT__TIMEOUT_S": "1.5",
            "DICOM_NODE_SENDER__COMMITMENT__ATTEMPTS": "1000",
            "DICOM_NODE_SENDER__COMMITMENT__MAX_QUESTIONS": "1000",
            "DICOM_NODE_SENDER__COMMITMENT__RESEND_S": "0.1",
            "DICOM_NODE_SENDER__RESPONSE_TIMEOUT_S": "15",
            "DICOM_NODE_WORKER__LEASE_S": "2",
            "DICOM_NODE_WORKER__NICE": "0",
            "DICOM_NODE_WORKER__MAX_ATTEMPTS": "50",
            "DICOM_NODE_WORKER__RETRY_DELAY_S": "0.2",
            "DICOM_NODE_WORKER__POLL_S": "0.05",
            "DICOM_NODE_REPORT__SEGMENTATION": "false",
            "DICOM_NODE_REPORT__SUMMARY": "false",
            "DICOM_NODE_STORAGE__LOW_DISK_MB": "1",
            "DICOM_NODE_LOGGING__LEVEL": "warning",
            **(s3.variables() if s3 else {}),
            **variables,
        }

    def configure(self, **files: str) -> None:
        """Set a value that injection.py reads."""
        for name, value in files.items():
            (self.faults / name).write_text(value)

    @property
    def died(self) -> bool:
        """True if every fail point was reached."""
        path = self.faults / "kill"
        points = path.read_text().splitlines() if path.exists() else []
        return 0 < len(points) == len(list(self.faults.glob("done.*")))

    def points(self) -> set[str]:
        """The fail points that have been reached."""
        path = self.faults / "points"
        return set(path.read_text().split()) if path.exists() else set()

    def start(self) -> None:
        """Start it; it listens a moment later."""
        pid = self._pid = self._zygote.start(self.variables, self.log, *self.arguments)
        # Until it has its own process group, a kill of the group would miss it.
        wait_for(lambda: os.getpgid(pid) == pid, 60, "the node has a process group")
        self.starts += 1

    def tend(self) -> None:
        """Start it if it is not running. Like the service manager, wait until the whole process group is gone."""
        if self._pid and self._zygote.status(self._pid) is None:
            return
        self.kill()
        if self.died and not self._power_is_back and (self.faults / "scope").read_text() == "power":
            self._power_is_back = True
            self.lose_what_was_not_synced()
        self.start()

    def lose_what_was_not_synced(self) -> None:
        """Do the worst that a disk may do in a power failure; SQLite's own files are left as they are."""
        if self.s3 is not None:  # what the bucket has taken is durable; the copies here are not
            for copy in (self.data / "s3").rglob("*.dcm"):
                copy.write_bytes(b"")
            return
        path = self.faults / "synced"
        synced = set(path.read_text().splitlines()) if path.exists() else set()
        for file in (self.data / "files").rglob("*.dcm"):
            if f"name {file}" not in synced:
                file.unlink()
            elif f"bytes {file}" not in synced:
                file.write_bytes(b"")

    def kill(self) -> None:
        """Send SIGKILL to every process of the node at once. None is left when this returns."""
        if self._pid:
            wait_for(self._is_gone, 60, "the killed processes end")

    def _is_gone(self) -> bool:
        """Kill what is left of it; a process in the middle of an fsync dies only after the fsync."""
        self._zygote.status(self._pid)
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            return True
        return False

    def stop(self, timeout_s: float = 70) -> int | None:
        """Send SIGTERM and wait. Returns the exit status."""
        if self._pid and self._zygote.status(self._pid) is None:
            os.kill(self._pid, signal.SIGTERM)
            try:
                wait_for(lambda: self._zygote.status(self._pid) is not None, timeout_s, "the node drains")
            except AssertionError:
                self.kill()
                raise
        status = self._zygote.status(self._pid) if self._pid else None
        self.kill()
        self._pid = 0
        return status

    def end(self) -> None:
        """Stop it in an orderly way; if it has just died, restart it first."""
        wait_for(lambda: (self.tend(), self.listens)[1], 60, "the node listens")
        status = self.stop()
        # The fail point was reached just then, or the listener was the last process of the previous node.
        if status in (-signal.SIGKILL, -signal.SIGTERM) and self.died:
            wait_for(lambda: (self.tend(), self.listens)[1], 60, "the node listens")
            status = self.stop()
        assert status == 0, f"status {status}: {self.log.read_text()[-2000:]}"

    def processes(self) -> list[int]:
        """The pids of the supervisor and its children."""
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children")
        try:
            return [self._pid, *map(int, children.read_text().split())]
        except OSError:
            return [self._pid]

    @property
    def listens(self) -> bool:
        """True if the receiver accepts connections."""
        return listening(self.port)

    @property
    def files(self) -> FileStore:
        """Its files; those of a bucket without what the node keeps of them on its machine."""
        if self.s3 is None:
            return FolderStore(self.data / "files")
        return self.s3.store(self.data.parent / "looked at")

    def stored(self) -> set[str]:
        """The paths of all files that are not set aside."""
        return {path for _, paths in self.files.folders(float("inf")) for path in paths}

    def database(self) -> Database:
        """Its index."""
        return Database(self._index or f"sqlite:///{self.data}/node.db")

    def rows(self, statement: str) -> list[dict[str, Any]]:
        """The rows of any query on its index; none if there is no index yet."""
        if self._index:
            return self._rows_by_engine(statement)
        path = self.data / "node.db"
        if not path.exists():
            return []
        # All lives call this all the time, and the driver alone is several times cheaper than the engine around it.
        index = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
        try:
            index.row_factory = sqlite3.Row
            return [dict(row) for row in index.execute(statement)]
        except sqlite3.DatabaseError:
            return []  # the schema is not there yet
        finally:
            index.close()

    def _rows_by_engine(self, statement: str) -> list[dict[str, Any]]:
        database = self.database()
        try:
            with database.read() as tx:
                return [dict(row) for row in tx.exec_driver_sql(statement).mappings()]
        except SQLAlchemyError:
            return []  # the schema is not there yet
        finally:
            database.close()

    def send(
        self, instances: Mapping[str, bytes], acknowledged: dict[str, str], sop_class: str = CTImageStorage
    ) -> None:
        """Send like a PACS: repeat until each instance has been answered with success."""

        def sent() -> bool:
            self.tend()
            return send(self.port, instances, acknowledged, sop_class=sop_class) or bool(time.sleep(0.1))

        wait_for(sent, PATIENCE_S, "the node takes the whole series")

    def is_settled(self) -> bool:
        """True if nothing is left to do: every series is closed, and every job and delivery has ended."""
        self.tend()
        states = self.rows(
            "SELECT DISTINCT 'series ' || state AS state FROM series UNION SELECT 'job ' || state FROM jobs "
            # A destination that cannot be asked whether it keeps what it took is at its end when it took it.
            "UNION SELECT 'delivery ' || state FROM deliveries "
            "WHERE NOT (state = 'SENT' AND due_at IS NULL AND unconfirmed_at IS NULL)"
        )
        ends = {"series CLOSED", "job REPORTED", "job SUPERSEDED", "delivery COMMITTED", "delivery SUPERSEDED"}
        return {"series CLOSED", "job REPORTED"} <= {row["state"] for row in states} <= ends

    def settle(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until nothing is left to do."""
        try:
            wait_for(self.is_settled, timeout_s, "nothing is stuck")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.describe()}") from None

    def describe(self) -> str:
        """What it is waiting for and what each of its threads is doing, for a failure message."""
        counts = [
            self.rows(f"SELECT '{table}' AS what, state, count(*) AS n FROM {table} GROUP BY state")
            for table in ("series", "jobs", "deliveries")
        ]
        processes = self.processes()
        for pid in processes:
            try:
                os.kill(pid, signal.SIGUSR1)
            except ProcessLookupError:
                pass
        time.sleep(1)
        return f"{counts}, processes {processes}, log: {self.log.read_text()[-20000:]}"


def check(
    node: Node,
    pacs: Pacs | Archive | Dicomweb,
    acknowledged: Mapping[str, str],
    *,
    deleted: bool = False,
    made_again: bool = False,
) -> dict[str, int]:
    """Check that nothing is lost, nothing is there twice, and everything is audited. Returns counts.

    deleted: retention has removed the images, which is allowed after their reports were delivered.
    made_again: the node was restored from a backup. Reports that it makes again have another time, and it knows nothing
        of those that were made on a part of a series after the point of the backup.
    """
    database, files = node.database(), node.files
    try:
        with database.read() as tx:
            assert audit.verify(tx) is None, "the audit trail is whole"
            replay(tx)
            held = {
                item.sop_instance_uid: item
                for record in series.list_series(tx)
                for item in series.series_instances(tx, record.series_pk)
            }
            current = _current_reports(tx, node.models)
    finally:
        database.close()
    assert acknowledged.keys() <= held.keys(), "an acknowledged instance has no row"
    for uid, sha256 in acknowledged.items():
        item = held[uid]
        if deleted:
            assert item.gone == "retention"
            continue
        assert item.gone is None, f"an acknowledged instance is {item.gone}"
        with files.at_hand([item]) as (file,):
            data, (_, offset) = file.read_bytes(), split_dataset(file)
        assert hashlib.sha256(data[offset:]).hexdigest() == sha256, "an acknowledged instance has other bytes"
    _check_pacs(pacs, current, made_again)
    return {"acknowledged": len(acknowledged), "series": len(current), "objects sent": len(pacs.received)}


def _current_reports(tx: Any, models: set[str]) -> dict[str, list[set[str]]]:
    """For each series, of each model's current result the UIDs of its report, one for each class in which it may have
    been sent."""
    rows = tx.exec_driver_sql(
        "SELECT series.series_instance_uid AS series, state, model_name AS model, results.id AS result, "
        "sop_instance_uid AS uid "
        "FROM series LEFT JOIN results ON results.series_pk = series.id AND superseded_at IS NULL AND NOT shadow "
        "LEFT JOIN result_objects ON result_id = results.id "
        "WHERE COALESCE(modality, '') <> 'KO'"  # rejection notes, which nobody reports on
    ).mappings()
    found: dict[str, dict[tuple[str, int], set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        assert row["state"] == "CLOSED" and row["result"] is not None, "a series without an outcome"
        found[row["series"]][row["model"], row["result"]].add(row["uid"])
    series_rows = tx.exec_driver_sql("SELECT series_instance_uid FROM series").scalars().all()
    for by_result in found.values():
        assert sorted(model for model, _ in by_result) == sorted(models), "one current result of each model"
    assert set(found) <= set(series_rows)
    return {uid: list(by_result.values()) for uid, by_result in found.items()}


def _check_pacs(pacs: Pacs | Archive | Dicomweb, current: Mapping[str, Sequence[set[str]]], made_again: bool) -> None:
    """Check that each series has exactly one report of each model that no other replaces, and each UID only one
    content."""
    contents: dict[str, set[bytes]] = defaultdict(set)
    for uid, data in pacs.received:
        contents[uid].add(hashlib.sha256(data).digest())
    assert made_again or all(len(bytes_) == 1 for bytes_ in contents.values()), "one UID, two contents"
    standing: dict[str, set[str]] = defaultdict(set)
    replaced = set()
    for uid, report in pacs.reports().items():
        for study in report.get("PredecessorDocumentsSequence") or []:
            for group in study.ReferencedSeriesSequence:
                replaced |= {str(item.ReferencedSOPInstanceUID) for item in group.ReferencedSOPSequence}
        for source in _sources(report):
            standing[source].add(uid)
    for source, reports in current.items():
        left = standing[source] - replaced
        if made_again:
            left -= _of_fewer_images(pacs, left)
        assert len(left) == len(reports), f"{len(left)} standing reports of one series at the PACS"
        for uids in reports:
            assert len(left & uids) == 1, "a report at the PACS is not the current one"


def _of_fewer_images(pacs: Pacs | Archive | Dicomweb, uids: set[str]) -> set[str]:
    """Of these reports, those on a part of the images of another one."""
    images = {uid: _images(pacs.reports()[uid]) for uid in uids}
    return {uid for uid in uids if any(images[uid] < images[other] for other in uids)}


def _images(report: Dataset) -> set[str]:
    return {
        str(item.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for group in study.ReferencedSeriesSequence
        for item in group.ReferencedSOPSequence
    }


def _sources(report: Dataset) -> set[str]:
    return {
        str(group.SeriesInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for group in study.ReferencedSeriesSequence
    }


def replay(tx: Any) -> None:
    """Check that every change of state has its audit row: replaying the trail gives the states in the index."""
    states: dict[tuple[str, Any], str] = {}
    for row in tx.execute(select(audit_rows).order_by(audit_rows.c.id)).mappings():
        entity = row["event"].partition(".")[0]
        if entity not in MACHINES or row["outcome"] not in MACHINES[entity]:
            continue
        detail = json.loads(row["detail"] or "{}")
        thing = {
            "job": row["job_id"],
            "series": row["series_uid"],
            "delivery": (row["result_id"], detail.get("destination")),
        }[entity]
        before = states.get((entity, thing))
        assert detail.get("from") == before, f"{entity}: a move from {before} is missing in the audit trail"
        allowed = before in MACHINES[entity][row["outcome"]] if before else row["outcome"] == BORN[entity]
        assert allowed, f"{entity}: {before} to {row['outcome']} is no arrow"
        states[entity, thing] = row["outcome"]
    held = {
        **{("job", r.id): r.state for r in tx.exec_driver_sql("SELECT id, state FROM jobs")},
        **{
            ("series", r.series_instance_uid): r.state
            for r in tx.exec_driver_sql("SELECT series_instance_uid, state FROM series")
        },
        **{
            ("delivery", (r.result_id, r.destination)): r.state
            for r in tx.exec_driver_sql("SELECT result_id, destination, state FROM deliveries")
        },
    }
    assert held == states, "a state that no audit row tells of"
