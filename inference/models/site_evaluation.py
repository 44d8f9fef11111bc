"""A site's own evaluation of a model: how good it is there. It replaces the published figures in reports.

It is kept beside the models, by the model's digest. Other weights, another threshold or other preprocessing make
another model, for which it does not count.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from inference.errors import ModelError
from inference.models.cards import OperatingPoint
from inference.models.registry import sync_folder
from inference.models.toml_fields import build, plain, read_toml, write_toml

FOLDER = "evaluations"
NAME = "own evaluation"

Share = tuple[float, float, float]
"""A proportion and its 95 % interval: value, low, high."""


@dataclass(frozen=True)
class SiteEvaluation:
    """How a model did at a site, at its threshold.

    site, date: where and when (ISO date) it was evaluated.  model_digest: of the model that it is about.
    cases, positives: number of cases, and of those with COVID-19.
    predictions_sha256: of the predictions that the figures are computed from.
    """

    site: str
    date: str
    model: str
    model_digest: str
    threshold: float
    cases: int
    positives: int
    sensitivity: Share
    specificity: Share
    predictions_sha256: str

    def operating_point(self) -> OperatingPoint:
        """The figures as a report prints them."""
        (_, *of_sensitivity), (_, *of_specificity) = self.sensitivity, self.specificity
        source = (
            f"{self.site}, {self.date}: {self.cases} cases, {self.positives} with COVID-19; 95 % intervals "
            f"{_interval(*of_sensitivity)} and {_interval(*of_specificity)}"
        )
        return OperatingPoint(NAME, self.threshold, self.sensitivity[0], self.specificity[0], source)


def _interval(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}"


def site_evaluation_file(models_dir: Path, model_digest: str) -> Path:
    """Where the evaluation of a model is kept."""
    return models_dir / FOLDER / f"{model_digest}.toml"


def read_site_evaluation(models_dir: Path, model_digest: str) -> SiteEvaluation | None:
    """The site's own evaluation of exactly this model; None if there is none.

    Raises ModelError if its file cannot be used, or is about another model.
    """
    path = site_evaluation_file(models_dir, model_digest)
    if not path.exists():
        return None
    found = build(SiteEvaluation, read_toml(path), str(path))
    if found.model_digest != model_digest:
        raise ModelError(f"{path}: is about the model with digest {found.model_digest}")
    return found


def adopt(evaluation: SiteEvaluation, models_dir: Path) -> Path:
    """Keep an evaluation, in place of an earlier one of the same model. Returns its file."""
    path = site_evaluation_file(models_dir, evaluation.model_digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(write_toml(plain(evaluation)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
    return path
