"""echo and send: the node as an SCU, by hand."""

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.common import PEER_UNREACHABLE, ConfigOption, JsonOption, err, out, print_json, settings_from
from dicom_node.errors import NodeError
from dicom_node.scu import push
from dicom_node.scu.store import echo as echo_peer


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(echo)
    app.command()(send)


def echo(
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Name of a configured destination.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a destination whether it answers (C-ECHO)."""
    settings = settings_from(config)
    peer = settings.destination(destination)
    if peer is None:
        names = ", ".join(d.name for d in settings.destinations) or "none is configured"
        raise NodeError(f"there is no destination {destination!r}; destinations: {names}")
    answer = echo_peer(peer, settings.sender)
    if json:
        print_json({"destination": destination, "reachable": answer.ok, "detail": answer.detail})
    else:
        (out if answer.ok else err).print(f"{destination}: {answer.detail}", markup=False)
    if not answer.ok:
        raise typer.Exit(PEER_UNREACHABLE)


def send(
    path: Annotated[Path, typer.Argument(exists=True, help="A DICOM file, or a folder of them.")],
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Default: the node's own receiver.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: the node's own receiver.")] = None,
    called_ae: Annotated[str | None, typer.Option(help="Default: the node's own AE title.")] = None,
    calling_ae: Annotated[str, typer.Option(help="AE title that we call ourselves.")] = "SENDER",
    json: JsonOption = False,
) -> None:
    """Push a folder through the node as if it came from a PACS (C-STORE)."""
    receiver = settings_from(config).receiver
    local = "127.0.0.1" if receiver.host in ("0.0.0.0", "::") else receiver.host
    result = push.send(
        path,
        host=host or local,
        port=port or receiver.port,
        called_ae=called_ae or receiver.ae_title,
        calling_ae=calling_ae,
        console=None if json else err,
    )
    if json:
        failures = [{"sop_instance_uid": uid, "reason": reason} for uid, reason in result.failures]
        unreadable = [{"file": str(file), "reason": reason} for file, reason in result.unreadable]
        record = {"sent": result.stored, "failed": result.failed, "detail": result.detail}
        print_json({**record, "failures": failures, "unreadable": unreadable})
    else:
        for uid, reason in result.failures:
            err.print(f"{uid}: {reason}", markup=False, soft_wrap=True)
        for file, reason in result.unreadable:
            err.print(f"not sent, cannot be read: {file}: {reason}", markup=False, soft_wrap=True)
        out.print(
            f"{result.stored} stored, {result.failed} failed, {len(result.unreadable)} not readable"
            f"{': ' + result.detail if result.detail else ''}",
            markup=False,
        )
    if result.failed or result.unreadable or result.stored == 0:
        raise typer.Exit(PEER_UNREACHABLE if result.stored == 0 else 1)
