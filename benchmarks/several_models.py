"""What a second model costs a worker: whole jobs, from the claim to the commit, on real files and a real index.

    python -m benchmarks.several_models --models DIR              # a phantom of 300 slices of 512 x 512
    python -m benchmarks.several_models --models DIR --series FOLDER [FOLDER ...]

Two workers take turns on the same series: one has the first model alone, the other has lung densitometry beside it. DIR
holds imported models; without it the first model is the demonstration model. Printed are CPU seconds of the process
and the decoders that it starts, the least of all rounds, and ratios within one round: the first model's job beside a
second model to its job alone, and the second model's job to the first's. No result is sent.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread

from config.settings import LoggingSettings, ModelEntry, Settings, WorkerSettings
from dicom_node import logs
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.worker import Worker
from inference.models.cards import read_card
from inference.models.registry import find_model
from inference.phantom.chest import Scanner, make_phantom
from inference.phantom.emphysema import EmphysemaSettings
from inference.phantom.series import write_series
from storage import recording, reopening, series
from storage.arrival import Arrival, IndexedHeader
from storage.database import Database, open_database
from storage.folder import FolderStore

SECOND = "densitometry"
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print one JSON line for each series."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of imported models")
    parser.add_argument("--series", type=Path, nargs="*", default=[], help="folders of one series each")
    parser.add_argument("--slices", type=int, default=300, help="of the phantom, if no series is given")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    logs.configure(LoggingSettings(level="warning"))
    with tempfile.TemporaryDirectory(prefix="several-models-") as scratch:
        folders = given.series or [phantom(Path(scratch) / "phantom", given.slices, given.size)]
        for number, folder in enumerate(folders):
            place = Path(scratch) / str(number)
            print(json.dumps(measured(place, folder, given.models, given.rounds, given.threads)), flush=True)


def phantom(folder: Path, slices: int, size: int) -> Path:
    """A chest with known emphysema, as files."""
    scanner = Scanner(noise_hu=12.0, kernel="B30f")
    write_series(make_phantom(2, slices=slices, size=size, scanner=scanner, emphysema=EmphysemaSettings(0.15)), folder)
    return folder


def measured(place: Path, folder: Path, models: Path | None, rounds: int, threads: int) -> dict[str, object]:
    """Both workers on one series, in turns; the first turn of each loads its models and is not counted."""
    alone, both = (Site(place / name, folder, models, beside, threads) for name, beside in SITES)
    turns = [(alone.analyse(), both.analyse()) for _ in range(rounds + 1)][1:]
    pairs = [(before[0], first, second) for before, (first, second) in turns]
    return {
        "series": folder.name,
        "slices": alone.count,
        "outcomes": both.outcomes(),
        "first alone, s": round(min(before for before, _, _ in pairs), 2),
        "first beside a second, s": round(min(first for _, first, _ in pairs), 2),
        "second, s": round(min(second for _, _, second in pairs), 2),
        "beside / alone": round(statistics.median(first / before for before, first, _ in pairs), 3),
        "second / first": round(statistics.median(second / first for _, first, second in pairs), 3),
    }


SITES = (("alone", False), ("both", True))


@dataclass
class Site:
    """A worker with an index and files of its own, which hold one series."""

    place: Path
    folder: Path
    models: Path | None
    beside: bool
    threads: int

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True)
        if self.models is not None:
            (self.place / "models").symlink_to(self.models.resolve())
        first = read_card(find_model(self.place / "models"))
        entries = [ModelEntry(name=first.name, version=first.version)]
        if self.beside:
            entries.append(ModelEntry(name=SECOND))
        worker = WorkerSettings(read_ahead_mb=0, threads=self.threads)
        self.settings = Settings(data_dir=self.place, models=tuple(entries), worker=worker)
        self.database: Database = open_database(self.settings.database_url)
        self.files = FolderStore(self.settings.files_dir)
        self.worker = Worker(self.settings, self.database, self.files, "cpu")
        self.count = self._take_in(sorted(path for path in self.folder.iterdir() if path.is_file()))

    def _take_in(self, paths: Sequence[Path]) -> int:
        """The series as a receiver leaves it, closed without a job."""
        with self.database.transaction() as tx:
            recording.record_instances(tx, list(self._arrivals(paths)), 0.0, 1.0)
            series.close_series(tx, 1, 2.0, series.Closing(None))
        return len(paths)

    def _arrivals(self, paths: Sequence[Path]) -> Iterator[Arrival]:
        for path in paths:
            header, stored = dcmread(path, stop_before_pixels=True), self.files.write_durably([path.read_bytes()])
            named = (header.SOPInstanceUID, header.SOPClassUID, header.SeriesInstanceUID, header.StudyInstanceUID)
            syntax = header.file_meta.TransferSyntaxUID
            described = IndexedHeader(patient_id="P1", modality="CT", instance_number=str(header.InstanceNumber))
            yield Arrival(*named, syntax, "CT", "NODE", "127.0.0.1", stored, described)

    def analyse(self) -> list[float]:
        """Analyse the series with every model. Returns the CPU seconds of each job."""
        models = current_models(self.settings)
        with self.database.transaction() as tx:
            reopening.analyse_again(tx, 1, time.time(), models.reporting, beside=models.beside)
        return [self._job() for _ in models.all]

    def _job(self) -> float:
        before = cpu_seconds()
        assert self.worker.work_once(time.time() + 1), "no job was waiting"
        return cpu_seconds() - before

    def outcomes(self) -> dict[str, str]:
        """Of the current results, by model."""
        with self.database.read() as tx:
            found = tx.exec_driver_sql(
                "SELECT model_name, COALESCE(reason_code, outcome) FROM results WHERE superseded_at IS NULL"
            )
            return {str(name): str(outcome) for name, outcome in found}


def cpu_seconds() -> float:
    """User and system time of this process and of the processes that it has started and that still run."""
    return time.process_time() + sum(map(_of_process, Path("/proc/self/task").glob("*/children")))


def _of_process(children: Path) -> float:
    total = 0.0
    for pid in children.read_text().split():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


if __name__ == "__main__":
    main()
