"""A model ready for volumes: its card, its identity, and the plug that its kind names."""

from dataclasses import dataclass
from pathlib import Path

import structlog

from config.settings import Settings
from inference.errors import ModelError
from inference.finding import ModelIdentity
from inference.isolation.host import IsolatedModel, missing_locks
from inference.models.cards import Card, read_card
from inference.models.kinds import Kind, find_kind, plug_of
from inference.models.registry import find_model
from inference.plug import DeviceChoice, LoadedModel, Model
from storage.jobs import ModelRef

log = structlog.get_logger()


@dataclass(frozen=True)
class OpenModel:
    """A model on a device, and what the node knows of it."""

    card: Card
    identity: ModelIdentity
    loaded: LoadedModel


def open_current(settings: Settings, device: str, *, trace: bool = False) -> OpenModel:
    """The model that the settings name first. Raises ModelError if it is missing or altered."""
    entry = settings.model_entries[0]
    folder = find_model(settings.models_dir, entry.name or None, entry.version or None)
    return open_folder(folder, settings, device, trace=trace)


def open_model(settings: Settings, model: ModelRef, device: str) -> OpenModel:
    """Exactly the model that a job was queued for. Raises ModelError if it is missing, or has changed since."""
    opened = open_folder(find_model(settings.models_dir, model.name, model.version), settings, device)
    if opened.identity.digest != model.digest:
        raise ModelError(
            f"model {model.name} {model.version} has digest {opened.identity.digest}, the job was queued for "
            f"{model.digest}; import the former model again and retry the job"
        )
    return opened


def open_folder(folder: Path, settings: Settings, device: str, *, trace: bool = False) -> OpenModel:
    """The model of a folder; a third party's runs in a process of its own.

    Raises ModelError if a file is missing or altered, or its kind is not installed.
    """
    card, worker = read_card(folder), settings.worker
    loaded = _plug(find_kind(card.kind), settings).load(
        folder, card, DeviceChoice(device, worker.precision, worker.threads, trace)
    )
    return OpenModel(card, card.identity(), loaded)


def _plug(kind: Kind, settings: Settings) -> Model:
    if kind.own:
        own: Model = plug_of(kind)
        return own
    confined = settings.worker.unconfined_models == "refuse"
    if not confined and missing_locks():
        log.error("a third party's model is not shut in", kind=kind.name, package=kind.package, why=missing_locks())
    return IsolatedModel(kind.entry, confined, {kind.package: kind.version})
