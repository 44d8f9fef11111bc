"""How many instances per second the index records, by the size of the group commit; files are not included.

    python -m benchmarks.record_instances [--folder DIR] [--instances 2000]

Prints instances per second and CPU milliseconds per instance for each group size, first with a small index and then
with a much larger one. Rows are committed with synchronous=FULL, so the disk matters: use a folder on the node's own.
"""

import argparse
import tempfile
import time
from pathlib import Path

from storage import recording
from storage.arrival import Arrival, IndexedHeader
from storage.database import Database, open_database
from storage.files import StoredFile


def arrivals(count: int, start: int) -> list[Arrival]:
    """Slices of series of 300 each, with invented files."""
    made = []
    for number in range(start, start + count):
        uid = f"1.2.826.0.1.3680043.8.498.{number // 300}"
        file = StoredFile(f"2026/11/23/{number:032x}.dcm", f"{number:064x}", 526_000)
        header = IndexedHeader(patient_id=f"P{number // 900}", modality="CT", instance_number=str(number % 300))
        made.append(
            Arrival(
                f"{uid}.{number}",
                "1.2.840.10008.5.1.4.1.1.2",
                uid,
                f"{uid}.0",
                "1.2.840.10008.1.2.1",
                "CT",
                "NODE",
                "10.0.0.1",
                file,
                header,
            )
        )
    return made


def measure(database: Database, batch: list[Arrival], group: int) -> tuple[float, float]:
    """Instances per second, and CPU milliseconds per instance."""
    started, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(batch), group):
        with database.transaction() as tx:
            recording.record_instances(tx, batch[first : first + group], float(first), 30.0)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return len(batch) / seconds, 1000 * cpu_s / len(batch)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--fill", type=int, default=0, help="instances to record before measuring")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        database = open_database(f"sqlite:///{folder}/index.sqlite")
        start = 0
        if options.fill:
            measure(database, arrivals(options.fill, start), 500)
            start = options.fill
        for group in (1, 2, 4, 8, 16, 64):
            rate, cpu_ms = measure(database, arrivals(options.instances, start), group)
            start += options.instances
            print(f"group of {group:3d}: {rate:8.0f} instances/s, {cpu_ms:.2f} CPU ms each")


if __name__ == "__main__":
    main()
