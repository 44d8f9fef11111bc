"""echo and send: the node as an SCU, by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from config.settings import Destination, SenderSettings, Settings
from dicom_node.cli.common import PEER_UNREACHABLE, ConfigOption, JsonOption, err, out, print_json, settings_from
from dicom_node.errors import NodeError
from dicom_node.scu import own_receiver, push
from dicom_node.scu.association import Peer
from dicom_node.scu.push import PushResult
from dicom_node.scu.store import echo as echo_peer


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(echo)
    app.command()(send)


CallingOption = Annotated[
    str | None,
    typer.Option(
        "--calling",
        "--calling-ae",
        help="AE title that we call ourselves. Default: to the node's own receiver, one that a configured source has "
        "and this machine may use; to others, the sender's own.",
    ),
]
TlsOption = Annotated[
    bool | None,
    typer.Option("--tls/--no-tls", help="Default: to the node's own receiver, as that takes it; to others, no."),
]
AuthoritiesOption = Annotated[
    Path | None, typer.Option(help="PEM: authorities of the peer's certificate. Default: the receiver's.")
]
CertificateOption = Annotated[
    Path | None, typer.Option(help="PEM: the certificate to show. Default: the receiver's own.")
]
KeyOption = Annotated[Path | None, typer.Option(help="PEM: its key.")]


def echo(
    destination: Annotated[
        str | None, typer.Argument(metavar="DEST", help="A configured destination. Default: the node's own receiver.")
    ] = None,
    config: ConfigOption = None,
    calling: CallingOption = None,
    tls: TlsOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a destination, or the node's own receiver, whether it answers (C-ECHO)."""
    settings = settings_from(config)
    peer: Peer = own_receiver.address(settings, tls=tls) if destination is None else _destination(settings, destination)
    if tls is not None and isinstance(peer, Destination):
        peer = peer.model_copy(update={"tls": tls})
    answer = echo_peer(peer, _caller(settings, calling, own=destination is None))
    name = destination or "the node's own receiver"
    if json:
        print_json({"destination": destination, "reachable": answer.ok, "detail": answer.detail})
    else:
        (out if answer.ok else err).print(f"{name}: {answer.detail}", markup=False)
    if not answer.ok:
        raise typer.Exit(PEER_UNREACHABLE)


def send(
    path: Annotated[Path, typer.Argument(exists=True, help="A DICOM file, or a folder of them.")],
    config: ConfigOption = None,
    to: Annotated[str | None, typer.Option(help="A configured destination. Default: the node's own receiver.")] = None,
    host: Annotated[str | None, typer.Option(help="Any other peer, with --port and --called-ae.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: the receiver's.")] = None,
    called_ae: Annotated[str | None, typer.Option(help="Default: the node's own AE title.")] = None,
    calling: CallingOption = None,
    tls: TlsOption = None,
    tls_authorities: AuthoritiesOption = None,
    tls_certificate: CertificateOption = None,
    tls_key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Push a folder through the node as if it came from a PACS (C-STORE), or to another peer."""
    settings = settings_from(config)
    own = to is None and own_receiver.is_meant(settings, host, port, called_ae)
    if to is not None:
        if host or port or called_ae:
            raise typer.BadParameter("--to names a configured destination; leave out --host, --port and --called-ae")
        peer: Peer = _destination(settings, to)
    else:
        found = own_receiver.address(settings, tls=tls if own else bool(tls), port=port)
        peer = own_receiver.with_files(
            replace(found, ae_title=called_ae or found.ae_title, host=host or found.host, tls_check_host=not own),
            tls_authorities or found.tls_authorities,
            tls_certificate or found.tls_certificate,
            tls_key or found.tls_key,
        )
    result = push.send_to(peer, _caller(settings, calling, own), path, None if json else err)
    _say(result, json)
    if result.failed or result.unreadable or result.stored == 0:
        raise typer.Exit(PEER_UNREACHABLE if result.stored == 0 else 1)


def _destination(settings: Settings, name: str) -> Destination:
    found = settings.destination(name)
    if found is None:
        names = ", ".join(d.name for d in settings.destinations) or "none is configured"
        raise NodeError(f"there is no destination {name!r}; destinations: {names}")
    if not isinstance(found, Destination):
        raise NodeError(f"destination {name!r} is no DICOM peer: ask it by `dicom-node gateway test {name}`")
    return found


def _caller(settings: Settings, calling: str | None, own: bool) -> SenderSettings:
    """The sender's settings under the AE title to use. own: for the node's own receiver."""
    title = calling or (own_receiver.calling_ae(settings) if own else settings.sender.calling_ae_title)
    try:
        return SenderSettings.model_validate({**settings.sender.model_dump(), "calling_ae_title": title})
    except ValueError:
        raise typer.BadParameter("an AE title has 1 to 16 printable ASCII characters and no backslash") from None


def _say(result: PushResult, json: bool) -> None:
    if json:
        failures = [{"sop_instance_uid": uid, "reason": reason} for uid, reason in result.failures]
        unreadable = [{"file": str(file), "reason": reason} for file, reason in result.unreadable]
        record = {"sent": result.stored, "failed": result.failed, "detail": result.detail}
        print_json({**record, "failures": failures, "unreadable": unreadable})
        return
    for uid, reason in result.failures:
        err.print(f"{uid}: {reason}", markup=False, soft_wrap=True)
    for file, reason in result.unreadable:
        err.print(f"not sent, cannot be read: {file}: {reason}", markup=False, soft_wrap=True)
    out.print(
        f"{result.stored} stored, {result.failed} failed, {len(result.unreadable)} not readable"
        f"{': ' + result.detail if result.detail else ''}",
        markup=False,
    )
