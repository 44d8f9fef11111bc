"""Reading a CSV, or the text form that the paper's authors published, into rows of unchecked values."""

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.evaluation.errors import EvaluationError, Problem, UnusablePredictions

CASE_NAMES = ("case", "case_id", "series_instance_uid", "series", "study", "id", "name")
PATIENT_NAMES = ("patient", "patient_id")
PROBABILITY_NAMES = ("probability", "p_covid", "probability_covid", "prob", "p", "score", "prediction", "predicted")
LABEL_NAMES = ("label", "y_true", "truth", "target", "diagnosis", "covid", "y", "class")

PUBLISHED_COLUMNS = ("file", "case", "P(normal)", "P(COVID)", "label")
MAX_FILE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class ColumnNames:
    """Names of the columns in a CSV header, if they differ from the names known here."""

    case: str | None = None
    patient: str | None = None
    probability: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Row:
    """One data line: raw text by role (case, patient, probability, label, normal) and by other column."""

    line: int
    roles: Mapping[str, str]
    others: Mapping[str, str]
    problem: tuple[str, str] | None = None  # column and reason, if the line does not even have the right shape


@dataclass(frozen=True)
class Table:
    """A file as read, before any value is checked. titles: the file's name for each role."""

    file: str
    sha256: str
    titles: Mapping[str, str]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def number(text: str) -> float | None:
    """The number that a text represents, including NaN and infinity, or None."""
    try:
        return None if "_" in text else float(text)  # float() reads 1_0 as ten
    except ValueError:
        return None


def read_table(path: Path, names: ColumnNames, required: Sequence[str]) -> Table:
    """Read a CSV (comma, semicolon, tab or bar; UTF-8 or UTF-16) with a header, or the published text form.

    required: the roles, out of "case", "probability" and "label", that must be present.
    Raises UnusablePredictions if a column is missing or the text is not CSV; EvaluationError if the file is
    empty, too large or cannot be read. A malformed line becomes a row with a problem, and the caller decides.
    """
    text, digest = _text(path)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # splitlines() also splits inside some cells
    first = next((index for index, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise EvaluationError(f"{path.name} is empty")
    delimiter = max(",;\t|", key=lines[first].count)
    header = [cell.strip() for cell in next(csv.reader([lines[first]], delimiter=delimiter), [])]
    roles = _roles(header, names)
    if "probability" not in roles and "probability" in required and any(_published(line) for line in lines):
        return _published_table(path.name, digest, lines)
    missing = [role for role in required if role not in roles]
    if missing:
        raise UnusablePredictions([_missing_column(path.name, first + 1, role, len(header), names) for role in missing])
    rows = tuple(_csv_rows(path.name, lines[first + 1 :], first + 2, delimiter, header, roles))
    return Table(path.name, digest, {role: header[index] for role, index in roles.items()}, rows)


def _text(path: Path) -> tuple[str, str]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise EvaluationError(f"{path.name} is larger than {MAX_FILE_BYTES >> 20} MiB: not a predictions file")
        data = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror}") from error
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # what Excel calls "Unicode text"
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UnusablePredictions(
            [Problem(path.name, line, "1", "is not UTF-8 text; save the file as UTF-8")]
        ) from error
    return text, hashlib.sha256(data).hexdigest()


def _roles(header: Sequence[str], names: ColumnNames) -> dict[str, int]:
    """Which column holds which role, by the requested names or by the known ones in order of preference."""
    wanted = {
        "case": (names.case, CASE_NAMES),
        "patient": (names.patient, PATIENT_NAMES),
        "probability": (names.probability, PROBABILITY_NAMES),
        "label": (names.label, LABEL_NAMES),
    }
    present = [normalised(cell) for cell in header]
    found = {}
    for role, (asked, known) in wanted.items():
        for name in (normalised(asked),) if asked else known:
            if name in present:
                found[role] = present.index(name)
                break
    return found


def normalised(name: str) -> str:
    """Lower case, with one underscore per run of other characters: "Slice Thickness (mm)" is slice_thickness_mm."""
    return re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_") or name.strip()


def _missing_column(file: str, line: int, role: str, width: int, names: ColumnNames) -> Problem:
    asked = getattr(names, role)
    if asked:
        return Problem(file, line, asked, f"is not among the {width} columns of the header")
    known = {"case": CASE_NAMES, "probability": PROBABILITY_NAMES, "label": LABEL_NAMES}[role]
    return Problem(
        file, line, role, f"no column of the header ({width} in all) is called so, nor {', '.join(known[1:])}; name it"
    )


def _csv_rows(
    file: str, lines: Sequence[str], first_line: int, delimiter: str, header: Sequence[str], roles: Mapping[str, int]
) -> Iterator[Row]:
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter)
    others = {normalised(name): index for index, name in enumerate(header) if name and index not in roles.values()}
    while True:
        line = first_line + reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UnusablePredictions([Problem(file, line, "1", f"is not CSV: {error}")]) from error
        if cells is None:
            return
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) != len(header):
            column = header[min(len(cells), len(header) - 1)]
            yield Row(line, {}, {}, (column, f"the line has {len(cells)} columns, the header {len(header)}"))
            continue
        values = {role: cells[index] for role, index in roles.items()}
        if "probability" in values and delimiter != ",":
            # A decimal comma, as Excel writes it in German.
            values["probability"] = values["probability"].replace(",", ".")
        yield Row(line, values, {name: cells[index] for name, index in others.items()})


def _published(line: str) -> bool:
    """True if a line of the published form holds a case: any of its last three fields is a number."""
    return not any(mark in line for mark in ",;\t|") and any(number(field) is not None for field in line.split()[-3:])


def _published_table(file: str, digest: str, lines: Sequence[str]) -> Table:
    """The authors' form: log lines, then file, case, P(normal), P(COVID) and label, separated by spaces."""
    start = next(index for index, line in enumerate(lines) if _published(line))
    rows = []
    for line_number, line in enumerate(lines[start:], start + 1):
        fields = line.rsplit(None, 4)
        if not fields:
            continue
        if len(fields) != len(PUBLISHED_COLUMNS):
            problem = (PUBLISHED_COLUMNS[len(fields)], f"the line has {len(fields)} of {len(PUBLISHED_COLUMNS)} fields")
            rows.append(Row(line_number, {}, {}, problem))
            continue
        rows.append(
            Row(line_number, dict(zip(("file", "case", "normal", "probability", "label"), fields, strict=True)), {})
        )
    titles = {"case": "case", "normal": "P(normal)", "probability": "P(COVID)", "label": "label"}
    skipped = sum(bool(line.strip()) for line in lines[:start])
    notes = (f"{skipped} lines of text before the first case were passed over",) if skipped else ()
    return Table(file, digest, titles, tuple(rows), notes)
