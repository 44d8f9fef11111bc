"""PostgreSQL's own programs, pg_dump and pg_restore: finding them, and handing them a database without showing its
password to other users."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from sqlalchemy import URL, Connection, text

from dicom_node.backup.manifest import private_file
from dicom_node.errors import NodeError
from storage.database import Database

DEBIAN = Path("/usr/lib/postgresql")
SNAPSHOT = text("SELECT pg_export_snapshot()")
NO_TIMEOUT = text("SET LOCAL idle_in_transaction_session_timeout = 0")
SHOWN = 400
"""Characters of what a program says when it fails."""


def program(name: str, server_major: int) -> str:
    """The path of one of PostgreSQL's programs that is not older than the server.

    Raises NodeError if there is none.
    """
    # Debian's program on the PATH chooses a version by the clusters of this machine; so it comes last.
    of_debian = [str(path) for path in sorted(DEBIAN.glob(f"*/bin/{name}"), key=_folder_major)]
    on_path = shutil.which(name)
    found = {path: _major_of(path) for path in [*of_debian, *([on_path] if on_path else [])]}
    fitting = [path for path, major in found.items() if major >= server_major]
    if fitting:
        return fitting[0]
    held = f"there is only version {max(found.values())}" if found else "it is not installed"
    raise NodeError(
        f"{name} of PostgreSQL {server_major} or later is needed, and {held}: "
        f"apt install postgresql-client-{server_major}, or put it on the PATH"
    )


def _folder_major(path: Path) -> int:
    name = path.parents[1].name
    return int(name) if name.isdigit() else 0


def _major_of(path: str) -> int:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    found = re.search(r"(\d+)", said)
    return int(found[1]) if found else 0


def server_major(tx: Connection) -> int:
    """The major version of the server, such as 15."""
    return int(tx.scalar(text("SHOW server_version_num"))) // 10_000


@contextlib.contextmanager
def dumped(database: Database, target: Path) -> Iterator[tuple[Connection, str]]:
    """Dump the index in pg_dump's custom format. Yields a transaction that reads the same state, and its namespace."""
    with database.engine.connect().execution_options(
        isolation_level="REPEATABLE READ", postgresql_readonly=True
    ) as tx:  # fmt: skip
        tx.execute(NO_TIMEOUT)
        snapshot, namespace = str(tx.scalar(SNAPSHOT)), namespace_of(tx)
        arguments = ["--format=custom", f"--snapshot={snapshot}", f"--schema={namespace}", "--no-owner"]
        private_file(target).close()
        _run(database.url, program("pg_dump", server_major(tx)), *arguments, "--no-privileges", f"--file={target}")
        with target.open("rb") as file:
            os.fsync(file.fileno())
        yield tx, namespace


def namespace_of(tx: Connection) -> str:
    """PostgreSQL's schema that the index is in."""
    return str(tx.scalar(text("SELECT current_schema()")))


def loaded(database: Database, dump: Path, namespace: str) -> None:
    """Restore a dump into an empty database, all or nothing. Raises NodeError."""
    with database.engine.connect() as tx:
        restore, held = program("pg_restore", server_major(tx)), namespace_of(tx)
    if held != namespace:
        raise NodeError(f"the dump is of schema {namespace!r}, and the new database uses {held!r}: set its search_path")
    with tempfile.NamedTemporaryFile("w", suffix=".list") as chosen:
        # The namespace is there already: it is the new database's own.
        entries = _run(database.url, restore, "--list", str(dump), connect=False).splitlines(keepends=True)
        chosen.writelines(line for line in entries if not re.search(r" (SCHEMA|COMMENT) - ", line))
        chosen.flush()
        arguments = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
        _run(database.url, restore, *arguments, f"--use-list={chosen.name}", str(dump))


def readable(dump: Path) -> str | None:
    """Why pg_restore cannot read the whole of a dump; None if it can."""
    try:
        _run(None, program("pg_restore", 0), "--file=/dev/null", str(dump), connect=False)
    except NodeError as error:
        return str(error)
    return None


def _run(url: URL | None, path: str, *arguments: str, connect: bool = True) -> str:
    """Run a program on a database. Returns what it prints. Raises NodeError with what it says."""
    environment = {**os.environ, **(_connection(url) if url is not None and connect else {})}
    database = [f"--dbname={environment['PGDATABASE']}"] if connect else []
    done = subprocess.run(
        [path, *database, *arguments], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise NodeError(f"{Path(path).name} failed: {' '.join(done.stderr.split())[:SHOWN]}")
    return done.stdout


VARIABLES = {
    name: f"PG{name.upper()}"
    for name in ("host", "port", "options", "service", "passfile", "sslmode", "sslcert", "sslkey", "sslrootcert")
}


def _connection(url: URL) -> Mapping[str, str]:
    """A URL as libpq's environment variables: a command line can be read by every user of the machine."""
    query = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    given = {"PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password}
    given |= {"PGDATABASE": url.database or url.username}
    given |= {VARIABLES[name]: value for name, value in query.items() if name in VARIABLES}
    return {name: str(value) for name, value in given.items() if value}
