"""What the node stores is for its own user alone."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.folder import FolderStore
from storage.private import make_folder, tighten
from tests.storage_factory import Store


@pytest.fixture(autouse=True)
def generous() -> Iterator[None]:
    """A umask that leaves everything readable to everybody."""
    before = os.umask(0o000)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """The mode of everything at and below a folder, by its name."""
    return {
        path.relative_to(folder.parent).as_posix(): oct(stat.S_IMODE(path.stat().st_mode))
        for path in (folder, *folder.rglob("*"))
    }


def test_a_new_data_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "node"
    with Store(folder, f"sqlite:///{folder}/node.db") as store:
        store.receive(1, now=0)
        found = modes(tmp_path / "lib")
    assert {name.rsplit("/", 1)[-1] for name in found} >= {"node.db", "node.db-wal", "node.db-shm"}
    for name, mode in found.items():
        assert mode == ("0o700" if (tmp_path / name).is_dir() else "0o600"), name


def test_what_an_earlier_version_left_readable_is_closed_at_the_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "files" / "2020" / "01").mkdir(parents=True)
    for name in ("node.db", "node.db.before-0002", "files/2020/01/a.dcm"):
        (data / name).write_bytes(b"x")
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    (data / "link").symlink_to(outside)
    tighten(data)
    assert set(modes(data / "files").values()) == {"0o700", "0o600"}
    assert stat.S_IMODE((data / "node.db").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE(outside.stat().st_mode) == 0o666, "what a link leads to is not the node's"


def test_an_index_that_others_could_read_is_closed_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "node.db").touch(0o644)
    with Store(tmp_path, f"sqlite:///{tmp_path}/node.db") as store:
        store.receive(1, now=0)
        assert {mode for name, mode in modes(tmp_path).items() if "node.db" in name} == {"0o600"}


def test_a_folder_that_exists_keeps_its_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_folder(tmp_path / "a" / "b")
    FolderStore(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert set(modes(tmp_path / "a").values()) == {"0o700"}
