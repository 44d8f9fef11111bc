"""What happens once when the node starts, before any process of it opens the index."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import structlog
from sqlalchemy import text

from config.errors import ConfigError
from config.settings import Settings
from dicom_node.analysis.current_model import reporting_models, shadow_model
from dicom_node.gateways.audit_messages.forwarder import Forwarder
from dicom_node.runtime import configuration, scheduler
from dicom_node.runtime.forgetting import Forgetter
from dicom_node.runtime.index import open_index
from dicom_node.runtime.presence import Presence, host_name, place
from inference.errors import ModelError
from storage import audit, hosts
from storage.database import Database
from storage.errors import StorageError
from storage.files import FileStore
from storage.identity import claim, open_store
from storage.jobs import ModelRef
from storage.leader import OF_INDEX
from storage.private import OTHERS, make_folder, tighten
from storage.reconcile import ORPHAN_AGE_S, reconcile
from storage.stores import files_of

log = structlog.get_logger()

STOP_PATIENCE_S = 3.0
START_LOCK = 0x73746172  # "star": the key of PostgreSQL's advisory lock while a host starts


def prepare(settings: Settings, parts: Sequence[str] = ("run",)) -> None:
    """Create the data folder, migrate the index, and make files and rows agree.

    parts: the processes that this host will run. If other hosts are at work on the index, what they hold is left to
    them: leases, quiet times, files that have no row yet.
    Raises NodeError or StorageError when the node cannot work with this data folder, ConfigError with this model.
    """
    # What the node's processes make besides, such as the counts of the metrics, is nobody else's either.
    os.umask(OTHERS)
    make_folder(settings.data_dir if settings.storage.bucket else settings.files_dir)
    for folder in (settings.data_dir, settings.files_dir):
        if folder.exists():
            tighten(folder)
    (model, *beside), shadow = _models(settings)
    database = open_index(settings)
    files = files_of(settings)
    with _one_start_at_a_time(settings, database) as others:
        identity = claim(database, files)
        found: dict[str, int] = {"other_hosts": len(others)} if others else {}
        if not others:
            # Workers that somebody else started, such as a cluster's, keep their leases.
            alone = not database.is_server
            age_s = ORPHAN_AGE_S if alone else scheduler.ORPHAN_AGE_S
            found = reconcile(database, files, database.now(), release=alone, orphan_age_s=age_s)
        _go_on_forgetting(settings, database, files)
        if database.is_server:
            Presence(settings, database, parts).begin()
    now = database.now()
    with database.transaction() as tx:
        configuration.note_changed(tx, settings, now, host_name() if database.is_server else "")
        audit.append(
            tx,
            now,
            "node.started",
            outcome="STARTED",
            detail={
                "host": host_name(),
                "parts": list(parts),
                "model": model.name,
                "version": model.version,
                "model_digest": model.digest,
                "beside": [f"{one.name} {one.version} {one.digest}" for one in beside],
                "shadow_digest": shadow.digest if shadow else None,
                "configuration": configuration.digest(settings),
                "store": identity.store,
                "epoch": identity.epoch,
                **found,
            },
        )
    log.info(
        "node started", ae_title=settings.receiver.ae_title, port=settings.receiver.port, model=model.name, **found
    )


def _go_on_forgetting(settings: Settings, database: Database, files: FileStore) -> None:
    """A request that was interrupted is carried out first; one that cannot be does not keep the node from working."""
    try:
        Forgetter(settings, database, files).go_on()
    except (StorageError, OSError) as error:  # such as a full disk
        reason = error.strerror if isinstance(error, OSError) else str(error)
        log.error("a patient is not forgotten to the end; `dicom-node forget` goes on", reason=reason)


@contextlib.contextmanager
def _one_start_at_a_time(settings: Settings, database: Database) -> Iterator[list[hosts.Host]]:
    """Of several hosts that start together the first finds itself alone, and the others find it. Yields those."""
    if not database.is_server:
        yield []
        return
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as held:
        held.execute(text(f"SELECT pg_advisory_lock(:key, {OF_INDEX})"), {"key": START_LOCK})
        try:
            with database.read() as tx:
                others = hosts.others_alive(tx, host_name(), place(settings), database.now())
            yield others
        finally:
            held.execute(text(f"SELECT pg_advisory_unlock(:key, {OF_INDEX})"), {"key": START_LOCK})


def _models(settings: Settings) -> tuple[tuple[ModelRef, ...], ModelRef | None]:
    """The models that the settings name. Raises ConfigError if one is not there: starting again would not help."""
    try:
        return reporting_models(settings), shadow_model(settings)
    except ModelError as error:
        raise ConfigError(f"[model]: {error}") from None


def note_stop(settings: Settings) -> None:
    """An audit row: the node was told to stop, and has drained. Without it, the last stop was not an orderly one."""
    try:
        # Without patience: an index that is held or away must not hold up the end.
        files = files_of(settings, make=False)
        database = open_store(settings.database_url, files, create=False, busy_timeout_s=STOP_PATIENCE_S)
        with database.transaction() as tx:
            audit.append(tx, database.now(), "node.stopped", outcome="STOPPED", detail={"host": host_name()})
    except StorageError as error:
        log.warning("the stop is not in the audit trail", error=type(error).__name__)
    log.info("node stopped")


def tell_stop(settings: Settings) -> None:
    """Tell the last rows, the stop among them, to the repository of audit messages, if there is one. It has a few
    seconds; what it does not take then, it gets after the next start."""
    if not settings.audit.syslog.host:
        return
    try:
        files = files_of(settings, make=False)
        database = open_store(settings.database_url, files, create=False, busy_timeout_s=STOP_PATIENCE_S)
    except StorageError as error:
        log.warning("the stop was not told", error=type(error).__name__)
        return
    Forwarder(settings, database).finish(database.now())
