"""What pydicom does with a header that is not what it claims to be: errors to expect, and warnings to keep quiet."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
"""What pydicom raises while it reads elements that are not what their representation says."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings out of the log: those of pydicom and highdicom quote values, and the values are the patient's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
