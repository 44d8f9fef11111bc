"""The document as PDF, on A4; needs the extra: pip install 'dicom-node[pdf]'."""

import io
from collections.abc import Iterator
from html import escape
from importlib.util import find_spec
from typing import Any

from dicom_node.conformance.document import Contents, Document, Items, Table, numbered
from dicom_node.errors import NodeError

_MARGIN_MM = 18
_WIDTH_MM = 210 - 2 * _MARGIN_MM
_NARROWEST = 0.08
"""Of the page's width, for a column."""


def check() -> None:
    """Raises NodeError if the library for it is not installed."""
    if find_spec("reportlab") is None:
        raise NodeError("a PDF needs reportlab: pip install 'dicom-node[pdf]', or ask for --format html and print it")


def pdf(document: Document) -> bytes:
    """The file. Raises NodeError if the library for it is not installed."""
    check()
    from reportlab.platypus import SimpleDocTemplate

    file = io.BytesIO()
    layout = SimpleDocTemplate(
        file,
        title=document.title,
        author="dicom-node",
        invariant=1,  # no time of making: the same statement is the same file
        **{f"{side}Margin": _MARGIN_MM * _mm() for side in ("left", "right", "top", "bottom")},
    )
    layout.build(list(_story(document)), onLaterPages=_page_number, onFirstPage=_page_number)
    return file.getvalue()


def _mm() -> float:
    from reportlab.lib.units import mm

    return float(mm)


def _page_number(canvas: Any, layout: Any) -> None:
    canvas.setFont("Helvetica", 8)
    canvas.drawRightString(layout.pagesize[0] - layout.rightMargin, 10 * _mm(), f"{canvas.getPageNumber()}")


def _story(document: Document) -> Iterator[Any]:
    from reportlab.platypus import PageBreak, Paragraph, Spacer

    styles = _styles()
    yield Spacer(1, 60 * _mm())
    yield Paragraph(escape(document.title), styles["Title"])
    yield from (Paragraph(escape(one), styles["Normal"]) for one in document.cover)
    yield PageBreak()
    for number, one in numbered(document.sections):
        heading = styles[f"Heading{min(1 + number.count('.'), 6)}"]
        yield Paragraph(f'<a name="s{number}"/>{number} {escape(one.title)}', heading)
        for block in one.text:
            yield from _block(block, document, styles)


def _styles() -> Any:
    from reportlab.lib.styles import getSampleStyleSheet

    styles = getSampleStyleSheet()
    styles["Normal"].spaceAfter = 4
    styles["BodyText"].fontSize, styles["BodyText"].leading, styles["BodyText"].spaceBefore = 7, 8.5, 0
    styles["BodyText"].splitLongWords = 1
    return styles


def _block(block: str | Table | Items | Contents, document: Document, styles: Any) -> Iterator[Any]:
    from reportlab.platypus import Paragraph

    if isinstance(block, Table):
        yield _table(block, styles)
    elif isinstance(block, Items):
        yield from (Paragraph(escape(one), styles["Normal"], bulletText="\u2022") for one in block.texts)
    elif isinstance(block, Contents):
        for number, one in numbered(document.sections):
            if number.count(".") < 3:
                indent = "&nbsp;" * 4 * number.count(".")
                text = f'{indent}<a href="#s{number}" color="blue">{number} {escape(one.title)}</a>'
                yield Paragraph(text, styles["Normal"])
    else:
        yield Paragraph(escape(block), styles["Normal"])


def _table(block: Table, styles: Any) -> Any:
    """A table whose head is repeated on each page. reportlab's own widths would go off the page."""
    from reportlab.lib import colors
    from reportlab.platypus import LongTable, Paragraph

    small = styles["BodyText"]
    head = [Paragraph(f"<b>{escape(cell)}</b>", small) for cell in block.columns]
    rows = [[Paragraph(escape(cell), small) for cell in row] for row in block.rows]
    return LongTable(
        [head, *rows],
        colWidths=[share * _WIDTH_MM * _mm() for share in _shares(block)],
        repeatRows=1,
        spaceBefore=4,
        spaceAfter=8,
        style=[
            ("GRID", (0, 0), (-1, -1), 0.3, colors.grey),
            ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            *((side, (0, 0), (-1, -1), 3) for side in ("LEFTPADDING", "RIGHTPADDING", "TOPPADDING", "BOTTOMPADDING")),
        ],
    )


def _shares(block: Table) -> list[float]:
    """Each column's share of the width, by the length of its texts; the longest ones count by their root."""
    lengths = [
        max(len(row[place]) for row in (block.columns, *block.rows)) ** 0.6 for place in range(len(block.columns))
    ]
    shares = [max(length / sum(lengths), _NARROWEST) for length in lengths]
    return [share / sum(shares) for share in shares]
