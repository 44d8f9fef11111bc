"""Coverage-guided fuzzing of header reading, if atheris is installed: python -m tests.fuzz.atheris_headers."""

import sys

import atheris  # type: ignore[import-not-found]

# Only what is fuzzed: with all that it imports, the start alone takes minutes.
with atheris.instrument_imports(include=["dicom_node.receiver.headers", "dicom_node.receiver.walk"]):
    from dicom_node.receiver.errors import Unreadable
    from dicom_node.receiver.headers import read_header


def one(data: bytes) -> None:
    """One input; its first bit chooses the encoding."""
    if not data:
        return
    try:
        read_header(data[1:], len(data) - 1, implicit=bool(data[0] & 1))
    except Unreadable:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
