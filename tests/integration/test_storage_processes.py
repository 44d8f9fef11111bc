"""Several processes at one index: nobody waits forever, nobody claims twice, a kill loses nothing committed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage import audit
from tests.storage_factory import MODEL, QUIET_S, Store

ROOT = Path(__file__).resolve().parents[2]
PROLOGUE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from storage import deliveries, jobs, recording
from tests.storage_factory import Store, analysed, MODEL
store = Store(Path(sys.argv[1]), sys.argv[2])
name = sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
"""
RECEIVE = """
for number in range(10):
    arrivals = [store.arrival(number * 4 + part, series_uid=f"1.{name}", study_uid="1") for part in range(4)]
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, 0.0, 30.0)
"""
WORK = """
idle = 0
while idle < 3:
    with store.database.transaction() as tx:
        job = jobs.claim(tx, name, 40.0, 60.0, 3)
    if job is None:
        idle += 1
        continue
    report = store.report(f"2.25.{job.job_id}")
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, 41.0, analysed(), [report], ["PACS"])
"""
RECEIVE_FOR_EVER = """
number = 0
while True:
    number += 1
    arrival = store.arrival(number, series_uid=f"1.{name}", study_uid="1")
    with store.database.transaction() as tx:
        recording.record_instance(tx, arrival, 0.0, 30.0)
    print(arrival.sop_instance_uid, arrival.file.sha256, flush=True)
"""


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


class Processes:
    """Programs that wait for a common start."""

    def __init__(self, store: Store, program: str, names: list[str]) -> None:
        code = PROLOGUE.format(root=str(ROOT)) + program
        self.running = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(store.folder), store.url, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for name in names
        ]
        for process in self.running:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in self.running:
            process.stdin.write("go\n")
            process.stdin.flush()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.kill()
            process.communicate()

    def finish(self) -> None:
        for process in self.running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors


def test_receivers_in_several_processes_wait_for_each_other_and_all_record(store):
    with Processes(store, RECEIVE, ["0", "1", "2"]) as receivers:
        receivers.finish()
    assert store.rows("SELECT COUNT(*) AS n FROM instances") == [{"n": 120}]
    assert {row["instance_count"] for row in store.rows("SELECT instance_count FROM series")} == {40}
    with store.database.read() as tx:
        assert audit.verify(tx) is None


def test_no_two_workers_ever_hold_one_job(store):
    for number in range(15):
        store.receive(1, now=0, series_uid=f"1.{number}", study_uid="1")
    store.close_due(QUIET_S)
    with Processes(store, WORK, ["a", "b", "c"]) as workers:
        workers.finish()
    assert store.states("jobs") == ["REPORTED"] * 15
    assert {row["attempts"] for row in store.rows("SELECT attempts FROM jobs")} == {1}
    assert store.rows("SELECT COUNT(*) AS n FROM deliveries") == [{"n": 15}]
    assert store.events().count("job.running") == 15


def test_processes_that_start_together_migrate_once(tmp_path):
    url = f"sqlite:///{tmp_path}/fresh.sqlite"
    program = "import sys\nfrom storage.database import open_database\nopen_database(sys.argv[1]).close()\n"
    starting = [
        subprocess.Popen([sys.executable, "-c", program, url], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in starting:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_a_kill_at_any_moment_loses_nothing_that_was_committed(store):
    acknowledged: dict[str, str] = {}
    for kill in range(3):
        with Processes(store, RECEIVE_FOR_EVER, [str(kill)]) as receivers:
            [receiver] = receivers.running
            first = receiver.stdout.readline()  # on a busy machine nothing may be there for a while
            time.sleep(0.1 + 0.07 * kill)
            receiver.send_signal(signal.SIGKILL)
            rest = [line for line in receiver.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
            lines = [first, *rest]
            acknowledged.update((uid, sha256) for uid, sha256 in map(str.split, lines))
    held = {row["sop_instance_uid"]: row for row in store.rows("SELECT * FROM instances")}
    assert acknowledged
    for uid, sha256 in acknowledged.items():
        assert store.files.read_verified(held[uid]["path"], sha256)
    with store.database.read() as tx:
        assert audit.verify(tx) is None
    assert store.close_due(QUIET_S, MODEL)
