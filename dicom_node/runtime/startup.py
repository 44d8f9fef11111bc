"""What happens once when the node starts, before any process of it opens the index."""

import os
import time

import structlog

from config.errors import ConfigError
from config.settings import Settings
from dicom_node.analysis.current_model import reporting_models, shadow_model
from dicom_node.gateways.audit_messages.forwarder import Forwarder
from dicom_node.runtime import configuration, scheduler
from dicom_node.runtime.index import open_index
from inference.errors import ModelError
from storage import audit
from storage.errors import StorageError
from storage.identity import claim, open_store
from storage.jobs import ModelRef
from storage.private import OTHERS, make_folder, tighten
from storage.reconcile import ORPHAN_AGE_S, reconcile
from storage.stores import files_of

log = structlog.get_logger()

STOP_PATIENCE_S = 3.0


def prepare(settings: Settings) -> None:
    """Create the data folder, migrate the index, and make files and rows agree.

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
    identity = claim(database, files)
    # Other machines that share the index hold leases of their own, and receive files that have no row yet.
    alone = settings.database_url.startswith("sqlite")
    age_s = ORPHAN_AGE_S if alone else scheduler.ORPHAN_AGE_S
    found = reconcile(database, files, time.time(), release=alone, orphan_age_s=age_s)
    with database.transaction() as tx:
        configuration.note_changed(tx, settings, time.time())
        audit.append(
            tx,
            time.time(),
            "node.started",
            outcome="STARTED",
            detail={
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
            audit.append(tx, time.time(), "node.stopped", outcome="STOPPED")
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
    Forwarder(settings, database).finish(time.time())
