"""Whose the data are, who else can read them, and whether the node's user can read what the settings name."""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from config.settings import Settings
from dicom_node.runtime.installation.found import Found, good, look, wrong
from storage.private import OTHERS

SECRET = ("key", "credentials")
"""How the names of settings end that name a file with a secret."""
ANYBODY = 0o007


def permissions(settings: Settings, config: Path | None) -> Iterator[Found]:
    """config: the site's file."""
    node = _node_user(settings)
    yield _data_folder(settings, node)
    secrets = [(name, path) for name, path in named_files(settings) if name.endswith(SECRET)]
    if config is not None:
        secrets.append(("configuration", config))
    for name, path in secrets:
        yield from _secret(name, path, node)
    if secrets and all(path.exists() and not path.stat().st_mode & ANYBODY for _, path in secrets):
        yield good("secrets", f"{len(secrets)} files, none of which everybody may read")


def _node_user(settings: Settings) -> pwd.struct_passwd | None:
    """The user that the node runs as: the owner of its data, or else whoever asks. None: without a name."""
    uid = settings.data_dir.stat().st_uid if settings.data_dir.exists() else os.geteuid()
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _data_folder(settings: Settings, node: pwd.struct_passwd | None) -> Found:
    part, folder = "data folder", settings.data_dir
    if not folder.exists():
        return look(
            part, f"{folder.resolve()} is not there yet", "the node makes it when it starts, for its user alone"
        )
    owner = node.pw_name if node else str(folder.stat().st_uid)
    if folder.stat().st_mode & OTHERS:
        return look(
            part, f"{folder} is open to others than {owner}", f"chmod 700 {folder}; the next start also does it"
        )
    if os.geteuid() not in (0, folder.stat().st_uid):
        return wrong(part, f"{folder} belongs to {owner}", f"run this, and the node, as {owner}")
    if owner == "root":
        return look(part, f"{folder} belongs to root", "run the node as a user of its own, as the package does")
    return good(part, f"{folder} belongs to {owner} alone")


def _secret(name: str, path: Path, node: pwd.struct_passwd | None) -> Iterator[Found]:
    part = "secrets"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        yield wrong(part, f"{name}: {path} cannot be read: {error.strerror}", "correct the path")
        return
    if node is not None and not may_read(path, node):
        yield wrong(part, f"{name}: {node.pw_name} may not read {path}", f"chown root:{node.pw_name} and chmod 640")
    if mode & ANYBODY:
        yield look(part, f"{name}: everybody on this machine may read {path}", f"chmod o= {path}")


def may_read(path: Path, user: pwd.struct_passwd) -> bool:
    """Whether the file's mode lets a user read it."""
    status = path.stat()
    if user.pw_uid in (0, status.st_uid):
        return user.pw_uid == 0 or bool(status.st_mode & 0o400)
    if status.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
        return bool(status.st_mode & 0o040)
    return bool(status.st_mode & 0o004)


def named_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Each file that the settings name, with its setting: ("receiver.tls_key", ...)."""
    yield from _paths("", settings)


def _paths(name: str, value: Any) -> Iterator[tuple[str, Path]]:
    if isinstance(value, Path):
        yield name, value
    elif isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _paths(f"{name}.{key}".lstrip("."), getattr(value, key))
    elif isinstance(value, tuple):
        for one in value:
            yield from _paths(f"{name}[{getattr(one, 'name', '')}]", one)
