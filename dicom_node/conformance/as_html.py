"""The document as one HTML page that needs nothing else."""

from collections.abc import Iterator
from html import escape

from dicom_node.conformance.document import Contents, Document, Items, Table, numbered

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3, h4, h5, h6 { line-height: 1.25; margin: 1.6em 0 0.5em; }
h2 { border-bottom: 1px solid #bbb; }
table { border-collapse: collapse; margin: 0.8em 0; font-size: 13px; }
th, td { border: 1px solid #bbb; padding: 0.25em 0.5em; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
th { background: #eee; }
nav ul { list-style: none; padding-left: 1.2em; }
@media print { body { max-width: none; margin: 0; } thead { display: table-header-group; } }
"""
_DEEPEST = 3


def html(document: Document) -> str:
    """The whole page."""
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(document.title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(document.title)}</h1>",
            *(f"<p>{escape(one)}</p>" for one in document.cover),
            *_body(document),
            "</body></html>\n",
        )
    )


def _body(document: Document) -> Iterator[str]:
    for number, one in numbered(document.sections):
        level = min(2 + number.count("."), 6)
        yield f'<h{level} id="s{number}">{number} {escape(one.title)}</h{level}>'
        for block in one.text:
            yield from _block(block, document)


def _block(block: str | Table | Items | Contents, document: Document) -> Iterator[str]:
    if isinstance(block, Table):
        yield f"<table><thead>{_row(block.columns, 'th')}</thead><tbody>"
        yield from (_row(row, "td") for row in block.rows)
        yield "</tbody></table>"
    elif isinstance(block, Items):
        yield f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in block.texts)}</ul>"
    elif isinstance(block, Contents):
        yield "<nav><ul>"
        for number, one in numbered(document.sections):
            depth = number.count(".")
            if depth < _DEEPEST:
                indent = f' style="padding-left: {1.2 * depth}em"' if depth else ""
                yield f'<li{indent}><a href="#s{number}">{number} {escape(one.title)}</a></li>'
        yield "</ul></nav>"
    else:
        yield f"<p>{escape(block)}</p>"


def _row(cells: tuple[str, ...], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
