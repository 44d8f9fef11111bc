"""Which model newly completed series are queued for, and which one runs beside it as its shadow."""

import structlog

from config.settings import Settings
from inference.errors import ModelError
from inference.models.cards import read_card
from inference.models.registry import find_model
from storage.jobs import ModelRef, Models

log = structlog.get_logger()


def current_model(settings: Settings) -> ModelRef:
    """The model that newly completed series are queued for."""
    return model_named(settings, settings.model.name, settings.model.version)


def shadow_model(settings: Settings) -> ModelRef | None:
    """The model that analyses them beside it, without being reported; None if none is configured.

    Raises ModelError if it is not there, or is the reporting model itself.
    """
    if not settings.model.shadow:
        return None
    shadow = model_named(settings, settings.model.shadow, settings.model.shadow_version)
    if shadow.digest == current_model(settings).digest:
        raise ModelError(f"[model] shadow: {shadow.name} {shadow.version} is the model that reports; name another one")
    return shadow


def current_models(settings: Settings) -> Models:
    """What newly completed series are queued for; without a shadow if that is missing or has become the reporting
    model."""
    reporting = current_model(settings)
    try:
        return Models(reporting, shadow_model(settings))
    except ModelError as error:
        log.warning("no shadow model", reason=str(error))
        return Models(reporting)


def model_named(settings: Settings, name: str, version: str) -> ModelRef:
    """A model by name and version; empty: the one that the node uses. Raises ModelError when it is not there."""
    identity = read_card(find_model(settings.models_dir, name or None, version or None)).identity()
    return ModelRef(identity.name, identity.version, identity.digest)
