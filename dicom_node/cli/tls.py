"""tls self-signed: certificates for a test of encrypted associations."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.common import out
from dicom_node.errors import NodeError
from dicom_node.receiver.certificates import Authority

group = typer.Typer(no_args_is_help=True, help="Certificates for encrypted associations.")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="tls")


@group.callback()
def _group() -> None:
    """Keep the command's own name, though it is the only one."""


@group.command("self-signed")
def self_signed(
    output: Annotated[Path, typer.Option(help="Folder for the files; must not hold a ca.crt yet.")] = Path("tls"),
    node: Annotated[str, typer.Option(help="Name in the node's certificate.")] = "node",
    peer: Annotated[list[str] | None, typer.Option(help="Name of a sender or PACS; may be repeated.")] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="Address or DNS name that the certificates are for; may be repeated.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long they are valid.")] = 365,
) -> None:
    """Make an authority of its own, and certificates for the node and its peers, for tests.

    The authority's key is not kept: more certificates need a new authority.
    """
    names = [node, *(peer or ["pacs"])]
    for name in names:
        if not NAME.fullmatch(name):
            raise NodeError(f"{name!r} cannot name a certificate's files: letters, digits, '.', '_' and '-' only")
    if len(set(names)) != len(names):
        raise NodeError("node and peers need different names")
    if (output / "ca.crt").exists():
        raise NodeError(f"{output / 'ca.crt'} exists: choose another folder, or remove it")
    output.mkdir(parents=True, exist_ok=True)
    authority = Authority("DICOM node test authority", time.time(), days)
    authority.write(output / "ca.crt")
    for name in names:
        authority.issue(output, name, days, host or ["127.0.0.1", "localhost"])
    out.print(f"# {output.resolve()}: for tests. In node.toml:\n[receiver]", markup=False)
    for key, file in (("certificate", f"{node}.crt"), ("key", f"{node}.key"), ("authorities", "ca.crt")):
        out.print(f'tls_{key} = "{output.resolve() / file}"', markup=False, soft_wrap=True)
    out.print(f"tls_peers = {{ PACS = [{names[1]!r}] }}   # which certificate may use which AE title", markup=False)
