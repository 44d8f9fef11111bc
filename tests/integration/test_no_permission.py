"""What cannot be opened is one sentence with the path, the user and what to do: no traceback, no flood of lines."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534
# All is imported before: another user may not read where Python is.
AS_NOBODY = f"""
import os, sys
import dicom_node.cli.app, dicom_node.runtime.startup, dicom_node.demo.journey, psycopg
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
dicom_node.cli.app.main()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of root's that everybody may look into, unlike pytest's own."""
    if os.getuid() != 0:
        pytest.skip("needs root, to run commands as another user")
    path = Path(tempfile.mkdtemp(prefix="dicom-node-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


WITHOUT_DRIVER = """
import sys
sys.modules["psycopg"] = None
import dicom_node.cli.app
dicom_node.cli.app.main()
"""


def command(*arguments: str, program: str | None = None, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **{f"DICOM_NODE_{name.upper()}": value for name, value in variables.items()}}
    run = [sys.executable, *(("-c", program) if program else ("-m", "dicom_node")), *arguments]
    return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)


def sentence(done: "subprocess.CompletedProcess[str]") -> str:
    """What it says, if that is one sentence and the exit status says that it failed."""
    assert done.returncode == 1, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("name", ["run", "status"])
def test_a_data_folder_that_may_not_be_written_is_named_with_the_user(folder: Path, name: str) -> None:
    if name == "status":
        assert command("models", "list", data_dir=str(folder / "var")).returncode == 0
        (folder / "var").mkdir(exist_ok=True)
        (folder / "var" / "node.db").touch(0o600)
    said = sentence(command(name, program=AS_NOBODY, data_dir=str(folder / "var")))
    assert str(folder) in said and "'nobody'" in said and "'root'" in said and "chown" in said


def test_a_missing_driver_is_named_with_what_to_install(tmp_path: Path) -> None:
    url = "postgresql+psycopg://127.0.0.1/node"
    said = sentence(command("status", program=WITHOUT_DRIVER, data_dir=str(tmp_path), storage__database_url=url))
    assert "pip install 'dicom-node[postgresql]'" in said


def test_a_server_that_is_away_is_named_without_the_password(tmp_path: Path) -> None:
    url = "postgresql+psycopg://node:secret@127.0.0.1:1/index"
    for name in ("status", "run"):
        said = sentence(command(name, data_dir=str(tmp_path), storage__database_url=url))
        assert "127.0.0.1:1" in said and "'node'" in said and "'index'" in said
        assert "secret" not in said
