"""Settings of the two trainings: the defaults are the paper's, and each can be changed in TOML."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from inference.errors import ModelError
from inference.lungs.unet import Statistics
from inference.models.toml_fields import build
from inference.training.loop import TrainingSettings


@dataclass(frozen=True)
class UnetSettings:
    """How the U-Net is trained.

    slices_per_step: slices of one volume in one step, 1 in the paper.
    slices_per_volume: drawn anew in each epoch; if absent, all slices are taken.
    statistics: of batch normalisation in use: "running", or "batch" for those of each slice alone.
    """

    training: TrainingSettings = field(default_factory=lambda: TrainingSettings(checkpoint_steps=2000))
    slices_per_step: int = 1
    slices_per_volume: int | None = None
    statistics: Statistics = "running"


@dataclass(frozen=True)
class DecovnetSettings:
    """How DeCoVNet is trained.

    dropout: share of channels dropped in training, 0.5 in the paper.
    start: "torch" is PyTorch's usual start. "he" keeps the variance through layers without normalisation.
        "opacities" is the start of `lesion_start`, for a few hundred volumes and hours instead of days.
    finder: how the features learn from multiple instances before all of DeCoVNet does; for "opacities" only.
    statistics: of batch normalisation in use: "running", or "batch" for those of each volume alone.
    """

    training: TrainingSettings = field(default_factory=lambda: TrainingSettings(checkpoint_steps=200))
    dropout: float = 0.5
    start: Literal["torch", "he", "opacities"] = "torch"
    finder: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            epochs=6, learning_rate=1e-3, samples_per_step=2, rise_samples=40, decay_share=0.9, checkpoint_steps=200
        )
    )
    statistics: Statistics = "running"


def unet_settings(table: Mapping[str, object]) -> UnetSettings:
    """The U-Net's settings from nested tables. Raises ModelError naming a key that is unknown or of another type."""
    return build(UnetSettings, _checked(merged({"training": {"checkpoint_steps": 2000}}, table)), "settings")


def decovnet_settings(table: Mapping[str, object]) -> DecovnetSettings:
    """DeCoVNet's settings from nested tables. Raises ModelError naming a key that is unknown or of another type."""
    return build(DecovnetSettings, _checked(merged({"training": {"checkpoint_steps": 200}}, table)), "settings")


def merged(table: Mapping[str, object], changes: object) -> dict[str, object]:
    """Nested tables with changes applied to them. Raises ModelError if a change is not a table."""
    if not isinstance(changes, Mapping):
        raise ModelError("settings: expected a table")
    result = dict(table)
    for key, value in changes.items():
        held = result.get(key)
        result[key] = merged(held, value) if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return result


def parse_change(text: str) -> dict[str, object]:
    """Parse `a.b = value` as TOML; a bare word counts as text. Raises ModelError."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ModelError(f"--set {text}: expected KEY=VALUE, such as training.epochs=20")
    for attempt in (value, f'"{value.strip()}"'):
        try:
            return tomllib.loads(f"{key.strip()} = {attempt}")
        except tomllib.TOMLDecodeError:
            continue
    raise ModelError(f"--set {text}: not TOML, such as training.epochs=20")


def _checked(table: Mapping[str, object]) -> Mapping[str, object]:
    training = table.get("training")
    if isinstance(training, Mapping) and "validation_share" in training:
        raise ModelError("settings.training.validation_share: the data set settles it; see dataset build")
    return table
