"""The mark of the files in a bucket.

The identity is an object, store.json. How far the audit trail has come is noted twice. With every commit, on this
machine: a request for each would hold up the receiver. With every epoch, in the bucket, as store.head. So an index that
is older than the files is known by the last minute of work; on the machine that did the work, by a single commit.
"""

import json
from dataclasses import asdict
from pathlib import Path

from storage.bucket import Bucket
from storage.errors import StorageError
from storage.mark import HEAD, IDENTITY, Identity, Mark, head_of, identity_of
from storage.private import make_folder


class BucketMark(Mark):
    """local: the folder on this machine for the note of each commit."""

    def __init__(self, bucket: Bucket, local: Path) -> None:
        super().__init__(local)
        self._bucket = bucket
        self._local = local

    def read(self) -> Identity | None:
        data = self._bucket.get(IDENTITY)
        if data is None:
            return None
        try:
            return identity_of(data)
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{IDENTITY} in {self._bucket.where} cannot be read; restore it") from error

    def write(self, identity: Identity) -> None:
        self._bucket.replace(IDENTITY, json.dumps(asdict(identity)).encode())

    def open(self) -> None:
        make_folder(self._local)
        super().open()

    def sync(self) -> None:
        noted = super().noted()
        super().sync()
        if noted is not None:
            self._bucket.replace(HEAD, self._line(noted))

    def noted(self) -> tuple[int, str] | None:
        data = self._bucket.get(HEAD)
        both = [noted for noted in (super().noted(), head_of(data or b"")) if noted is not None]
        return max(both, default=None)
