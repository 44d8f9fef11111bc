"""How pydicom reacts to a header that is not what it claims to be: errors to expect, and warnings to silence."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from pydicom.errors import BytesLengthException

UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    NotImplementedError,
    RecursionError,
    struct.error,
    BytesLengthException,
)
"""What pydicom raises when it reads elements that do not match their value representation."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings out of the log: those of pydicom and highdicom quote values, which may be the patient's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


ITEM = b"\xfe\xff\x00\xe0"
READS_OF_AN_ITEM = 3
READS = 50_000
"""For one header. A large one, with long private sequences in undefined length, takes some thousand."""


class _Bounded:
    """See `bounded`. left: reads that may still be made."""

    def __init__(self, file: BinaryIO, reads: int) -> None:
        self._file = file
        self.left = reads
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        """As the file's own; raises ValueError once there were too many."""
        data = self._file.read(size)
        self.left -= 1 + READS_OF_AN_ITEM * data.count(ITEM)
        if self.left < 0:
            raise ValueError("a header of too many elements and items")
        return data


def bounded(file: BinaryIO, reads: int = READS) -> BinaryIO:
    """The same file for pydicom to read a header from, with a limit on the elements and items that it may meet.

    pydicom makes an object of each item, also of one that is empty and that nobody asked for: half a million of them
    are 4 MB in a file, and half a minute and 300 MB in memory. `allow` raises the limit.
    """
    return cast(BinaryIO, _Bounded(file, reads))


def allow(file: BinaryIO, reads: int) -> None:
    """Let so many reads more be made from a file that is `bounded`."""
    cast(_Bounded, file).left += reads
