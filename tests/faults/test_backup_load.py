"""A backup under load; then the node is killed and its disk is gone. Restored elsewhere, and with what the senders send
again, nothing that was acknowledged is lost, and no series has two reports that say two things.

NODE_BACKUP_ROUNDS=n does it n times (`make backup-load`), each time with a kill at another moment of the backup.
"""

import io
import os
import random
import shutil
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.filereader import read_dataset
from typer.testing import CliRunner

from config.settings import Settings
from dicom_node.backup.creating import Creator, Made
from dicom_node.cli.app import app
from storage.database import Database
from storage.folder import FolderStore
from tests.faults.campaign import Node, Pacs, check, ct_series, send
from tests.programs import wait_for
from tests.zygote import Zygote

ROUNDS = int(os.environ.get("NODE_BACKUP_ROUNDS", "1"))
SEED = int(os.environ.get("NODE_RANDOM_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
SENDERS, BEFORE, AFTER = 2, 3, 3
"""Series of each round that are acknowledged before the backup begins, and after it."""
OF_ITS_MAKING = {"DA", "TM", "DT"}


class Sender(threading.Thread):
    """Sends one series after the other, every third with a late slice, and keeps all, as a PACS does."""

    def __init__(self, node: Node, enough: threading.Event) -> None:
        super().__init__(daemon=True)
        self.kept: list[dict[str, bytes]] = []
        self.acknowledged: dict[str, str] = {}
        self.done = 0
        self._node, self._enough = node, enough

    def run(self) -> None:
        while not self._enough.is_set():
            instances = ct_series(4)
            self.kept.append(instances)
            late = dict(list(instances.items())[-1:]) if len(self.kept) % 3 == 0 else {}
            self._send({uid: data for uid, data in instances.items() if uid not in late})
            if late and not self._enough.wait(1.0):
                self._send(late)
            self.done += 1

    def _send(self, instances: dict[str, bytes]) -> None:
        while not self._enough.is_set() and not send(self._node.port, instances, self.acknowledged):
            time.sleep(0.1)


def run(node: Node, *arguments: str) -> str:
    """A command on a node; it must succeed."""
    variables = {key: value for key, value in node.variables.items() if key.startswith("DICOM_NODE_")}
    done = CliRunner().invoke(app, list(arguments), env=variables)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def said(report: Dataset) -> str:
    """A report without when it was made, and without what it replaces."""
    for element in list(report.iterall()):
        if element.VR in OF_ITS_MAKING:
            element.value = ""
    report.pop("PredecessorDocumentsSequence", None)
    return str(report)


def check_reports_agree(pacs: Pacs) -> None:
    """What was sent twice under one UID says the same."""
    contents: dict[str, set[bytes]] = defaultdict(set)
    for uid, data in pacs.received:
        contents[uid].add(data)
    for several in contents.values():
        read = [read_dataset(io.BytesIO(data), is_implicit_VR=False, is_little_endian=True) for data in several]
        assert len({said(report) for report in read}) == 1, "one UID, two reports that say two things"


def back_up(node: Node, target: Path, moment_s: float | None) -> Made:
    """Make a backup. moment_s: kill the node so long after it began; else it goes on."""
    settings = Settings(data_dir=node.data)
    files, database = FolderStore(settings.files_dir), Database(settings.database_url)
    killer = threading.Timer(moment_s or 0.0, node.kill)
    if moment_s is not None:
        killer.start()
    try:
        return Creator(settings, database, files, None, "test").create(target)
    finally:
        database.close()
        if moment_s is not None:
            killer.join()


@pytest.mark.timeout(300 * ROUNDS)
def test_a_backup_under_load_and_what_is_sent_again_lose_nothing(
    zygote: Zygote, tmp_path: Path, figures: list[str]
) -> None:
    choose = random.Random(SEED)
    counts: dict[str, int] = defaultdict(int)
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        moment_s = choose.uniform(0.0, 0.3) if number % 2 else None
        for name, count in one_round(zygote, folder, moment_s).items():
            counts[name] += count
        shutil.rmtree(folder)
    figures.append(f"backups under load, seed {SEED}, rounds {ROUNDS}: {dict(counts)}; lost 0, contradicted 0")


def one_round(zygote: Zygote, folder: Path, moment_s: float | None) -> dict[str, int]:
    pacs, enough = Pacs(), threading.Event()
    node, restored = Node(zygote, folder / "old", pacs.port), Node(zygote, folder / "new", pacs.port)
    senders = [Sender(node, enough) for _ in range(SENDERS)]
    try:
        node.start()
        wait_for(lambda: node.listens, 60, "the node listens")
        for sender in senders:
            sender.start()
        wait_for(lambda: sum(one.done for one in senders) >= BEFORE and pacs.received, 60, "some work is done")
        made = back_up(node, folder / "backups", moment_s)
        at_the_backup = sum(one.done for one in senders)
        if moment_s is None:
            wait_for(lambda: sum(one.done for one in senders) >= at_the_backup + AFTER, 60, "work goes on")
        node.kill()
        enough.set()
        for sender in senders:
            sender.join()
        before = len(pacs.received)
        shutil.rmtree(node.data)
        run(node, "backup", "verify", str(made.folder))
        run(restored, "backup", "restore", str(made.folder), "--to", str(restored.data))
        restored.start()
        acknowledged: dict[str, str] = {}
        for one in (series for sender in senders for series in sender.kept):
            restored.send(one, acknowledged)
        assert len(pacs.received) == before, "sent before a person let it"
        run(restored, "resume", "--destination", "pacs")
        restored.settle()
        lost = {uid for sender in senders for uid in sender.acknowledged} - acknowledged.keys()
        assert lost == set()
        counts = check(restored, pacs, acknowledged, made_again=True)
        check_reports_agree(pacs)
        restored.end()
    finally:
        enough.set()
        node.kill()
        restored.kill()
        pacs.stop()
    in_backup = made.manifest.files
    return {**counts, "files in backups": in_backup, "killed meanwhile": int(moment_s is not None)}
