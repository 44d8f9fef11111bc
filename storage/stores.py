"""The file store that the settings name."""

import configparser
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings import Settings
from storage.errors import StorageError
from storage.files import FileStore
from storage.folder import FolderStore

if TYPE_CHECKING:
    from storage.bucket import Access

MIB = 1 << 20
KEYS = ("aws_access_key_id", "aws_secret_access_key")


def files_of(settings: Settings, *, make: bool = True) -> FileStore:
    """The stored files of a node.

    make: create the folder if it is not there; a command that only looks must not.
    Raises StorageError if the settings name a bucket and say wrongly how to reach it. Nothing is asked of it here.
    """
    if not settings.storage.bucket:
        return FolderStore(settings.files_dir, make=make)
    try:
        from storage.bucket import Bucket
    except ModuleNotFoundError as error:
        raise StorageError("[storage] bucket needs obstore: pip install 'dicom-node[s3]'") from error
    from storage.bucket_store import BucketStore

    s3 = settings.storage.s3
    # One folder for each bucket: what was noted about another one must not be taken for this one's.
    name = hashlib.sha256(f"{settings.storage.bucket} {s3.endpoint}".encode()).hexdigest()[:12]
    local = settings.data_dir.resolve() / "s3" / name
    # Before the disk is so full that the receiver refuses, the copies go.
    reserve = 2 * settings.storage.low_disk_mb * MIB
    return BucketStore(Bucket(_access(settings)), local, s3.cache_mb * MIB, s3.spool_mb * MIB, reserve)


def _access(settings: Settings) -> "Access":
    from storage.bucket import Access

    s3 = settings.storage.s3
    bucket, _, prefix = settings.storage.bucket.removeprefix("s3://").partition("/")
    key, secret = _keys(s3.credentials) if s3.credentials else ("", "")
    authorities = _read(s3.authorities) if s3.authorities else b""
    plain = s3.endpoint.startswith("http://")
    return Access(bucket, prefix, s3.endpoint, s3.region, key, secret, authorities, plain, s3.timeout_s, s3.create_only)


def _keys(file: Path) -> tuple[str, str]:
    """Access key and secret of a file as AWS's tools write it. No error shows anything of its content."""
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(_read(file).decode())
        key, secret = (parser["default"][name].strip() for name in KEYS)
    except (configparser.Error, KeyError, UnicodeDecodeError):
        raise StorageError(f"{file}: [default] with {KEYS[0]} and {KEYS[1]} is wanted") from None
    return key, secret


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}") from error
