"""Series that arrive in pieces at a worker that analyses ahead, and what it says of them in the end."""

import random
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pydicom import Dataset, dcmread

from config.settings import Settings
from dicom_node.analysis import result_objects
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.worker import Worker
from storage import quiet_time, recording, series
from storage.arrival import Arrival, IndexedHeader
from tests.storage_factory import CT_IMAGE, Store

_CHANGES = {"DA", "TM", "DT"}
"""Value representations that differ from one report of a series to the next."""

_STANDARD = "1.2.840.10008."


class _SameMoment(datetime):
    """The summary page shows when it was made."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_SameMoment":
        return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)


@dataclass
class Arriving:
    """A node's index and files, and its worker. uids: of what has come."""

    store: Store
    worker: Worker
    now: float = 0.0
    uids: set[str] = field(default_factory=set)

    def receive(self, paths: Sequence[Path]) -> None:
        """Slices come, as the receiver leaves them."""
        self.now += 0.1
        arrivals = []
        for path in paths:
            header, stored = dcmread(path, stop_before_pixels=True), self.store.files.write_durably([path.read_bytes()])
            uids = (header.SOPInstanceUID, CT_IMAGE, header.SeriesInstanceUID, header.StudyInstanceUID)
            self.uids.update(uids)
            indexed = IndexedHeader(patient_id="P1", modality="CT", instance_number=str(header.InstanceNumber))
            syntax = str(header.file_meta.TransferSyntaxUID)
            arrivals.append(Arrival(*uids, syntax, "CT", "NODE", "127.0.0.1", stored, indexed))
        with self.store.database.transaction() as tx:
            recording.record_instances(tx, arrivals, self.now, 1.0)

    def idle(self, steps: int) -> None:
        """The worker has time for so many steps."""
        for _ in range(steps):
            if not self.worker._read_ahead.step():
                return

    def counts(self, whole: int) -> None:
        """A PACS counts so many slices, and is asked."""
        assert self.worker._ahead is not None
        self.worker._ahead._expected = Counted(whole)  # type: ignore[assignment]

    def settle(self) -> None:
        """Nothing comes for a while, and the worker does all that it can."""
        self.idle(10_000)
        time.sleep(self.worker._ahead._series.patience_s if self.worker._ahead and self.worker._ahead._series else 0)
        self.idle(10_000)

    def close(self) -> None:
        """The series is found complete."""
        self.now += 10
        with self.store.database.transaction() as tx:
            models = current_models(self.worker.settings).of("CT")
            assert models is not None
            for due in quiet_time.due_series(tx, self.now):
                series.close_series(tx, due.series_pk, self.now, series.Closing(models.reporting))

    def analyse(self) -> dict[str, Any]:
        """The job is done. Returns its result row, and its objects as plain data."""
        assert self.worker.work_once(self.now)
        (row,) = self.store.rows("SELECT * FROM results WHERE superseded_at IS NULL")
        paths = self.store.rows("SELECT path FROM result_objects WHERE result_id = :id ORDER BY id", id=row["id"])
        objects = [dcmread(self.store.folder / "files" / str(one["path"])) for one in paths]
        said = {name: row[name] for name in ("outcome", "reason_code", "reason_text", "model_digest", "checks")}
        return {**said, "objects": [list(_lines(one, self.uids)) for one in objects]}


class Counted:
    """What an `ExpectedCount` knows if a PACS has counted a series before any slice came."""

    def __init__(self, whole: int) -> None:
        self.whole = whole

    def of(self, series_pk: int, here: int) -> int | None:
        return self.whole if here <= self.whole else None


@contextmanager
def arriving(folder: Path, *, ahead: bool, models: Path | None = None, **worker: Any) -> Iterator[Arriving]:
    """A node without processes.  models: folder of its models; None: those that come with it."""
    with Store(folder, f"sqlite:///{folder}/node.db") as store:
        if models is not None:
            (folder / "models").rmdir() if (folder / "models").exists() else None
            (folder / "models").symlink_to(models)
        settings = Settings(data_dir=folder, sources=[{"ae_title": "CT"}], worker={"ahead": ahead, **worker})
        with patch.object(result_objects, "datetime", _SameMoment):
            yield Arriving(store, Worker(settings, store.database, store.files, "cpu"))


def in_pieces(arriving_: Arriving, paths: Sequence[Path], seed: int) -> None:
    """Slices come in any order and in pieces of any size, with time for the worker between them."""
    rng, left = random.Random(seed), list(paths)
    rng.shuffle(left)
    while left:
        count = rng.randint(1, max(1, len(paths) // 6))
        arriving_.receive(left[:count])
        left = left[count:]
        arriving_.idle(rng.randint(0, 3 * count))


def _lines(dataset: Dataset, known: Collection[str]) -> Iterator[str]:
    """Everything that a result's object says, without its own UIDs and its times.  known: UIDs of the images."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield f"{element.tag} >"
                yield from _lines(item, known)
        elif element.keyword == "PixelData":
            yield f"{element.tag} {hash(element.value)}"
        elif element.VR == "UI":
            if str(element.value) in known or str(element.value).startswith(_STANDARD):
                yield f"{element.tag} {element.value}"
        elif element.VR not in _CHANGES:
            yield f"{element.tag} {element.value!r}"
