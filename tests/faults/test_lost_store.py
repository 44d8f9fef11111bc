"""The index or files folder is lost, empty, older, another's or read-only: in a running node, at its start, in a copy.

In every case, nothing is acknowledged that is gone at the next start, and no file is deleted. The node refuses to
start, with one sentence that says what to do. After `index adopt` every acknowledged instance is there.
"""

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.cli.app import app
from storage.database import open_database
from storage.folder import FolderStore
from tests.faults.campaign import Node, Pacs, ct_series, send
from tests.faults.disk import small_disk
from tests.programs import wait_for
from tests.zygote import Zygote


@dataclass(frozen=True)
class Snapshots:
    """Data folders of stopped nodes. older: from the same node as `current`, one series and one start earlier.

    held: what they acknowledged, by the snapshot's name: SHA-256 of the data set by SOP Instance UID.
    """

    older: Path
    current: Path
    another: Path
    held: Mapping[str, Mapping[str, str]]


@pytest.fixture(scope="module")
def pacs() -> Iterator[Pacs]:
    running = Pacs()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def snapshots(zygote: Zygote, pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Snapshots:
    folder = tmp_path_factory.mktemp("snapshots")
    held: dict[str, dict[str, str]] = {"another": {}, "older": {}, "current": {}}
    for name, made_from in (("another", None), ("older", None), ("current", "older")):
        node = Node(zygote, folder / "life" / name, pacs.port)
        if made_from:
            shutil.copytree(folder / made_from, node.data)
            held[name] |= held[made_from]
        node.start()
        node.send(ct_series(), held[name])
        node.settle()
        node.end()
        shutil.copytree(node.data, folder / name)
    return Snapshots(folder / "older", folder / "current", folder / "another", held)


@pytest.fixture
def node(zygote: Zygote, pacs: Pacs, tmp_path: Path) -> Iterator[Node]:
    made = Node(zygote, tmp_path, pacs.port)
    yield made
    made.kill()


def files_of(data: Path) -> set[str]:
    """The paths of all stored files, including the quarantine."""
    return {str(path.relative_to(data)) for path in data.rglob("*.dcm")}


def refuses(node: Node) -> str:
    """Start the node, which must refuse. Returns what it said."""
    said = node.log.stat().st_size if node.log.exists() else 0
    node.start()
    wait_for(lambda: node._zygote.status(node._pid) is not None, 60, "the start is refused")
    assert node._zygote.status(node._pid) == 1
    text = node.log.read_text()[said:]
    assert "Traceback" not in text and not node.listens
    return text


def command(node: Node, *arguments: str) -> str:
    """Run a command on this node, which must succeed. Returns its output."""
    variables = {k: v for k, v in node.variables.items() if k.startswith("DICOM_NODE_")}
    done = CliRunner().invoke(app, list(arguments), env=variables)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def starts_with_all(node: Node, acknowledged: Mapping[str, str], *, lost: bool = False) -> None:
    """Check that the node starts, takes another series and holds every acknowledged instance except files of `lost`."""
    node.start()
    more: dict[str, str] = {}
    node.send(ct_series(), more)
    rows = {row["sop_instance_uid"]: row for row in node.rows("SELECT * FROM instances")}
    files = FolderStore(node.data / "files")
    assert acknowledged.keys() | more.keys() <= rows.keys()
    for uid in acknowledged:
        if lost:
            assert rows[uid]["gone_reason"] in (None, "missing")
        else:
            assert rows[uid]["gone_reason"] is None
            assert files.read_verified(rows[uid]["path"], rows[uid]["sha256"])
    node.end()


def index_lost(node: Node, made: Snapshots) -> None:
    for path in node.data.glob("node.db*"):
        path.unlink()


def index_empty(node: Node, made: Snapshots) -> None:
    """As if database_url named a new database."""
    index_lost(node, made)
    index = sqlite3.connect(node.data / "node.db")
    index.execute("CREATE TABLE unrelated (at REAL)")
    index.close()


def index_without_rows(node: Node, made: Snapshots) -> None:
    """As if a program of this version had created it, for whatever reason."""
    index_lost(node, made)
    open_database(f"sqlite:///{node.data}/node.db").close()


def index_of(snapshot: str) -> Callable[[Node, Snapshots], None]:
    def put(node: Node, made: Snapshots) -> None:
        index_lost(node, made)
        for path in getattr(made, snapshot).glob("node.db*"):
            shutil.copy2(path, node.data / path.name)

    return put


def files_lost(node: Node, made: Snapshots) -> None:
    shutil.rmtree(node.data / "files")


def files_empty(node: Node, made: Snapshots) -> None:
    """As if a disk were not mounted."""
    files_lost(node, made)
    (node.data / "files").mkdir()


def files_of_snapshot(snapshot: str) -> Callable[[Node, Snapshots], None]:
    def put(node: Node, made: Snapshots) -> None:
        files_lost(node, made)
        shutil.copytree(getattr(made, snapshot) / "files", node.data / "files")

    return put


AT_START = {
    "index lost": (index_lost, "is missing or empty", False),
    "index empty": (index_empty, "is missing or empty", False),
    "index without rows": (index_without_rows, "is missing or empty", False),
    "index older": (index_of("older"), "is older than the files", False),
    "index another's": (index_of("another"), "belong to different nodes", False),
    "files lost": (files_lost, "are missing", True),
    "files empty": (files_empty, "are missing", True),
    "files older": (files_of_snapshot("older"), "are older than the index", True),
    "files another's": (files_of_snapshot("another"), "belong to different nodes", True),
}


@pytest.mark.parametrize("case", AT_START)
def test_a_start_with_the_wrong_index_or_files_is_refused_and_adopting_loses_nothing(
    case: str, node: Node, snapshots: Snapshots
) -> None:
    wrong, sentence, files_are_gone = AT_START[case]
    shutil.copytree(snapshots.current, node.data)
    wrong(node, snapshots)
    before = files_of(node.data)
    for _ in range(2):
        assert sentence in refuses(node)
        assert files_of(node.data) == before, "a refused start touches no file"
    command(node, "index", "adopt", "--json", *(["--merge"] if "another" in case else []))
    assert {Path(path).name for path in files_of(node.data)} == {Path(path).name for path in before}
    held = "another" if case == "files another's" else "current"
    starts_with_all(node, snapshots.held[held], lost=files_are_gone and held == "current")


def test_the_right_index_and_files_start_after_a_wrong_one_was_refused(node: Node, snapshots: Snapshots) -> None:
    shutil.copytree(snapshots.current, node.data)
    for path in node.data.glob("node.db*"):
        path.rename(path.with_name(f"kept-{path.name}"))
    refuses(node)
    assert not (node.data / "node.db").exists(), "no empty index is made beside the files"
    for path in node.data.glob("kept-*"):
        path.rename(path.with_name(path.name.removeprefix("kept-")))
    starts_with_all(node, snapshots.held["current"])


def test_a_backup_of_index_and_files_together_starts(node: Node, snapshots: Snapshots) -> None:
    shutil.copytree(snapshots.older, node.data)
    starts_with_all(node, snapshots.held["older"])


def test_an_index_on_a_read_only_disk_is_refused_with_its_path(
    node: Node, snapshots: Snapshots, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 24) as disk:
        shutil.copytree(snapshots.current, node.data)
        shutil.copytree(snapshots.current, disk.folder / "index")
        node.variables["DICOM_NODE_STORAGE__DATABASE_URL"] = f"sqlite:///{disk.folder}/index/node.db"
        disk.protect(on=True)
        text = refuses(node)
        assert str(disk.folder / "index" / "node.db") in text
        disk.protect(on=False)
        assert files_of(node.data) == files_of(snapshots.current)


class Senders:
    """Send one series after the other, and record what was acknowledged."""

    def __init__(self, node: Node) -> None:
        self.acknowledged: dict[str, str] = {}
        self._node = node
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(3)]

    def _send(self) -> None:
        while not self._stop.is_set():
            send(self._node.port, ct_series(4), self.acknowledged)

    def __enter__(self) -> "Senders":
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self.acknowledged) > 20, 60, "instances are acknowledged")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def live_removed(data: Path, made: Snapshots) -> None:
    (data / "node.db").unlink()


def live_renamed(data: Path, made: Snapshots) -> None:
    (data / "node.db").rename(data / "away.db")


def live_replaced(data: Path, made: Snapshots) -> None:
    shutil.copy2(made.older / "node.db", data / "restored.db")
    (data / "restored.db").rename(data / "node.db")


def live_overwritten(data: Path, made: Snapshots) -> None:
    (data / "node.db").write_bytes(b"")


def live_log_removed(data: Path, made: Snapshots) -> None:
    (data / "node.db-wal").unlink()


def live_folder_renamed(data: Path, made: Snapshots) -> None:
    data.rename(data.with_name("elsewhere"))


def live_files_renamed(data: Path, made: Snapshots) -> None:
    (data / "files").rename(data / "elsewhere")


def live_files_removed(data: Path, made: Snapshots) -> None:
    shutil.rmtree(data / "files", ignore_errors=True)


def live_files_replaced(data: Path, made: Snapshots) -> None:
    (data / "files").rename(data / "elsewhere")
    shutil.copytree(made.another / "files", data / "files")


def undo(data: Path) -> None:
    """Do what an operator does after finding the files again: the index is lost, and the folders are put back."""
    if data.with_name("elsewhere").exists():
        shutil.rmtree(data, ignore_errors=True)
        data.with_name("elsewhere").rename(data)
    if (data / "elsewhere").exists():
        shutil.rmtree(data / "files", ignore_errors=True)
        (data / "elsewhere").rename(data / "files")


LIVE = {
    "index removed": (live_removed, True),
    "index renamed": (live_renamed, True),
    "index replaced by an older one": (live_replaced, True),
    "index overwritten": (live_overwritten, True),
    "log of the index removed": (live_log_removed, True),
    "data folder renamed": (live_folder_renamed, False),
    "files renamed": (live_files_renamed, False),
    "files replaced by another's": (live_files_replaced, False),
}


@pytest.mark.parametrize("case", LIVE)
def test_under_a_running_node_nothing_more_is_acknowledged_and_nothing_acknowledged_is_lost(
    case: str, node: Node, snapshots: Snapshots
) -> None:
    happens, index_is_gone = LIVE[case]
    node.start()
    wait_for(lambda: node.listens, 60)
    with Senders(node) as senders:
        happens(node.data, snapshots)
        wait_for(lambda: not send(node.port, ct_series(1), {}), 60, "it is noticed")
        time.sleep(0.5)  # an answer that left before may still be on its way to its sender
        count = len(senders.acknowledged)
        time.sleep(1.0)
        assert len(senders.acknowledged) == count, "acknowledged after it was noticed"
    node.kill()
    assert not list(node.data.glob("node.db")) or case not in ("index removed", "index renamed", "data folder renamed")
    undo(node.data)
    before = {Path(path).name for path in files_of(node.data)}
    if index_is_gone:
        for path in node.data.glob("node.db*"):
            path.unlink()
        assert "is missing or empty" in refuses(node)
        command(node, "index", "adopt", "--json")
    assert {Path(path).name for path in files_of(node.data)} >= before
    starts_with_all(node, senders.acknowledged)


def test_an_index_that_was_renamed_and_comes_back_is_written_again(node: Node) -> None:
    acknowledged: dict[str, str] = {}
    node.start()
    node.send(ct_series(), acknowledged)
    index = node.data / "node.db"
    index.rename(node.data / "away")
    assert not send(node.port, ct_series(), {})
    time.sleep(1.5)
    (node.data / "away").rename(index)
    node.send(ct_series(), acknowledged)
    node.settle()
    node.end()
    starts_with_all(node, acknowledged)


@pytest.mark.parametrize("first", ["node.db", "files"])
def test_a_copy_of_a_running_nodes_folder_says_what_is_older_and_holds_what_was_acknowledged_before(
    first: str, node: Node, zygote: Zygote, pacs: Pacs, tmp_path: Path
) -> None:
    node.start()
    wait_for(lambda: node.listens, 60)
    copy = Node(zygote, tmp_path / "copy", pacs.port)
    with Senders(node) as senders:
        before = dict(senders.acknowledged)
        copy.data.mkdir(parents=True)
        for name in sorted(["node.db", "files"], key=lambda name: name != first):
            if name == "files":
                shutil.copytree(node.data / "files", copy.data / "files")
            else:
                for path in sorted(node.data.glob("node.db*")):
                    shutil.copy2(path, copy.data / path.name)
            time.sleep(1.2)
    node.end()
    (copy.data / "node.db-shm").unlink(missing_ok=True)
    # The epoch grew during the copy, so what was copied first is older.
    sentence = "is older than the files" if first == "node.db" else "are older than the index"
    assert sentence in refuses(copy)
    command(copy, "index", "adopt", "--json")
    starts_with_all(copy, before)
    copy.kill()
