"""A PostgreSQL server for a test, from Debian's package, run as a separate user."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.programs import free_port


def server_programs() -> Path:
    """The folder with initdb and pg_ctl, which Debian does not put on the PATH."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    return Path(found).parent


@contextmanager
def postgresql_server(address: str = "", *, durable: bool = False) -> Iterator[str]:
    """The URL of a server that listens only in its own folder, or also at an address for everybody.

    durable: it syncs what it commits, as a site's does.
    """
    programs = server_programs()
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    # PostgreSQL refuses to run as root, and no other user may look into pytest's folder.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres", "postgres")
    port, data = free_port(), folder / "data"

    def run(*arguments: str) -> None:
        done = subprocess.run([*user, *arguments], capture_output=True, text=True, cwd="/", timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run(str(programs / "initdb"), "-D", str(data), "-U", "node", "-A", "trust", "-E", "UTF8", "--no-sync")
    if address:
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\n")
    fsync = "on" if durable else "off"
    options = f"-p {port} -k {folder} -c listen_addresses={address} -c fsync={fsync} -c max_connections=300"
    run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        if address:
            yield f"postgresql+psycopg://node@{address}:{port}/postgres"
        else:
            yield f"postgresql+psycopg://node@/postgres?host={folder}&port={port}"
    finally:
        run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)
