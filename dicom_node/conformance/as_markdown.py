"""The document as Markdown."""

import re
import textwrap
from collections.abc import Iterator

from dicom_node.conformance.document import Contents, Document, Items, Section, Table, numbered

WIDTH = 118
_DEEPEST = 3
"""Levels of sections in the table of contents."""


def markdown(document: Document) -> str:
    """The whole text."""
    parts = [f"# {document.title}", *map(_wrapped, document.cover)]
    for number, one in numbered(document.sections):
        parts.append(f"{'#' * min(2 + number.count('.'), 6)} {_heading(number, one)}")
        parts += [_block(block, document) for block in one.text]
    return "\n\n".join(parts) + "\n"


def _heading(number: str, one: Section) -> str:
    return f"{number} {one.title}"


def _block(block: str | Table | Items | Contents, document: Document) -> str:
    if isinstance(block, Table):
        return "\n".join(_rows(block))
    if isinstance(block, Items):
        return "\n".join(_wrapped(one, "- ", "  ") for one in block.texts)
    if isinstance(block, Contents):
        return "\n".join(_contents(document))
    return _wrapped(block)


def _wrapped(paragraph: str, first: str = "", others: str = "") -> str:
    wrapper = textwrap.TextWrapper(WIDTH, first, others, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(_text(paragraph))


def _rows(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(map(_cell, table.columns))} |"
    yield "|---" * len(table.columns) + "|"
    for row in table.rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    return _text(text).replace("|", r"\|").replace("\n", " ")


def _text(text: str) -> str:
    """Without what Markdown would take for a mark. An underscore inside a word is none."""
    return re.sub(r"([*<>]|\](?=\()|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _contents(document: Document) -> Iterator[str]:
    for number, one in numbered(document.sections):
        depth = number.count(".")
        if depth < _DEEPEST:
            heading = _heading(number, one)
            yield f"{'  ' * depth}- [{_text(heading)}](#{_anchor(heading)})"


def _anchor(heading: str) -> str:
    """As GitHub and most others make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
