"""From a finished training run to a model that the node finds by name and version."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference.covid.card import ZhengCard, read_zheng_card
from inference.covid.weights import install, load_networks
from inference.errors import ModelError
from inference.models.cards import CARD_FILE, OperatingPoint, require_weights
from inference.models.registry import list_models
from inference.training.runs import SUMMARY

POINTS = ("high_sensitivity", "high_specificity", "balanced")


@dataclass(frozen=True)
class Publication:
    """What a person says about the model. threshold: a probability at or above it is called positive."""

    name: str
    version: str
    threshold: float = 0.5
    title: str = ""
    source: str = "trained at this site with the method of Zheng et al. 2020"
    licence: str = "not stated"
    intended_use: str = "Research. Gives a probability of COVID-19 from a chest CT. Not for diagnosis."


def publish(
    run: Path, models_dir: Path, publication: Publication, *, evaluation: Path | None = None, activate: bool = False
) -> ZhengCard:
    """Write the card of a run's model with its data and figures, and install it.

    run: a folder made by `train decovnet`.  evaluation: the evaluation.json of exactly these weights.
    activate: also make it the model used when the settings name none.
    Raises ModelError if the run is not finished, its weights are altered, the evaluation is of other weights, or
    another model has this name and version.
    """
    if not (run / CARD_FILE).is_file():
        raise ModelError(f"{run}: no finished run of `train decovnet`")
    trained = read_zheng_card(run)
    require_weights(trained, run)
    load_networks(run, trained)
    figures = _read(run / SUMMARY)
    assessed = _read(evaluation) if evaluation else {}
    if evaluation and not _same_weights(assessed, trained):
        raise ModelError(f"{evaluation}: not of this run's model; make it with `evaluate ... --model-folder {run}`")
    card = replace(
        trained,
        name=publication.name,
        version=publication.version,
        title=publication.title or f"DeCoVNet trained at this site, {publication.name} {publication.version}",
        source=publication.source,
        licence=publication.licence,
        intended_use=publication.intended_use,
        threshold=publication.threshold,
        published=True,
        training=_without_none(figures),
        evaluation=_evaluation(assessed, publication.threshold),
        operating_points=_points(assessed, publication.threshold),
    )
    _refuse_taken_version(card, models_dir)
    unet, decovnet = ((run / weights.file).read_bytes() for weights in (card.unet, card.decovnet))
    install(card, unet, decovnet, models_dir, activate=activate)
    return card


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read") from error
    return content


def _same_weights(assessed: Mapping[str, Any], card: ZhengCard) -> bool:
    model = assessed.get("model") or {}
    return (model.get("unet_sha256"), model.get("decovnet_sha256")) == (card.unet.sha256, card.decovnet.sha256)


def _refuse_taken_version(card: ZhengCard, models_dir: Path) -> None:
    for other in list_models(models_dir):
        if (other.name, other.version) == (card.name, card.version) and other.digest() != card.digest():
            raise ModelError(f"another model is called {card.name} {card.version}; choose another version")


def _evaluation(assessed: Mapping[str, Any], threshold: float) -> dict[str, object]:
    if not assessed:
        return {}
    names = ("cases", "patients", "positives", "roc_auc", "roc_auc_interval", "pr_auc", "pr_auc_interval", "brier")
    rows = [row for row in assessed.get("thresholds", ()) if row["threshold"] == threshold]
    kept = ("threshold", "accuracy", "sensitivity", "specificity", "ppv", "npv")
    at = {name: rows[0][name] for name in kept} if rows else None
    chosen = {name: assessed.get(name) for name in names} | {"at_threshold": at, "source_sha256": assessed["sha256"]}
    figures: dict[str, object] = _without_none(chosen)
    return figures


def _points(assessed: Mapping[str, Any], threshold: float) -> tuple[OperatingPoint, ...]:
    """The threshold in use, if it was evaluated, and the paper's three points."""
    in_use = [row for row in assessed.get("thresholds", ()) if row["threshold"] == threshold]
    rows = {"in_use": in_use[0]} if in_use else {}
    rows |= {name: row for name, row in (assessed.get("operating_points") or {}).items() if name in POINTS}
    cases = f"{assessed.get('cases')} cases of the evaluation"
    return tuple(
        OperatingPoint(
            name,
            row["threshold"],
            row["sensitivity"],
            row["specificity"],
            cases if name == "in_use" else f"{cases}, on which it was chosen",
        )
        for name, row in rows.items()
        if None not in (row["sensitivity"], row["specificity"])
    )


def _without_none(value: Any) -> Any:
    """Nested plain values without None, which TOML cannot express."""
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return value
