"""Opening the index for a process of the node or a command, with errors that say what a person can do."""

import os
import pwd
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from config.settings import Settings
from dicom_node.errors import NodeError, NoIndex
from storage.database import Database
from storage.errors import DatabaseReadOnly, DatabaseUnavailable
from storage.identity import open_store, refuse_lost_index
from storage.private import make_folder
from storage.stores import files_of


def open_index(settings: Settings, *, create: bool = True, upgrade: bool = True) -> Database:
    """The index of these settings, its schema up to date; it belongs to the stored files.

    create: make it if there is none. A command that only reads must not: what root makes the node cannot open.
    upgrade: see `open_store`; for the start of a node.
    Raises NoIndex; NodeError when it cannot be opened, PermissionError for its folder; StoreMismatch and other
    StorageError.
    """
    try:
        url = make_url(settings.database_url)
    except ArgumentError:
        raise NodeError(
            "[storage] database_url is not a database URL, such as postgresql+psycopg://host/name"
        ) from None
    is_file = url.get_backend_name() == "sqlite"
    files = files_of(settings, make=False)
    refuse_lost_index(settings.database_url, files)
    if is_file and create:
        make_folder(Path(str(url.database)).parent)
    elif is_file and not Path(str(url.database)).exists():
        raise NoIndex(
            f"there is no index at {url.database} yet: the node has not run with this configuration (`dicom-node run`)"
        )
    try:
        return open_store(settings.database_url, files, upgrade=upgrade)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise NodeError(
            f"[storage] database_url needs the driver for {url.drivername}, which is not installed: "
            "pip install 'dicom-node[postgresql]' and use postgresql+psycopg://"
        ) from error
    except DatabaseReadOnly as error:
        raise NodeError(_no_permission(Path(str(url.database)))) from error
    except DatabaseUnavailable as error:
        if is_file:
            raise
        raise NodeError(_no_server(url)) from error


def no_permission(error: PermissionError) -> str:
    """What to tell a person whose command may not use a file."""
    return _no_permission(Path(str(error.filename))) if error.filename else f"permission denied for user {who()!r}"


def who() -> str:
    """The user of this process, by the operating system and not by the environment, which anybody can set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _no_permission(path: Path) -> str:
    there = next(part for part in (path, *path.parents) if os.access(part.parent, os.X_OK) and part.exists())
    what = path if there == path else f"{path} (in {there})"
    return (
        f"user {who()!r} may not use {what}, which belongs to {_owner(there)!r}: "
        f"run this as {_owner(there)!r}, give it to {who()!r} (chown), or set another data_dir"
    )


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)


def _no_server(url: URL) -> str:
    return (
        f"the PostgreSQL server {url.host or 'of this machine'}:{url.port or 5432} does not let user {url.username!r} "
        f"into database {url.database!r}: see that it runs and knows both, or correct [storage] database_url"
    )
