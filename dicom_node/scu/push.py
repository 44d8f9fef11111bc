"""Send a folder's DICOM files as a PACS would: several series, each file in the transfer syntax that it has."""

from dataclasses import dataclass
from pathlib import Path

from pydicom.errors import InvalidDicomError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from config.settings import SenderSettings
from dicom_node.errors import NodeError
from dicom_node.scu.association import Address, Peer
from dicom_node.scu.store import InstanceFile, StoreOutcome, read_instance, store
from inference.volume.folder import read_folder

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class PushResult:
    """How many instances were stored and how many failed.

    detail: the first failure, or empty. failures: SOP Instance UID and reason of each, with the peer's Error Comment.
    unreadable: path and reason of the files that look like DICOM and cannot be sent.
    """

    stored: int
    failed: int
    detail: str
    failures: tuple[tuple[str, str], ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = ()


def send(
    path: Path,
    host: str,
    port: int,
    called_ae: str,
    calling_ae: str,
    console: Console | None = None,
    settings: SenderSettings | None = None,
) -> PushResult:
    """Send to an address without TLS; see `send_to`."""
    caller = (settings or SenderSettings()).model_copy(update={"calling_ae_title": calling_ae})
    return send_to(Address(called_ae, host, port), caller, path, console)


def send_to(peer: Peer, caller: SenderSettings, path: Path, console: Console | None = None) -> PushResult:
    """Send a DICOM file, or all below a folder, with C-STORE. console: where progress is drawn, or None.

    Raises NodeError when there is no DICOM instance at `path`.
    """
    instances = find_instances(path)
    readable = {instance.path for instance in instances}
    unreadable = tuple((f.path, f.reason) for f in read_folder(path).unreadable if f.path not in readable)
    if not instances:
        what = f"{len(unreadable)} files that look like DICOM but cannot be read" if unreadable else "no DICOM instance"
        raise NodeError(f"nothing can be sent: {path} holds {what}")
    with Progress(
        TextColumn("sending"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=console is None,
    ) as progress:
        task = progress.add_task("sending", total=len(instances))
        results = store(peer, caller, instances, lambda _: progress.advance(task))
    failures = [r for r in results if r.outcome not in (StoreOutcome.STORED, StoreOutcome.WARNING)]
    reasons = tuple((r.sop_instance_uid, f"{r.detail}: {r.comment}" if r.comment else r.detail) for r in failures)
    first = reasons[0][1] if reasons else ""
    return PushResult(len(results) - len(failures), len(failures), first, reasons, unreadable)


def find_instances(path: Path) -> list[InstanceFile]:
    """The DICOM instances at or below a path, in the order of their names, without what cannot be read."""
    candidates = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = []
    for candidate in candidates:
        try:
            instance = read_instance(candidate)
        except InvalidDicomError:
            continue
        if instance.sop_class_uid != DICOMDIR_CLASS:
            found.append(instance)
    return found
