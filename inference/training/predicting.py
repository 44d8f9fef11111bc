"""Run a model on a part of a data set: one probability for each case, as for a folder of scans."""

from collections.abc import Callable, Mapping

from inference.covid.loading import load_pipeline as load_pipeline
from inference.covid.pipeline import Pipeline as Pipeline
from inference.errors import UnsuitableSeries
from inference.evaluation.errors import EvaluationError, Problem
from inference.evaluation.folder import FolderPredictions
from inference.training.cached import MANIFEST, Dataset, UnusableDataset


def predict_dataset(
    dataset: Dataset, pipeline: Pipeline, part: str, *, done: Callable[[int, int], None] = lambda number, total: None
) -> FolderPredictions:
    """Run a model on every case of a part.

    The volumes passed the node's checks when the data set was built. The check of the network's own mask needs the
    scan itself, so it is not made here.
    Raises UnusableDataset if the model wants grey values that the data set does not hold, EvaluationError if no
    case is left.
    """
    held, wanted = dataset.profile, pipeline.card.profile
    same_slices = all(
        getattr(held.slices, name) == getattr(wanted.slices, name)
        for name in ("order", "spacing_mm", "interpolation_order")
    )
    if held.intensity != wanted.intensity or not same_slices:
        raise UnusableDataset(
            f"{dataset.folder}: its grey values or slices are not those of {pipeline.card.name}; build it with "
            "--card, or evaluate the folder of scans"
        )
    cases = dataset.part(part)
    rows: list[Mapping[str, str]] = []
    refused = []
    for number, case in enumerate(cases, 1):
        try:
            probability = pipeline.probability(dataset.volume(case)[0])
        except UnsuitableSeries as error:
            refused.append(Problem(MANIFEST, number, "case", str(error)))
        else:
            figures = {"patient": str(case.patient), "probability": repr(probability), "label": str(int(case.covid))}
            rows.append({**case.columns, "case": case.case, **figures})
        done(number, len(cases))
    if not rows:
        raise EvaluationError(f"the {part} part of {dataset.folder} has no case that could be analysed")
    return FolderPredictions(tuple(rows), tuple(refused), 0)
