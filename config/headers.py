"""How pydicom reacts to a header that is not what it claims to be: errors to expect, and warnings to silence."""

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
"""What pydicom raises when it reads elements that do not match their value representation."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings out of the log: those of pydicom and highdicom quote values, which may be the patient's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
