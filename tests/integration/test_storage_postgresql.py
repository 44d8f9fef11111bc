"""The same contract on PostgreSQL: the tests of the index, run again on a server of their own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import free_port

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = ["series", "selection", "jobs", "deliveries", "audit", "views", "reconcile"]


def server_programs() -> Path:
    """The folder with initdb and pg_ctl: Debian keeps it off the PATH."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    return Path(found).parent


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server that lives as long as this module; it listens in its own folder only."""
    programs = server_programs()
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    # PostgreSQL refuses to run as root, and another user may not look into pytest's own folder.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")
    port, data = free_port(), folder / "data"

    def run(*arguments: str) -> None:
        done = subprocess.run([*user, *arguments], capture_output=True, text=True, cwd="/", timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run(str(programs / "initdb"), "-D", str(data), "-U", "node", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses= -c fsync=off -c max_connections=100"
    run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://node@/postgres?host={folder}&port={port}"
    finally:
        run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_the_contract_of_the_index_holds_on_postgresql(server: str) -> None:
    files = [f"tests/unit/test_storage_{name}.py" for name in CONTRACT]
    files.append("tests/integration/test_storage_processes.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env={**os.environ, "DICOM_NODE_TEST_DATABASE": server},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout
