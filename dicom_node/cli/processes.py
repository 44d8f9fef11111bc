"""run, and the processes that it starts: receive, schedule, deliver, work, and those that a site asks for."""

import os
from contextlib import nullcontext
from typing import Annotated

import typer

from config.settings import Settings
from dicom_node.cli.common import ConfigOption, database_of, files_of, settings_from
from dicom_node.cli.configure import read_and_check
from dicom_node.cli.exits import UNAVAILABLE, say_why
from dicom_node.errors import GpuLost, NodeError
from dicom_node.runtime.node_lock import note_parts, only_node
from dicom_node.runtime.presence import only_host, present
from dicom_node.runtime.service_manager import ServiceManager
from dicom_node.runtime.signals import die_with_parent, is_child, reload_on_hangup, say_ready, stop_on_signals
from dicom_node.runtime.store_watch import watched
from dicom_node.runtime.supervisor import PARTS, PARTS_VARIABLE, Supervisor, parts_of
from storage.database import Database
from storage.files import FileStore
from storage.identity import open_store


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(run)
    app.command()(work)
    for command in (receive, schedule, deliver, metrics, forward_audit):
        app.command(hidden=True)(command)


def run(
    config: ConfigOption = None,
    only: Annotated[
        str | None,
        typer.Option(help=f"Only some of its processes, with commas: {', '.join(PARTS)}; see docs/scale.md."),
    ] = None,
) -> None:
    """Start the node: receiver, scheduler, sender and workers; restart what dies.

    SIGTERM: end when what is under way is done. SIGHUP: read the configuration again.
    """
    stop, reload = stop_on_signals(), reload_on_hangup()
    manager = ServiceManager.of_environment()
    settings = settings_from(config)
    # Migrations and start-up checks run once, here, before several processes open the index.
    from dicom_node.runtime.startup import note_stop, prepare, tell_stop

    parts = parts_of(settings, only)
    with only_node(settings.data_dir, stop) as lock, only_host(settings, stop):
        note_parts(lock, parts)
        prepare(settings, parts)
        with present(settings, parts, registered=True):
            Supervisor(settings, config, lock, read_and_check, parts, manager).run(stop, reload)
        note_stop(settings)
        tell_stop(settings)


def work(
    config: ConfigOption = None,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:0", ...')] = "auto",
    number: Annotated[
        int, typer.Option(min=0, help=r"Which of this machine's workers, from 0; see live_workers in \[batch].")
    ] = 0,
) -> None:
    """Analyse queued series in this process until it is told to stop."""
    die_with_parent()
    stop = stop_on_signals()
    settings = settings_from(config)
    os.nice(settings.worker.nice)
    _refuse_missing_gpu(device)
    from dicom_node.analysis.worker import Worker

    files = files_of(settings)
    database = _database_of(settings, files)
    # Below a supervisor, that says so for all of the host's processes. Below an actor of a cluster, nobody does.
    alone = nullcontext() if PARTS_VARIABLE in os.environ else present(settings, ("work",))
    live_only = number < settings.batch.live_workers
    try:
        with alone, watched(database, stop):
            if not Worker(settings, database, files, device, live_only=live_only).run(stop):
                # The interpreter would wait for the analysis, or tear the libraries down under it.
                os._exit(0)
    except GpuLost as error:
        say_why(error)
        os._exit(UNAVAILABLE)  # the driver of a GPU that is gone may let a process wait that ends in order


def _refuse_missing_gpu(device: str) -> None:
    """A worker without its GPU claims nothing: it would fail one job after the other. Raises GpuLost."""
    if not device.startswith("cuda"):
        return
    from inference.device import choose_device
    from inference.errors import ModelError

    try:
        choose_device(device)
    except ModelError as error:
        raise GpuLost(str(error)) from error


def receive(config: ConfigOption = None) -> None:
    """Receive images (Storage SCP) in this process."""
    die_with_parent()
    stop = stop_on_signals()
    settings = settings_from(config)
    from dicom_node.receiver.receiver import serve

    serve(settings, stop, create=not is_child(), on_ready=say_ready)


def schedule(config: ConfigOption = None) -> None:
    """Close quiet series and look after leases in this process."""
    die_with_parent()
    stop = stop_on_signals()
    settings = settings_from(config)
    from dicom_node.runtime.scheduler import run_scheduler

    files = files_of(settings)
    database = _database_of(settings, files)
    with watched(database, stop):
        run_scheduler(settings, database, files, stop)


def metrics(config: ConfigOption = None) -> None:
    """Serve metrics and the health check in this process."""
    die_with_parent()
    stop = stop_on_signals()
    settings = settings_from(config)
    from dicom_node.runtime.metrics import serve

    files = files_of(settings)
    serve(settings, _database_of(settings, files), files, stop)


def deliver(config: ConfigOption = None) -> None:
    """Send results from the outbox in this process."""
    die_with_parent()
    stop = stop_on_signals()
    settings = settings_from(config)
    from dicom_node.delivery.sender import run as run_sender

    files = files_of(settings)
    database = _database_of(settings, files)
    with watched(database, stop):
        run_sender(settings, database, files, stop)


def forward_audit(config: ConfigOption = None) -> None:
    r"""Send the audit trail as audit messages (\[audit.syslog]) in this process."""
    die_with_parent()
    stop = stop_on_signals()
    settings = settings_from(config)
    if not settings.audit.syslog.host:
        raise NodeError("[audit.syslog] names no host")
    from dicom_node.gateways.audit_messages.forwarder import run as forward

    files = files_of(settings)
    database = _database_of(settings, files)
    with watched(database, stop):
        # The last rows of a node are written by its supervisor, which then also tells them.
        forward(settings, database, stop, finish=not is_child())


def _database_of(settings: Settings, files: FileStore) -> Database:
    """The index. A process of a node makes none: if it is gone, a new one would hide that."""
    if not is_child():
        return database_of(settings, create=True)
    return open_store(settings.database_url, files, create=False)
