"""CSV that a spreadsheet program may open: no text from the network is taken for a formula."""

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula begins with, in either width."""


def safe(value: object) -> object:
    """A text that a spreadsheet would take for a formula gets a quote in front; numbers stay numbers."""
    if not isinstance(value, str) or not value.strip():
        return value
    return f"'{value}" if value[0] in FORMULA or value.lstrip()[0] in FORMULA else value


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV, with a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([safe(column) for column in columns])
    writer.writerows([safe(value) for value in row] for row in rows)
    return text.getvalue()
