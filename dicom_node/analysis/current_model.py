"""Which models newly completed series are queued for, and which one runs beside them as their shadow."""

import structlog

from config.settings import ModelEntry, Settings
from inference.errors import ModelError
from inference.models.cards import read_card
from inference.models.registry import find_model
from storage.jobs import ModelRef, Models
from storage.replaces import Replaces

log = structlog.get_logger()


def current_model(settings: Settings) -> ModelRef:
    """The model that newly completed series are queued for; if several are, the first."""
    return _of(settings, settings.model_entries[0])


def reporting_models(settings: Settings) -> tuple[ModelRef, ...]:
    """All models that report. Raises ModelError if one is not there, or two are the same."""
    found: dict[str, ModelRef] = {}
    for entry in settings.model_entries:
        if not entry.shadow:
            model = _of(settings, entry)
            same = found.setdefault(model.digest, model)
            if same is not model:
                raise ModelError(f"[[models]]: {model.name} and {same.name} are the same model")
    return tuple(found.values())


def shadow_model(settings: Settings) -> ModelRef | None:
    """The model that analyses them beside it, without being reported; None if none is configured.

    Raises ModelError if it is not there, or is a reporting model itself.
    """
    entry = next((entry for entry in settings.model_entries if entry.shadow), None)
    if entry is None:
        return None
    shadow = _of(settings, entry)
    if shadow.digest in {model.digest for model in reporting_models(settings)}:
        raise ModelError(f"[model] shadow: {shadow.name} {shadow.version} is the model that reports; name another one")
    return shadow


def current_models(settings: Settings) -> Models:
    """What newly completed series are queued for; without a shadow if that is missing or has become a reporting
    model."""
    first, *beside = reporting_models(settings)
    sources = {_of(settings, entry).digest: entry.sources for entry in settings.models if entry.sources}
    try:
        return Models(first, shadow_model(settings), tuple(beside), sources)
    except ModelError as error:
        log.warning("no shadow model", reason=str(error))
        return Models(first, None, tuple(beside), sources)


def replaced_by(settings: Settings, model_name: str) -> Replaces:
    """Which results of a series one of this model replaces.

    The first model replaces those of models that are no longer in use too; the others replace their own alone.
    """
    names = [entry.name for entry in settings.models if not entry.shadow]
    if model_name not in names:
        return Replaces(but=frozenset(names)) if names else Replaces()
    if names[0] == model_name:
        return Replaces(but=frozenset(names[1:]))
    return Replaces(only=model_name)


def model_named(settings: Settings, name: str, version: str) -> ModelRef:
    """A model by name and version; empty: the one that the node uses. Raises ModelError when it is not there."""
    identity = read_card(find_model(settings.models_dir, name or None, version or None)).identity()
    return ModelRef(identity.name, identity.version, identity.digest)


def _of(settings: Settings, entry: ModelEntry) -> ModelRef:
    return model_named(settings, entry.name, entry.version)
