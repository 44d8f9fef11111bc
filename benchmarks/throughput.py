"""How much more do further processes do? Receivers and workers on PostgreSQL beside one node on SQLite.

    python -m benchmarks.throughput [--rounds 3] [--slices 300] [--series 24] [--real 6] [--waits 1.0] [--only PART ...]

Receiving: four DCMTK storescu send CT slices (512 x 512) at the same time, to one receiver, or two to each of two. Each
receiver is a process with a port of its own, as on a host of its own; the files are in one folder.

Working: a queue of small series, and 1, 2 or 3 workers. The model of "waiting" is a stand-in that takes a fixed time
and no processor, like one on a GPU: what is left is what claiming, reading, the report and the index allow. The "real"
one is the demonstration model on phantoms, one thread for each worker. The rate is series a minute, from the moment
when as many series as there are workers were reported to the last report, so that starting does not count.

Committing: 1, 2 and 4 processes that do nothing but commit transactions with one audit row. They take turns at the end
of the audit trail, on SQLite and PostgreSQL alike: the rate is the bound of one index, and stays as it is with more.

Every round starts all afresh, in rotating order; the table has medians, the ratio to SQLite's, and how many processors
were busy for whom. On a machine with N cores nothing grows once the sum is N; on several hosts each has its own.
With the defaults it takes half an hour on two cores with nothing else to do.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pynetdicom.dsutils import split_dataset
from sqlalchemy import create_engine, make_url, text

from benchmarks.receive import AE_TITLE, write_series
from storage.database import Database
from tests.faults.campaign import ct_series, send
from tests.postgresql import postgresql_server
from tests.programs import free_port, listening, require_program, wait_for

ROOT = Path(__file__).resolve().parents[1]
SENDERS = 4
WORKER = (
    "import sys; from tests.faults import injection; sys.modules['inference.covid.pipeline'] = "
    "sys.modules['inference.covid.loading'] = injection._stand_in(); from dicom_node.cli.app import main; main()"
)
"""`dicom-node`, with a stand-in for the model that takes as long as the file "slow" in NODE_FAULTS says."""
PARTS = ("committing", "receiving", "waiting", "real")


@dataclass(frozen=True)
class Setup:
    """One line of the table: a database and how many processes do the work."""

    database: str
    processes: int

    def __str__(self) -> str:
        return f"{self.database}, {self.processes}"


@dataclass
class Measured:
    """rates: of the rounds, per second. cores: busy processors by whom, one value for each round."""

    rates: list[float] = field(default_factory=list)
    cores: dict[str, list[float]] = field(default_factory=dict)

    def add(self, rate: float, cores: dict[str, float]) -> None:
        """A round."""
        self.rates.append(rate)
        for who, busy in cores.items():
            self.cores.setdefault(who, []).append(busy)


class Cpu:
    """Processor time of some processes and their children, from now on."""

    def __init__(self, **processes: Sequence[int]) -> None:
        self._processes = {who: [psutil.Process(pid) for pid in pids] for who, pids in processes.items()}
        self._begun, self._before = time.perf_counter(), self._read()
        self._system = psutil.cpu_times()

    def _read(self) -> dict[str, float]:
        return {who: sum(_cpu_s(one) for one in processes) for who, processes in self._processes.items()}

    def cores(self) -> dict[str, float]:
        """Busy processors since the beginning, for each of the given, and for everything on this machine."""
        elapsed = time.perf_counter() - self._begun
        now, system = self._read(), psutil.cpu_times()
        found = {who: (now[who] - self._before[who]) / elapsed for who in now}
        idle = (system.idle - self._system.idle) + (system.iowait - self._system.iowait)
        return {
            **found,
            "machine": (os.cpu_count() or 1) - idle / elapsed,
            "disk": (system.iowait - self._system.iowait) / elapsed,
        }


def _cpu_s(process: psutil.Process) -> float:
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


class Site:
    """One configuration of a node in a folder, and its processes. servers: the PostgreSQL server's processes."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.port = folder, url, free_port()
        self.index = url or f"sqlite:///{folder}/var/node.db"
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "faults").mkdir(parents=True)
        self.variables = {
            **os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "NODE_FAULTS": str(folder / "faults"),
            "DICOM_NODE_DATA_DIR": str(folder / "var"), "DICOM_NODE_STORAGE__DATABASE_URL": url,
            "DICOM_NODE_RECEIVER__AE_TITLE": AE_TITLE, "DICOM_NODE_COMPLETION__QUIET_S": "0.5",
            "DICOM_NODE_COMPLETION__SELECT": "all", "DICOM_NODE_WORKER__THREADS": "1",
            "DICOM_NODE_WORKER__POLL_S": "0.05", "DICOM_NODE_LOGGING__LEVEL": "error",
        }  # fmt: skip

    def start(self, *arguments: str, program: Sequence[str] = ("-m", "dicom_node"), **variables: str) -> int:
        """Start a process of the node. Returns its pid."""
        process = subprocess.Popen(
            [sys.executable, *program, *arguments], env={**self.variables, **variables}, cwd=ROOT,
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=(self.folder / "log").open("ab"),
        )  # fmt: skip
        self.processes.append(process)
        return process.pid

    def receiver(self, *arguments: str, port: int | None = None) -> int:
        """Start a receiver, and wait until it listens. Returns its pid."""
        port = port or self.port
        pid = self.start(*arguments, DICOM_NODE_RECEIVER__PORT=str(port))
        wait_for(lambda: listening(port), 120, f"a receiver listens: {self.folder / 'log'}")
        return pid

    def rows(self, statement: str) -> list[tuple[float, ...]]:
        """The rows of a query."""
        with contextlib.closing(Database(self.index)) as database, database.read() as tx:
            return [tuple(row) for row in tx.execute(text(statement)).all()]

    def stop(self) -> None:
        """End its processes."""
        processes, self.processes = self.processes, []
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextlib.contextmanager
def site(work: Path, server: str, setup: Setup) -> Iterator[Site]:
    """A site with an empty index."""
    folder = Path(tempfile.mkdtemp(prefix="site-", dir=work))
    made = Site(folder, _empty_database(server, folder.name) if setup.database == "PostgreSQL" else "")
    try:
        yield made
    finally:
        made.stop()


def _empty_database(server: str, name: str) -> str:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    name = name.replace("-", "_").lower()
    with engine.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def server_process(server: str) -> int:
    """The first process of the PostgreSQL server."""
    engine = create_engine(server)
    with engine.connect() as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        first = Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1]
    engine.dispose()
    return int(first)


def receiving(
    made: Site, setup: Setup, database: Sequence[int], parts: Sequence[Path], slices: int
) -> tuple[float, dict[str, float]]:
    """Slices a second, and the busy processors."""
    ports = [made.port, *(free_port() for _ in range(setup.processes - 1))]
    pids = [made.receiver("receive", port=port) for port in ports]
    time.sleep(0.5)
    command = [require_program("storescu"), "-xe", "-aec", AE_TITLE, "+sd", "127.0.0.1"]
    environment = {**os.environ, "TCP_NODELAY": "1"}
    cpu, begun = Cpu(receivers=pids, database=database, senders=[os.getpid()]), time.perf_counter()
    senders = [
        subprocess.Popen(
            [*command, str(ports[number % len(ports)]), str(part)], env=environment, stderr=subprocess.DEVNULL
        )
        for number, part in enumerate(parts)
    ]
    assert not any(sender.wait(600) for sender in senders), "a sender was refused"
    elapsed = time.perf_counter() - begun
    cores = cpu.cores()
    cores["senders"] -= cores["receivers"]  # they are this process's children too
    assert made.rows("SELECT count(*) FROM instances") == [(slices,)]
    return slices / elapsed, cores


def working(
    made: Site, setup: Setup, database: Sequence[int], many: Sequence[dict[str, bytes]], waits_s: float | None
) -> tuple[float, dict[str, float]]:
    """Series a second, and the busy processors. waits_s: of the stand-in; None for the real model."""
    made.receiver("run", "--only", "receive,schedule")
    for instances in many:
        assert send(made.port, instances, {}), "a series was not taken"
    queued = "SELECT count(*) FROM jobs WHERE state = 'QUEUED'"
    wait_for(lambda: made.rows(queued) == [(len(many),)], 120, "all series are queued")
    made.stop()  # what is measured is the workers
    program = ("-m", "dicom_node") if waits_s is None else ("-c", WORKER)
    (made.folder / "faults" / "slow").write_text(str(waits_s or 0))
    workers = [made.start("work", "--device", "cpu", program=program) for _ in range(setup.processes)]
    finished = "SELECT finished_at FROM jobs WHERE state = 'REPORTED' ORDER BY finished_at"
    wait_for(lambda: len(made.rows(finished)) >= setup.processes, 600, "every worker has begun")
    cpu = Cpu(workers=workers, database=database)
    wait_for(lambda: len(made.rows(finished)) == len(many), 1800, "all is reported")
    cores = cpu.cores()
    times = [at for (at,) in made.rows(finished)]
    outcomes = made.rows("SELECT count(*) FROM results WHERE outcome = 'ANALYSED'")
    assert outcomes == [(len(many),)], f"not all were analysed: {outcomes}"
    return (len(times) - setup.processes) / (times[-1] - times[setup.processes - 1]), cores


def phantoms(folder: Path, count: int) -> list[dict[str, bytes]]:
    """Data sets of some phantoms, by SOP Instance UID."""
    from inference.phantom.chest import make_phantom
    from inference.phantom.series import write_series as write_phantom

    made = []
    for seed in range(count):
        paths = write_phantom(make_phantom(seed, size=256), folder / f"phantom-{seed}")
        made.append(
            {
                str(meta.MediaStorageSOPInstanceUID): path.read_bytes()[start:]
                for path in paths
                for meta, start in [split_dataset(path)]
            }
        )
    return made


def setups(*numbers: int) -> list[Setup]:
    """SQLite with one process, PostgreSQL with these numbers of them."""
    return [Setup("SQLite", 1), *(Setup("PostgreSQL", number) for number in numbers)]


COMMITTER = (
    "import sys, time; from storage import audit; from storage.database import Database\n"
    "database, until, done = Database(sys.argv[1]), time.time() + float(sys.argv[2]), 0\n"
    "while time.time() < until:\n"
    "    with database.transaction() as tx: audit.append(tx, database.now(), 'benchmark.commit')\n"
    "    done += 1\n"
    "print(done)"
)
COMMIT_S = 5.0


def committing(made: Site, setup: Setup, database: Sequence[int]) -> tuple[float, dict[str, float]]:
    """Commits a second, and the busy processors."""
    with contextlib.closing(Database(made.index)) as index:
        (made.folder / "var").mkdir(exist_ok=True)
        index.migrate()
    command = [sys.executable, "-c", COMMITTER, made.index, str(COMMIT_S)]
    running = [
        subprocess.Popen(command, env=made.variables, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(setup.processes)
    ]
    time.sleep(1.5)  # they import
    cpu = Cpu(processes=[one.pid for one in running], database=database)
    time.sleep(COMMIT_S / 2)
    cores = cpu.cores()
    return sum(int(one.communicate()[0]) for one in running) / COMMIT_S, cores


Measure = Callable[[Site, Setup, Sequence[int]], tuple[float, dict[str, float]]]


def measure(
    name: str, lines: Sequence[Setup], rounds: int, work: Path, server: str, one: Measure
) -> dict[Setup, Measured]:
    """Every line once in each round, in rotating order."""
    found = {setup: Measured() for setup in lines}
    for number in range(rounds):
        for setup in (*lines[number % len(lines) :], *lines[: number % len(lines)]):
            database = [server_process(server)] if setup.database == "PostgreSQL" else []
            with site(work, server, setup) as made:
                rate, cores = one(made, setup, database)
            found[setup].add(rate, cores)
            print(f"round {number + 1}: {name}, {setup}: {rate:.2f}/s", file=sys.stderr, flush=True)
    return found


def print_table(title: str, unit: str, per: float, found: dict[Setup, Measured]) -> None:
    """Markdown: rates, ratios to the first line, busy processors."""
    first = statistics.median(next(iter(found.values())).rates)
    names = list(dict.fromkeys(who for measured in found.values() for who in measured.cores))
    print(f"\n| {title} | {unit} | lowest to highest | ratio | {' | '.join(f'{who}: cores' for who in names)} |")
    print("|---|---|---|---|" + "---|" * len(names))
    for setup, measured in found.items():
        rate = statistics.median(measured.rates)
        cores = [f"{statistics.median(measured.cores.get(who, [0.0])):.2f}" for who in names]
        spread = f"{min(measured.rates) * per:.1f} to {max(measured.rates) * per:.1f}"
        print(f"| {setup} | {rate * per:.1f} | {spread} | {rate / first:.2f} | {' | '.join(cores)} |")


def main() -> None:
    """Measure, and print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--slices", type=int, default=300, help="of each of the four senders")
    options.add_argument("--series", type=int, default=24, help="in the queue of the waiting model")
    options.add_argument("--waits", type=float, default=1.0, help="seconds that the waiting model takes")
    options.add_argument("--real", type=int, default=6, help="phantoms in the queue of the real model")
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder, postgresql_server(durable=True) as server:
        work = Path(folder)
        if "committing" in given.only:
            found = measure("committing", setups(1, 2, 4), given.rounds, work, server, committing)
            print_table("committing processes", "commits/s", 1, found)
        if "receiving" in given.only:
            parts = [work / f"part-{number}" for number in range(SENDERS)]
            for part in parts:
                write_series(part, given.slices)
            found = measure(
                "receiving",
                setups(1, 2),
                given.rounds,
                work,
                server,
                lambda made, setup, database: receiving(made, setup, database, parts, SENDERS * given.slices),
            )
            print_table("receivers", "slices/s", 1, found)
        if "waiting" in given.only:
            small = [ct_series() for _ in range(given.series)]
            found = measure(
                "waiting",
                setups(1, 2, 3),
                given.rounds,
                work,
                server,
                lambda made, setup, database: working(made, setup, database, small, given.waits),
            )
            print_table(f"workers, a model that waits {given.waits:g} s", "series/min", 60, found)
        if "real" in given.only:
            chests = phantoms(work, given.real)
            found = measure(
                "real",
                setups(1, 2, 3),
                given.rounds,
                work,
                server,
                lambda made, setup, database: working(made, setup, database, chests, None),
            )
            print_table("workers, the demonstration model", "series/min", 60, found)


if __name__ == "__main__":
    main()
