"""What a radiologist waits for: from the last slice to the report at the PACS, with a whole node on this machine.

    python -m benchmarks.turnaround                                       # 300 slices at 10 and 20 a second
    python -m benchmarks.turnaround --slices 75 150 300 600 --at-once 1 2 4 8 --rate 20
    python -m benchmarks.turnaround --ahead off on --rounds 5             # with and without [worker] ahead, in turns
    python -m benchmarks.turnaround --rivals storescp orthanc airouter    # beside other ways, see turnaround_rivals

DCMTK's storescu sends a chest of 512 x 512 (phantom, new UIDs each time, from the head down), each series in one
association. A proxy holds each to `--rate` slices a second; 0 is as fast as both can. Debian's Orthanc holds the series
before that, answers the node's C-FIND, and receives the results. The node is `dicom-node run` with a query destination
and default settings; `--setting` changes one. The chest is 300 mm however many slices show it: half of one is refused.

Time zero is when the index had the last slice (`series.last_instance_at`), a few milliseconds before storescu gets its
last answer. The other moments are the index's, too: complete (`series.closed_at`), chosen among the study's series
(`jobs.queued_at`), claimed (`jobs.started_at`), result committed (`results.created_at`). The report counts as at the
PACS when Orthanc lists it among its changes, which is looked at every 20 ms. CPU is that of all the node's processes
from storescu's end to the report: on a busy machine it says more than seconds do. The stages' seconds are those that
the result keeps (`results.timings`). All systems run at once, warmed up by a small series, and take turns; only one is
sent to. Without `--models` the authors' weights are imported from the folder DICOM_NODE_SHARED.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.chest_series import Chest, copy_chest, make_chest
from benchmarks.counting_pacs import CountingPacs, counting_pacs
from benchmarks.pacing import paced
from benchmarks.receive import cpu_s
from benchmarks.turnaround_rivals import RIVALS, Receiver, Start
from benchmarks.turnaround_taken import LAST, MOMENTS, Case, Found, Taken, print_moments, print_stages
from tests.conftest import SHARED, require_program
from tests.running import Node, running

LOOK_EVERY_S = 0.02
WARM_SLICES = 40
NODE_SYSTEMS = {"off": {}, "on": {"DICOM_NODE_WORKER__AHEAD": "true"}}
"""Settings of the node, by the value of --ahead."""
OF_SERIES = """
    SELECT s.last_instance_at, s.closed_at, j.queued_at, j.started_at, r.created_at,
           COALESCE(r.reason_code, r.outcome), r.timings, j.attempts
    FROM series s JOIN jobs j ON j.series_pk = s.id JOIN results r ON r.job_id = j.id
    WHERE s.series_instance_uid = ?
"""


class WholeNode:
    """A node as a receiver of series."""

    def __init__(self, node: Node, data_dir: Path) -> None:
        self.port, self.ae_title = node.port, node.ae_title
        self._pid = node.process.pid
        self._index = sqlite3.connect(f"file:{data_dir / 'node.db'}?mode=ro", uri=True)

    def taken(self, chest: Chest, ended: float, reported: float) -> Taken:
        """How a series went. ended: when its sender ended, reported: when the PACS had the report; Unix seconds."""
        found = self._index.execute(OF_SERIES, (chest.series_uid,)).fetchall()
        assert len(found) == 1, f"{len(found)} results of one series"
        last, *times, outcome, timings, attempts = found[0]
        assert (outcome, attempts) == ("ANALYSED", 1), f"{outcome} at attempt {attempts}"
        moments = {name: at - last for name, at in zip(MOMENTS, [*times, reported], strict=True)}
        return Taken(moments, json.loads(timings), storescu_ended=ended - last)

    def cpu_s(self) -> float:
        """CPU seconds of its processes so far."""
        return cpu_s(self._pid)

    def said(self) -> str:
        """What became of the series so far, for a message."""
        rows = self._index.execute(
            "SELECT s.instance_count, s.state, s.refusal_code, j.state, j.failure_reason, r.reason_code FROM series s "
            "LEFT JOIN jobs j ON j.series_pk = s.id LEFT JOIN results r ON r.job_id = j.id"
        )
        return str(rows.fetchall())


@contextlib.contextmanager
def whole_node(folder: Path, pacs: CountingPacs, models: Path, settings: dict[str, str]) -> Iterator[WholeNode]:
    """`dicom-node run` that asks and answers this PACS, with the defaults of a site."""
    data_dir = folder / "var"
    data_dir.mkdir(parents=True)
    (data_dir / "models").symlink_to(models)
    defaults = {"COMPLETION__QUIET_S": "30", "SENDER__FIRST_RETRY_S": "10", "WORKER__LEASE_S": "60"}
    asking = {f"DICOM_NODE_{name}": value for name, value in defaults.items()}
    asking["DICOM_NODE_COMPLETION__QUERY_DESTINATION"] = "pacs"
    node = Node(data_dir, pacs.port, pacs.ae_title, **asking, **settings)
    node.log = folder / "log"
    with running(node):
        yield WholeNode(node, data_dir)


def import_models(folder: Path) -> Path:
    """The authors' weights as a folder of models."""
    weights = SHARED / "weights"
    files = ["--unet", weights / "unet.pth", "--decovnet", weights / "ncov-Epoch_00140-auc95p9.pth"]
    command = [sys.executable, "-m", "dicom_node", "models", "import", *map(str, files)]
    environment = {**os.environ, "DICOM_NODE_DATA_DIR": str(folder)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder / "models"


def send(chests: Sequence[Chest], receiver: Receiver, rate: float, pacs: CountingPacs, limit_s: float) -> list[Taken]:
    """Send series at the same time, wait for their reports at the PACS, and say how each went."""
    load, begun = os.getloadavg()[0], time.time()
    pacs.look_from_now()
    with paced(receiver.port, rate * chests[0].slice_bytes) as port, sending(chests, receiver, port) as senders:
        ends: dict[str, float] = {}
        reports: dict[str, float] = {}
        used: dict[str, list[float]] = {uid: [] for uid in senders}
        while len(ends) < len(chests) or len(reports) < len(chests):
            ended = {uid: time.time() for uid, one in senders.items() if uid not in ends and one.poll() is not None}
            assert not any(senders[uid].returncode for uid in ended), f"a sender was refused: {receiver.said()}"
            came = pacs.reports() if ends else {}
            ends, reports = ends | ended, reports | came
            for uid in [*ended, *came]:
                used[uid].append(receiver.cpu_s())
            assert time.time() < begun + limit_s, f"no report within {limit_s} s: {receiver.said()}"
            time.sleep(LOOK_EVERY_S)
    taken = [receiver.taken(one, ends[one.study_uid], reports[one.study_uid]) for one in chests]
    for one, chest in zip(taken, chests, strict=True):
        one.sending_s, one.load = ends[chest.study_uid] - begun, load
        one.cpu_s = used[chest.study_uid][1] - used[chest.study_uid][0]
    return taken


@contextlib.contextmanager
def sending(chests: Sequence[Chest], receiver: Receiver, port: int) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A storescu for each series, by Study Instance UID."""
    command = [require_program("storescu"), "-xe", "-aec", receiver.ae_title, "127.0.0.1", str(port)]
    environment = {**os.environ, "TCP_NODELAY": "1"}
    senders = {
        one.study_uid: subprocess.Popen([*command, *map(str, one.files)], env=environment, stderr=subprocess.DEVNULL)
        for one in chests
    }
    try:
        yield senders
    finally:
        for sender in senders.values():
            sender.kill()
            sender.wait()


class Turns:
    """Sends new copies of a chest to one receiver at a time, and waits until the PACS has everything."""

    def __init__(self, folder: Path, pacs: CountingPacs, given: argparse.Namespace) -> None:
        self._folder, self._pacs, self._given = folder, pacs, given
        self._numbers = itertools.count(1)

    def take(self, template: Chest, count: int, receiver: Receiver, rate: float) -> list[Taken]:
        """One turn of a receiver, with so many series at the same time."""
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            numbers = list(itertools.islice(self._numbers, count))
            chests = [copy_chest(template, Path(place) / str(n), n, self._given.shuffled) for n in numbers]
            for one in chests:
                self._pacs.hold(one.files)
            os.sync()  # what the disk still has to write of this must not slow the receiver
            taken = send(chests, receiver, rate, self._pacs, self._given.limit)
        self._pacs.wait_until_quiet()
        self._pacs.forget()
        return taken


def measure(
    case: Case,
    systems: dict[str, Start],
    chest: Chest,
    warm: Chest,
    models: Path,
    work: Path,
    given: argparse.Namespace,
) -> dict[str, list[Taken]]:
    """Every system once in each round, in rotating order."""
    found: dict[str, list[Taken]] = {name: [] for name in systems}
    receivers: dict[str, Receiver] = {}
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=work)))
        pacs = held.enter_context(counting_pacs(folder / "pacs"))
        turns = Turns(folder, pacs, given)
        for name, start in systems.items():
            receivers[name] = held.enter_context(start(folder / name.replace(" ", "-"), pacs, models))
            turns.take(warm, 1, receivers[name], 0)
        for number in range(given.rounds):
            names = list(systems)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                taken = turns.take(chest, case.at_once, receivers[name], case.rate)
                found[name] += taken
                latest = [round(one.moments[LAST], 2) for one in taken]
                print(f"{case}, round {number + 1}, {name}: {latest} s", file=sys.stderr, flush=True)
    return found


def systems_of(given: argparse.Namespace) -> dict[str, Start]:
    """What is asked for, by name."""
    chosen: dict[str, Start] = {}
    for ahead in given.ahead:
        settings = NODE_SYSTEMS[ahead] | {
            f"DICOM_NODE_{one.split('=')[0]}": one.split("=", 1)[1] for one in given.setting
        }
        chosen[f"node, ahead {ahead}"] = partial(whole_node, settings=settings)
    return chosen | {name: RIVALS[name] for name in given.rivals}


def write_json(found: Found, path: Path) -> None:
    """Everything that was measured so far."""
    plain = [
        {**asdict(case), "system": name, "series": [asdict(one) for one in taken]}
        for case, systems in found.items()
        for name, taken in systems.items()
    ]
    path.write_text(json.dumps(plain, indent=1))


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[300])
    parser.add_argument("--at-once", type=int, nargs="+", default=[1], help="series sent at the same time")
    parser.add_argument("--rate", type=float, nargs="+", default=[10, 20], help="slices a second; 0: unlimited")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ahead", nargs="*", choices=NODE_SYSTEMS, default=["off"])
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=[])
    parser.add_argument("--setting", nargs="*", default=[], help="of the node, such as COMPLETION__SETTLE_S=0.5")
    parser.add_argument("--shuffled", action="store_true", help="send the slices in no order")
    parser.add_argument("--models", type=Path, help="folder of imported models")
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--limit", type=float, default=900, help="seconds until a report must have come")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what runs is ended, and what was written is deleted
    found: dict[Case, dict[str, list[Taken]]] = {}
    with tempfile.TemporaryDirectory(prefix="turnaround-") as folder:
        work = Path(folder)
        models = given.models.resolve() if given.models else import_models(work / "imported")
        warm = make_chest(work / "warm", WARM_SLICES, given.size)
        for slices in given.slices:
            chest = make_chest(work / f"{slices}-slices", slices, given.size)
            for at_once, rate in itertools.product(given.at_once, given.rate):
                case = Case(slices, at_once, rate)
                found[case] = measure(case, systems_of(given), chest, warm, models, work, given)
                if given.json:
                    write_json(found, given.json)
    print_moments(found)
    print_stages(found)


if __name__ == "__main__":
    main()
