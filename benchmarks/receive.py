"""Slices received per second: this receiver beside Orthanc, DCMTK's storescp and pynetdicom's storescp and qrscp.

    python -m benchmarks.receive [--rounds 5] [--slices 300] [--associations 1 2 4] [--json FILE] [--only NAME ...]

Every round starts every receiver afresh on empty folders, one after the other in rotating order. DCMTK's storescu sends
the same series (512 x 512, explicit VR little endian) to each. Nagle's algorithm is off on both sides. The rate is
slices per second of wall time, from the start of the senders to the end of the last one; CPU time is the receiver's,
including its children. Only this receiver and Orthanc promise to keep what they acknowledge.

`node-s3`, only by name, is this receiver with its files in a bucket of moto_server, an S3 server written in Python: it
shows what the node adds, and how far more associations help; a real server has other latencies. `node-before`, only by
name, is the receiver of another checkout, which RECEIVE_BEFORE names: run both in turns to see what a change costs.

`node-analysing` is a whole node whose worker meanwhile analyses another series; its CPU time is the receiver's alone.
`node-ahead`, only by name, is a whole node whose worker analyses the very series that it receives, slice by slice.

Bounds of the rate, measured only if requested by name: `node-unsafe` is this receiver with an fsync that does nothing
(Debian's eatmydata). `prototype` is the measured one of ../shared/prototypes, without digest, audit trail and limits.
`prototype-digest` is the same with a SHA-256 of what it writes.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.programs import free_port, listening, require_program, wait_for
from tests.s3 import S3, s3_server

ROOT = Path(__file__).resolve().parents[1]
AE_TITLE = "DICOM_NODE"
SIZE = 512
S3_PORTS: list[int] = []
"""The port of the S3 server, once it runs."""


@dataclass(frozen=True)
class Run:
    """One round of one receiver. rate: slices per second. cpu_ms, sender_ms: CPU per slice of receiver and storescu."""

    rate: float
    cpu_ms: float
    sender_ms: float


def write_series(folder: Path, slices: int) -> None:
    """A CT series with noise like a scanner's, one file per slice."""
    folder.mkdir(parents=True)
    series, study = generate_uid(), generate_uid()
    noise = np.random.default_rng(0).normal(-700, 100, (SIZE, SIZE)).astype(np.int16)
    for number in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.SeriesInstanceUID, one.StudyInstanceUID = series, study
        one.PatientName, one.PatientID, one.Modality = "Bench^Mark", "BENCH", "CT"
        one.InstanceNumber, one.StudyDate, one.StudyTime = number + 1, "20200101", "120000"
        one.AccessionNumber, one.PatientBirthDate, one.PatientSex = "1", "19500101", "O"
        one.ImagePositionPatient, one.PixelSpacing = [0, 0, number], [0.7, 0.7]
        one.ImageOrientationPatient, one.SliceThickness = [1, 0, 0, 0, 1, 0], 1
        one.Rows = one.Columns = SIZE
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.RescaleSlope, one.RescaleIntercept = 1, 0
        one.PixelData = np.roll(noise, number).tobytes()
        one.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def node(folder: Path, port: int) -> list[str]:
    """This project's receiver."""
    (folder / "node.toml").write_text(
        f'data_dir = "{folder / "var"}"\n[receiver]\nport = {port}\nae_title = "{AE_TITLE}"\n'
        '[logging]\nlevel = "warning"\n'
    )
    return [sys.executable, "-m", "dicom_node", "receive", "--config", str(folder / "node.toml")]


def node_before(folder: Path, port: int) -> list[str]:
    """The receiver of another checkout."""
    return ["env", f"PYTHONPATH={os.environ['RECEIVE_BEFORE']}", *node(folder, port)]


def node_s3(folder: Path, port: int) -> list[str]:
    """This project's receiver, with its files in a new bucket."""
    variables = S3(S3_PORTS[0]).variables() | {"DICOM_NODE_STORAGE__S3__ENDPOINT": f"http://127.0.0.1:{S3_PORTS[0]}"}
    return ["env", *(f"{name}={value}" for name, value in variables.items()), *node(folder, port)]


def node_analysing(folder: Path, port: int) -> list[str]:
    """A whole node, with its own series to analyse."""
    return whole_node(folder, port, "")


def node_ahead(folder: Path, port: int) -> list[str]:
    """A whole node that analyses a series while it receives it, and does not close it before the end."""
    return whole_node(folder, port, "[worker]\nahead = true\n")


def whole_node(folder: Path, port: int, more: str) -> list[str]:
    """A whole node that closes the series of the source BUSY at once, and others never. more: of its settings."""
    (folder / "node.toml").write_text(
        f'data_dir = "{folder / "var"}"\n[receiver]\nport = {port}\nae_title = "{AE_TITLE}"\n'
        '[completion]\nquiet_s = 3600\n[[sources]]\nae_title = "BUSY"\nquiet_s = 0.1\n'
        f'[[sources]]\nae_title = "STORESCU"\n{more}[logging]\nlevel = "warning"\n'
    )
    return [sys.executable, "-m", "dicom_node", "run", "--config", str(folder / "node.toml")]


def keep_busy(folder: Path, port: int) -> None:
    """Give the node's worker phantoms to analyse, and wait until it does."""
    send_phantoms(folder, port, 4, 110)
    wait_for_row(folder, "SELECT 1 FROM jobs WHERE state = 'RUNNING'")
    time.sleep(5)  # the model is loaded by then


def warm_up(folder: Path, port: int) -> None:
    """Have the node's worker analyse a small phantom: it has its model loaded then, and nothing to do."""
    send_phantoms(folder, port, 1, 40)
    wait_for_row(folder, "SELECT 1 FROM results")


def send_phantoms(folder: Path, port: int, count: int, slices: int) -> None:
    """Send phantoms from the source whose series are analysed at once."""
    from inference.phantom.chest import make_phantom
    from inference.phantom.series import write_series

    for seed in range(count):
        place = folder / f"phantom-{seed}"
        write_series(make_phantom(seed, slices=slices), place)
        sent = ["-xe", "-aet", "BUSY", "-aec", AE_TITLE, "+sd", "127.0.0.1", str(port), str(place)]
        subprocess.run([require_program("storescu"), *sent], check=True, stderr=subprocess.DEVNULL)


def wait_for_row(folder: Path, question: str) -> None:
    """Wait until the node's index answers a question with a row."""
    index = sqlite3.connect(f"file:{folder / 'var' / 'node.db'}?mode=ro", uri=True)
    wait_for(lambda: index.execute(question).fetchone(), 600, question)
    index.close()


def orthanc(folder: Path, port: int) -> list[str]:
    """Debian's Orthanc with its SQLite index."""
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "HttpServerEnabled": False,
        "DicomAet": AE_TITLE,
        "DicomPort": port,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "SyncStorageArea": True,
        "StorageCompression": False,
        "OverwriteInstances": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    return [require_program("Orthanc"), str(folder / "orthanc.json")]


def storescp(folder: Path, port: int) -> list[str]:
    """DCMTK's storescp, one process per association, bit-preserving."""
    (folder / "out").mkdir()
    return [require_program("storescp"), "--fork", "+B", "-od", str(folder / "out"), "-aet", AE_TITLE, str(port)]


def pynetdicom_storescp(folder: Path, port: int) -> list[str]:
    """pynetdicom's storescp application."""
    return [sys.executable, "-m", "pynetdicom", "storescp", str(port), "-od", str(folder), "-aet", AE_TITLE, "-q"]


def pynetdicom_qrscp(folder: Path, port: int) -> list[str]:
    """pynetdicom's qrscp application, which has an index."""
    (folder / "out").mkdir()
    return [
        *(sys.executable, "-m", "pynetdicom", "qrscp", "--port", str(port), "-aet", AE_TITLE, "-q"),
        *("--database-location", str(folder / "index.sqlite"), "--instance-location", str(folder / "out")),
    ]


def node_unsafe(folder: Path, port: int) -> list[str]:
    """This project's receiver, with an fsync that does nothing."""
    return [require_program("eatmydata"), *node(folder, port)]


def prototype(folder: Path, port: int) -> list[str]:
    """The fastest durable receiver among the prototypes."""
    (folder / "out").mkdir()
    options = "--mode fused --wire --handler raw --pdu 131072 --sync full --index group --layout direct --overlap"
    start = [sys.executable, str(PROTOTYPE), "--port", str(port), "--out", str(folder / "out")]
    return [*start, *options.split(), "--parse", "fast"]


def prototype_digest(folder: Path, port: int) -> list[str]:
    """The prototype with the digest that an index needs to tell a repetition from a conflict."""
    source = PROTOTYPE.read_text()
    for plain, digesting in DIGEST:
        assert plain in source, f"{PROTOTYPE} is not the one that was measured"
        source = source.replace(plain, digesting)
    (folder / "prototype.py").write_text(source)
    command = prototype(folder, port)
    command[1] = str(folder / "prototype.py")
    return command


PROTOTYPE = ROOT.parent / "shared" / "prototypes" / "receive_fast.py"
DIGEST = (
    (
        "bytearray(), cx, ctx]\n    def _complete",
        "bytearray(), cx, ctx, __import__('hashlib').sha256()]\n    def _complete",
    ),
    (
        "req, fd, tmp, size, head, cx, ctx = self._cur;",
        "req, fd, tmp, size, head, cx, ctx, sha = self._cur; sha.hexdigest();",
    ),
    (
        "        n = sum(map(len, iov)); w = os.writev",
        "        for x in iov: cur[7].update(x)\n        n = sum(map(len, iov)); w = os.writev",
    ),
)
BOUNDS = ("node-s3", "node-before", "node-analysing", "node-ahead", "node-unsafe", "prototype", "prototype-digest")
PREPARED = {"node-analysing": keep_busy, "node-ahead": warm_up}
"""What is done with a whole node before the series is sent."""
RECEIVERS: dict[str, Callable[[Path, int], list[str]]] = {
    "node": node,
    "node-s3": node_s3,
    "node-before": node_before,
    "node-analysing": node_analysing,
    "node-ahead": node_ahead,
    "node-unsafe": node_unsafe,
    "prototype": prototype,
    "prototype-digest": prototype_digest,
    "orthanc": orthanc,
    "dcmtk-storescp": storescp,
    "pynetdicom-storescp": pynetdicom_storescp,
    "pynetdicom-qrscp": pynetdicom_qrscp,
}


def measure(name: str, parts: list[Path], slices: int, work: Path) -> Run:
    """Start a receiver, send all parts at the same time, each on its own association, and stop it."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work))
    port = free_port()
    environment = {**os.environ, "TCP_NODELAY": "1", "TCP_BUFFER_LENGTH": "", "PYTHONPATH": str(ROOT)}
    del environment["TCP_BUFFER_LENGTH"]
    command = RECEIVERS[name](folder, port)
    server = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: server.poll() is not None or listening(port), 60, f"{name} listens")
        time.sleep(0.3)
        measured = server.pid
        if name in PREPARED:
            PREPARED[name](folder, port)
            children = psutil.Process(server.pid).children()
            measured = next(child.pid for child in children if "receive" in child.cmdline())
        before, sent_before, begun = cpu_s(measured), _ended_children_s(), time.perf_counter()
        senders = [
            subprocess.Popen(
                [require_program("storescu"), "-xe", "-aec", AE_TITLE, "+sd", "127.0.0.1", str(port), str(part)],
                env=environment,
                stderr=subprocess.DEVNULL,
            )
            for part in parts
        ]
        failed = [sender.wait(300) for sender in senders]
        elapsed = time.perf_counter() - begun
        cpu, sent = cpu_s(measured) - before, _ended_children_s() - sent_before
        assert not any(failed), f"{name}: storescu ended with {failed}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        _empty(folder)
    return Run(slices / elapsed, cpu / slices * 1000, sent / slices * 1000)


def _empty(folder: Path) -> None:
    """Free the space, but keep the names until the end.

    For minutes after files were removed, ext4 takes longer to find an inode for each new file, and the next receiver
    would pay for that.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            os.truncate(file, 0)
    os.sync()


def _ended_children_s() -> float:
    """CPU seconds of our own children that have ended; during a round those are only the senders."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, its living children and those it waited for."""
    process = psutil.Process(pid)
    used = []
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended: its time is counted in its parent's
            used.append(each.cpu_times())
    return sum(t.user + t.system + t.children_user + t.children_system for t in used)


def compare(
    names: list[str], counts: list[int], rounds: int, slices: int, work: Path
) -> dict[str, dict[int, list[Run]]]:
    """Measure all receivers in each round, starting with a different one each time."""
    write_series(work / "series", slices)
    files = sorted((work / "series").iterdir())
    found: dict[str, dict[int, list[Run]]] = {name: {count: [] for count in counts} for name in names}
    for count in counts:
        parts = []
        for part in range(count):
            parts.append(work / f"part-{count}-{part}")
            parts[-1].mkdir()
            for file in files[part::count]:
                os.link(file, parts[-1] / file.name)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name][count].append(measure(name, parts, slices, work))
                print(f"round {number + 1}, {count} associations, {name}: {found[name][count][-1]}", file=sys.stderr)
    return found


def report(found: dict[str, dict[int, list[Run]]]) -> None:
    """Medians, and the medians of the ratios within each round."""
    for name, by_count in found.items():
        for count, runs in by_count.items():
            rate = statistics.median(run.rate for run in runs)
            cpu = statistics.median(run.cpu_ms for run in runs)
            sender = statistics.median(run.sender_ms for run in runs)
            ratio = ""
            if "node" in found and name != "node":
                pairs = zip(found["node"][count], runs, strict=True)
                ratio = f"  node is {statistics.median(ours.rate / run.rate for ours, run in pairs):5.2f} times that"
            print(
                f"{name:20} {count} associations {rate:7.0f} slices/s {cpu:6.2f} ms CPU a slice, "
                f"sender {sender:.2f} ms{ratio}"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--only", nargs="+", choices=RECEIVERS, default=[name for name in RECEIVERS if name not in BOUNDS]
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="receive-") as work, contextlib.ExitStack() as servers:
        if "node-s3" in options.only:
            S3_PORTS.append(servers.enter_context(s3_server(Path(work))))
        found = compare(options.only, options.associations, options.rounds, options.slices, Path(work))
    report(found)
    if options.json:
        plain = {name: {c: [vars(run) for run in runs] for c, runs in by.items()} for name, by in found.items()}
        options.json.write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
