"""conformance: the DICOM conformance statement of this installation."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.common import ConfigOption, settings_from
from dicom_node.errors import NodeError


class Format(StrEnum):
    """How the statement is written."""

    MD = "md"
    HTML = "html"
    PDF = "pdf"


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(conformance)


def conformance(
    form: Annotated[Format, typer.Option("--format", help="Markdown, one HTML page, or PDF.")] = Format.MD,
    output: Annotated[Path | None, typer.Option(help="File to write; without one, to standard output.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write the DICOM conformance statement for these settings: every service, context, status, attribute and code."""
    settings = settings_from(config)
    if form is Format.PDF and output is None and sys.stdout.isatty():
        raise NodeError("a PDF is no text: name a file with --output")
    # Here, not at the top: the other commands need not wait for what builds reports.
    from dicom_node.conformance import as_html, as_markdown, as_pdf
    from dicom_node.conformance.statement import statement

    if form is Format.PDF:
        as_pdf.check()
    document = statement(settings)
    if form is Format.PDF:
        content = as_pdf.pdf(document)
    else:
        content = (as_markdown.markdown(document) if form is Format.MD else as_html.html(document)).encode()
    if output is not None:
        output.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
