"""The labels of a batch: which line of the file names a series, and that the file is still the same."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.errors import NodeError
from storage.pseudonyms import Pseudonyms


@dataclass(frozen=True)
class CaseLabels:
    """lines: the line of each case in the file, by every text that the index may have for it. Empty: no labels."""

    lines: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.lines)

    def line_of(self, names: Iterable[str]) -> int | None:
        """The line that names a series, given all that it may be called; None if none does.

        Raises NodeError if several lines do.
        """
        found = sorted({self.lines[name] for name in names if name in self.lines})
        if len(found) > 1:
            raise NodeError(f"lines {found[0]} and {found[1]} of the labels name the same series")
        return found[0] if found else None


def read_case_labels(path: Path, pseudonyms: Pseudonyms) -> CaseLabels:
    """The cases of a labels file. Raises as `inference.evaluation.predictions.read_labels` does."""
    from inference.evaluation.predictions import read_labels

    lines: dict[str, int] = {}
    for case, row in read_labels(path).rows.items():
        lines[case] = lines[pseudonyms.of(case)] = row.line
    return CaseLabels(lines)


def digest_of(path: Path) -> str:
    """SHA-256 hex of a file's bytes. Raises NodeError."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise NodeError(f"{path}: {error.strerror}") from error
