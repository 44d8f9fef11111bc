"""What a backup says about itself. A backup is a folder:

    manifest.json     what it is and how far the index had come; "seal" is the SHA-256 of everything else in it
    SHA256SUMS        the SHA-256 of every other file: `sha256sum --check --quiet SHA256SUMS` checks it without the node
    index/            node.db of SQLite, or node.dump of pg_dump
    files/            the stored files that the index names; with a bucket, objects.list instead
    models/, audit/   imported models, archives of the audit trail
    configuration/    node.toml and the settings in force, without secrets

The lines of SHA256SUMS below files/ stand in the order of the index's rows (see `wanted`), so that list and index are
compared without either in memory.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dicom_node.errors import NodeError
from storage.private import FILE_MODE

FORMAT = 1
MANIFEST, SUMS, OBJECTS = "manifest.json", "SHA256SUMS", "objects.list"
INDEX, DUMP = "index/node.db", "index/node.dump"
FILES, MODELS, ARCHIVES, CONFIGURATION = "files", "models", "audit", "configuration"
SQLITE, POSTGRESQL = "sqlite", "postgresql"
SEAL = "seal"


@dataclass(frozen=True)
class Manifest:
    """The point that a backup holds. head: number and hash of the index's last audit row. made_at: Unix seconds.

    engine: whose index it is. schema: of the index. pg_schema: PostgreSQL's namespace that the dump is of.
    bucket: where the files are, if not in the backup. sums_sha256: of the list of digests. files, size: how many stored
    files the index names that are in the backup or the bucket, and their bytes.
    deleted: files that retention deleted while the backup was made. lost: files that rows name and that were missing
    or damaged before. secrets: settings that were left out. outside: files that settings name and that are not in it.
    destinations: the names of those that results go to.
    """

    program: str
    made_at: float
    store: str
    epoch: int
    head: tuple[int, str]
    schema: str
    engine: str
    pg_schema: str
    bucket: str
    sums_sha256: str
    files: int
    size: int
    previous: str
    deleted: tuple[str, ...]
    lost: tuple[str, ...]
    secrets: tuple[str, ...]
    outside: tuple[str, ...]
    destinations: tuple[str, ...]

    @property
    def index(self) -> str:
        """Where the index is in the backup."""
        return INDEX if self.engine == SQLITE else DUMP

    @property
    def point(self) -> str:
        """The last audit row that it holds, as `audit --verify --expect` takes it."""
        return f"{self.head[0]}:{self.head[1]}"


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write it durably. Returns its seal."""
    values = {"format": FORMAT, **asdict(manifest)}
    seal = _sealed(values)
    with private_file(folder / MANIFEST) as file:
        file.write(json.dumps({**values, SEAL: seal}, indent=1, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return seal


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest and its seal, which holds. Raises NodeError if this is no whole backup, or not of this format."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_bytes())
        seal = values.pop(SEAL)
        known = values.pop("format")
        whole = _sealed({"format": known, **values}) == seal
        if whole and known == FORMAT:
            return _manifest(values), seal
    except FileNotFoundError:
        raise NodeError(f"{folder} is no backup: it holds no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NodeError(f"{path} cannot be read: {type(error).__name__}") from None
    if not whole:
        raise NodeError(f"{path} was altered: it is not what its seal says")
    raise NodeError(f"{path} has format {known}; this version of the program reads format {FORMAT}")


def _manifest(values: dict[str, Any]) -> Manifest:
    given: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
    return Manifest(**given)


def _sealed(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def private_file(path: Path) -> Any:
    """A new file for its owner alone, open for writing bytes. Raises FileExistsError."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE), "wb")


class Sums:
    """A list of digests that is being written, in the form of sha256sum(1)."""

    def __init__(self, path: Path) -> None:
        self._file = private_file(path)
        self._sha = hashlib.sha256()

    def add(self, sha256: str, path: str) -> None:
        """One file. path: below the folder of the backup."""
        line = f"{sha256}  {path}\n".encode()
        self._sha.update(line)
        self._file.write(line)

    def close(self) -> str:
        """Make the list durable. Returns its own SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._sha.hexdigest()


def sums_of(path: Path) -> Iterator[tuple[str, str]]:
    """SHA-256 and path of each line of a list. Raises NodeError for one that cannot be read, or that names a path
    outside of the backup."""
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                sha256, _, name = line.rstrip("\n").partition("  ")
                if not name or ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                    raise NodeError(f"{path} names a path outside of the backup: the node has not made this list")
                yield sha256, name
    except (OSError, UnicodeDecodeError) as error:
        raise NodeError(f"{path} cannot be read: {type(error).__name__}") from None


def sha256_in(folder: Path, path: str) -> str:
    """SHA-256 of a file of a backup, hex. Raises NodeError if it is no regular file in that folder; OSError."""
    file = folder / path
    if not stat.S_ISREG(file.lstat().st_mode) or file.resolve() != folder.resolve() / path:
        raise NodeError(f"{path}: it is no regular file, and the node makes no others")
    return sha256_of(file)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
