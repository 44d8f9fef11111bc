"""An S3 bucket, by obstore: requests that end in bounded time, and errors in words. Only this module knows obstore."""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from storage.errors import StorageFull, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

log = structlog.get_logger()

T = TypeVar("T")

CONNECT_S = 5.0
RETRIES = 2
PART_BYTES = 16 << 20
"""Larger objects are sent in parts: a request for one part must end within the time of a request."""
PAGE = 1000
ASK_EVERY_S = 2.0
"""A server that is away is asked this often whether it is back; meanwhile everything else fails at once."""
FULL = re.compile(r"status code: 507|<Code>\w*(StorageFull|QuotaExceeded)\w*</Code>")


@dataclass(frozen=True)
class Listed:
    """One object of a list. key: below the prefix. size: bytes. written_at: Unix seconds by the server's clock."""

    key: str
    size: int
    written_at: float


@dataclass(frozen=True)
class Access:
    """How a bucket is reached. Neither its text nor its repr shows the keys.

    endpoint: the server's URL; empty for Amazon's of the region. key, secret: empty to take what the environment
    gives. authorities: PEM of certificate authorities that are trusted as well. timeout_s: of one request.
    create_only: the server knows If-None-Match.
    """

    bucket: str
    prefix: str
    endpoint: str
    region: str
    key: str
    secret: str
    authorities: bytes
    plain: bool
    timeout_s: float
    create_only: bool

    def __repr__(self) -> str:
        return self.where

    @property
    def where(self) -> str:
        """The bucket in words."""
        url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        return f"{url} at {self.endpoint}" if self.endpoint else url


class _NoSuchObject(Exception):
    """The server says that there is no object of this key."""


class Bucket:
    """The objects below one prefix of a bucket. Every method raises StoreUnavailable if it gets no answer."""

    def __init__(self, access: Access) -> None:
        self.where = access.where
        self._create_only = access.create_only
        self._store = _open(access)
        self._trouble: str | None = None
        self._ask_at = 0.0
        self._asking = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """The bytes of an object; None if there is none."""
        try:
            with self._request():
                return bytes(obstore.get(self._store, key).bytes())
        except _NoSuchObject:
            return None

    def download(self, key: str, target: Path) -> str | None:
        """Write an object to a new file. Returns its SHA-256, hex; None if there is none."""
        sha = hashlib.sha256()
        try:
            with target.open("xb") as file:
                for part in self._parts(key):
                    sha.update(part)
                    file.write(part)
        except _NoSuchObject:
            return None
        except OSError as error:
            raise StoreUnavailable(f"the copy of an object cannot be written: {error.strerror}") from error
        return sha.hexdigest()

    def _parts(self, key: str) -> Iterator[bytes]:
        """The bytes of an object: a request for a part must end within the time of a request."""
        with self._request():
            found = obstore.get(self._store, key)
            size = found.meta["size"]
            whole = bytes(found.bytes()) if size <= PART_BYTES else None
        if whole is not None:
            yield whole
            return
        for start in range(0, size, PART_BYTES):
            with self._request():
                part = bytes(obstore.get_range(self._store, key, start=start, end=min(start + PART_BYTES, size)))
            yield part

    def put_new(self, key: str, file: Path) -> None:
        """Store a file under a key that no object has. Raises FileExistsError if one has it."""
        is_large = file.stat().st_size > PART_BYTES
        data = file if is_large else file.read_bytes()
        # Parts know no precondition; keys are drawn at random, so that none is ever used twice.
        mode: Literal["create", "overwrite"] = "create" if self._create_only and not is_large else "overwrite"
        try:
            with self._request():
                obstore.put(
                    self._store, key, data, mode=mode, use_multipart=is_large, chunk_size=PART_BYTES, max_concurrency=2
                )
        except AlreadyExistsError as error:
            raise FileExistsError(key) from error

    def replace(self, key: str, data: bytes) -> None:
        """Store bytes under a key, in place of what was there."""
        with self._request():
            obstore.put(self._store, key, data, use_multipart=False)

    def describe(self, key: str) -> Listed | None:
        """Size and time of an object; None if there is none."""
        try:
            with self._request(has_words=False):
                found = obstore.head(self._store, key)
        except _NoSuchObject:
            return None
        return Listed(key, found["size"], found["last_modified"].timestamp())

    def move(self, key: str, target: str) -> None:
        """Give an object another key; harmless if it is gone."""
        try:
            with self._request():
                obstore.copy(self._store, key, target)
        except _NoSuchObject:
            return
        self.delete([key])

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        for start in range(0, len(keys), PAGE):
            with contextlib.suppress(_NoSuchObject), self._request():
                obstore.delete(self._store, list(keys[start : start + PAGE]))

    def pages(self, folder: str, size: int | None = None) -> Iterator[list[Listed]]:
        """The objects below a folder in the order of their keys, some at a time: one request each."""
        with self._request():
            pages = iter(obstore.list(self._store, folder or None, chunk_size=size or PAGE))
        while (page := self._next(pages)) is not None:
            yield [Listed(one["path"], one["size"], one["last_modified"].timestamp()) for one in page]

    def folders(self, folder: str) -> list[str]:
        """The folders directly below a folder."""
        with self._request():
            return sorted(obstore.list_with_delimiter(self._store, folder or None)["common_prefixes"])

    def check(self) -> None:
        """Raises StoreUnavailable while the server is away; now and then, one caller asks it whether it is back."""
        if self._trouble is None:
            return
        if time.monotonic() < self._ask_at or not self._asking.acquire(blocking=False):
            raise StoreUnavailable(self._trouble)
        try:
            self._ask_at = time.monotonic() + ASK_EVERY_S
            self._list_one()
        finally:
            self._asking.release()

    def ask(self) -> None:
        """Ask the server whether it serves; what it said a moment ago counts."""
        with self._asking:
            is_old = time.monotonic() >= self._ask_at
            if is_old:
                self._ask_at = time.monotonic() + ASK_EVERY_S
                self._list_one()
        if self._trouble is not None:
            raise StoreUnavailable(self._trouble)

    def _list_one(self) -> None:
        next(self.pages("", size=1), None)

    def _next(self, items: Iterator[T]) -> T | None:
        with self._request():
            return next(items, None)

    @contextlib.contextmanager
    def _request(self, *, has_words: bool = True) -> Iterator[None]:
        """A request: its failure in words, and noted until another one succeeds.

        _NoSuchObject and AlreadyExistsError are answers, and pass. has_words: an answer says what is not there;
        "404" alone may come from a proxy or another server, and must not count as the loss of a file.
        """
        try:
            yield
        except FileNotFoundError as error:
            if has_words and "<Code>NoSuchKey</Code>" not in str(error):
                no_bucket = "<Code>NoSuchBucket</Code>" in str(error)
                raise self._is_away("there is no such bucket" if no_bucket else "answer 404, not of S3") from error
            self._answers()
            raise _NoSuchObject from error
        except AlreadyExistsError:
            self._answers()
            raise
        except (BaseError, OSError) as error:
            if FULL.search(str(error)):
                raise StorageFull(f"no space left in {self.where}") from error
            raise self._is_away(_in_words(error)) from error
        else:
            self._answers()

    def _answers(self) -> None:
        if self._trouble is not None:
            log.info("the object store is back", store=self.where)
        self._trouble = None

    def _is_away(self, why: str) -> StoreUnavailable:
        trouble = f"{self.where}: {why}"
        if self._trouble is None:
            log.warning("the object store is away", store=self.where, why=why)
        self._trouble, self._ask_at = trouble, time.monotonic() + ASK_EVERY_S
        return StoreUnavailable(trouble)


def _open(access: Access) -> S3Store:
    client: ClientConfig = {
        "allow_http": access.plain,
        "timeout": timedelta(seconds=access.timeout_s),
        "connect_timeout": timedelta(seconds=min(CONNECT_S, access.timeout_s)),
    }
    if access.authorities:
        client["root_certificate"] = access.authorities
    retry: RetryConfig = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=access.timeout_s),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    }
    # The server checks what it stores against the digest that is sent with it.
    config: S3Config = {"region": access.region, "checksum_algorithm": "SHA256"}
    if access.endpoint:
        config["endpoint"] = access.endpoint
    if access.key:
        config["access_key_id"], config["secret_access_key"] = access.key, access.secret
    return S3Store(
        access.bucket,
        prefix=access.prefix or None,
        config=config,
        client_options=client,
        retry_config=retry,
    )


def _in_words(error: Exception) -> str:
    """What a failed request says, without its address and without a word of ours or of the server's texts."""
    text = str(error)
    status = re.search(r"status code: (\d{3})", text)
    code = re.search(r"<Code>(\w{1,40})</Code>", text)
    if status is not None:
        said = f"{status[1]} {code[1]}" if code else status[1]
        return f"the server refuses the credentials ({said})" if status[1] in ("401", "403") else f"answer {said}"
    if "kind: Timeout" in text:
        return "no answer in time"
    if "kind: Connect" in text or "kind: Request" in text:
        return "cannot be reached"
    return "the request failed"
