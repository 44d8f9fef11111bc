"""Upgrades a node under load: former versions at work, a sender that never stops, then this version on their folder.

    python -m tests.faults.upgrade [--from 0.1.0 0.2.0] [--series 12]

Former versions are taken from this repository's history. DCMTK's storescu sends one series after the other, and a
series again until every slice was acknowledged, as a PACS does. Meanwhile the former node is stopped, and this one
started. In the end every acknowledged slice is there with its bytes, each series has one report at the PACS, the audit
trail is whole, and the former program refuses the index. Says how long nothing was acknowledged. Then the way back is
gone, with a former version that has one: its own index again, and what came since is adopted from the files.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread

from dicom_node.demo.pacs import Pacs
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage.folder import FolderStore
from tests.conftest import require_program
from tests.programs import free_port, listening, wait_for

ROOT = Path(__file__).resolve().parents[2]
RELEASED = {"0.1.0": "ab4d323", "0.2.0": "d0abc10"}
"""Commits of the schemas 0001 and 0006."""
SENT = re.compile(r"Sending file: (\S+)|Received Store Response \(Success\)")


@dataclass
class Sender:
    """Sends series until it is told to stop. acknowledged: moments, by file. series: folders in their order."""

    port: int
    series: list[Path]
    acknowledged: dict[Path, float] = field(default_factory=dict)
    gave_up: list[str] = field(default_factory=list)
    sent: int = 0

    def run(self) -> None:
        """Each series until all of it is acknowledged."""
        for folder in self.series:
            deadline = time.monotonic() + 300
            while not self._send(folder):
                if time.monotonic() > deadline:
                    self.gave_up.append(folder.name)
                    break
                time.sleep(0.2)
            self.sent += 1

    def _send(self, folder: Path) -> bool:
        files = sorted(folder.iterdir())
        command = [require_program("storescu"), "-v", "-aet", "SENDER", "-aec", "DICOM_NODE", "-to", "5", "127.0.0.1"]
        with subprocess.Popen(
            [*command, str(self.port), *map(str, files)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            current = None
            for line in process.stdout:
                found = SENT.search(line)
                if found and found[1]:
                    current = Path(found[1])
                elif found and current is not None:
                    self.acknowledged.setdefault(current, time.time())
        return all(file in self.acknowledged for file in files)

    def longest_gap_s(self) -> float:
        """The longest time between two acknowledgements."""
        times = sorted(self.acknowledged.values())
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


@contextlib.contextmanager
def former_program(version: str, folder: Path) -> Iterator[Path]:
    """The program of a former version, unpacked."""
    place = folder / f"program-{version}"
    subprocess.run(["git", "worktree", "add", "-q", "--detach", place, RELEASED[version]], cwd=ROOT, check=True)
    try:
        yield place
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", place], cwd=ROOT, check=True)


class Node:
    """`dicom-node run` of one version or another on one data folder."""

    def __init__(self, data: Path, pacs_port: int, log: Path) -> None:
        self.port, self._log = free_port(), log
        destination = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": pacs_port}
        self._environment = {
            **os.environ,
            "DICOM_NODE_DATA_DIR": str(data),
            "DICOM_NODE_RECEIVER__PORT": str(self.port),
            "DICOM_NODE_COMPLETION__QUIET_S": "3",
            "DICOM_NODE_DESTINATIONS": json.dumps([destination]),
            "DICOM_NODE_STORAGE__LOW_DISK_MB": "1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of one version on the node's data."""
        return subprocess.run(
            [sys.executable, "-m", "dicom_node", *arguments],
            env={**self._environment, "PYTHONPATH": str(program)},
            cwd=program,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, program: Path) -> None:
        """Start the node of a version, and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node", "run"],
                env={**self._environment, "PYTHONPATH": str(program)},
                cwd=program,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: self._process.poll() is not None or listening(self.port), 120, "the node listens")
        assert self._process.poll() is None, self._log.read_text()[-3000:]

    def stop(self) -> float:
        """Stop it in order. Returns the seconds that this took."""
        if self._process is None:
            return 0.0
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process = None
        return time.monotonic() - began


def write_all(folder: Path, series: int) -> list[Path]:
    """Series of different patients, that the demonstration model analyses."""
    made = []
    for number in range(series):
        made.append(folder / f"series-{number:02d}")
        write_series(make_phantom(number, slices=40, size=256, lesions="none"), made[-1])
    return made


def upgrade(version: str, folder: Path, series: int) -> str:
    """One upgrade under load. Returns what was measured; raises AssertionError if anything was lost."""
    sent = write_all(folder / "sent", series)
    data = folder / "data"
    with Pacs(folder / "pacs", ae_title="PACS") as pacs, former_program(version, folder) as former:
        node = Node(data, pacs.port, folder / "node.log")
        sender = Sender(node.port, sent)
        node.start(former)
        thread = threading.Thread(target=sender.run)
        try:
            thread.start()
            wait_for(lambda: sender.sent >= series // 3, 600, "a third of the series is sent")
            before = len(sender.acknowledged)
            drained_s = node.stop()
            node.start(ROOT)
            thread.join(600)
            assert not thread.is_alive() and not sender.gave_up, sender.gave_up
            wait_for(lambda: len(reports_of(pacs, sent)) >= series, 600, "each series is reported")
            time.sleep(5)  # a second report of a series would come now
        finally:
            node.stop()
            thread.join(10)
        check(node, former, data, sender, reports_of(pacs, sent), sent)
        if (former / "dicom_node/cli/index.py").exists():
            go_back(node, former, data, sender)
    return (
        f"{version}: {len(sender.acknowledged)} slices of {series} series acknowledged, {before} of them by the former "
        f"version; nothing lost, one report each. Drained in {drained_s:.1f} s; nothing was acknowledged for "
        f"{sender.longest_gap_s():.1f} s"
    )


def reports_of(pacs: Pacs, sent: list[Path]) -> list[str]:
    """The Series Instance UIDs of the CT that the reports at the PACS are about."""
    found = []
    for path in pacs.received():
        dataset = dcmread(path)
        if dataset.Modality == "SR":
            evidence = dataset.CurrentRequestedProcedureEvidenceSequence
            found += [str(one.SeriesInstanceUID) for study in evidence for one in study.ReferencedSeriesSequence]
    return [uid for uid in found if uid in uids_of(sent)]


def uids_of(sent: list[Path]) -> set[str]:
    """The Series Instance UIDs of what is sent."""
    return {str(dcmread(next(folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID) for folder in sent}


def check(node: Node, former: Path, data: Path, sender: Sender, reported: list[str], sent: list[Path]) -> None:
    """Every acknowledged slice is there with its pixels, each series has one report, and the way back is barred."""
    files = FolderStore(data / "files")
    with contextlib.closing(sqlite3.connect(f"file:{data}/node.db?mode=ro", uri=True)) as index:
        held = dict(index.execute("SELECT sop_instance_uid, path FROM instances WHERE gone_at IS NULL"))
    for file in sender.acknowledged:
        given = dcmread(file)
        stored = dcmread(files.absolute(held[given.SOPInstanceUID]))
        pixels = [hashlib.sha256(one.PixelData).hexdigest() for one in (given, stored)]
        assert pixels[0] == pixels[1], file
    assert sorted(reported) == sorted(uids_of(sent)), "one report of each series"
    assert (data / "node.db.schema-0001.backup").exists() or (data / "node.db.schema-0006.backup").exists()
    whole = node.command(ROOT, "audit", "--verify")
    assert whole.returncode == 0, whole.stdout
    refused = node.command(former, "status")
    assert refused.returncode == 1 and "later version" in refused.stdout + refused.stderr, refused


def go_back(node: Node, former: Path, data: Path, sender: Sender) -> None:
    """As docs/upgrade.md says: the copy of the index from before, and what came since adopted from the files."""
    (data / "later").mkdir()
    for path in data.glob("node.db*"):
        path.rename(data / "later" / path.name)
    (copy,) = (data / "later").glob("node.db.schema-*.backup")
    shutil.copy(copy, data / "node.db")
    adopted = node.command(former, "index", "adopt")
    assert adopted.returncode == 0, adopted
    with contextlib.closing(sqlite3.connect(f"file:{data}/node.db?mode=ro", uri=True)) as index:
        held = {row[0] for row in index.execute("SELECT sop_instance_uid FROM instances WHERE gone_at IS NULL")}
    assert {str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in sender.acknowledged} <= held


def main() -> None:
    """The upgrades from the given versions, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="versions", nargs="+", default=list(RELEASED), choices=list(RELEASED))
    parser.add_argument("--series", type=int, default=12)
    given = parser.parse_args()
    for version in given.versions:
        with tempfile.TemporaryDirectory(prefix="upgrade-") as folder:
            sys.stdout.write(upgrade(version, Path(folder), given.series) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
