"""Does the spread over harmless changes tell right results from wrong ones?

    python -m benchmarks.uncertainty --phantoms 100
    python -m benchmarks.uncertainty --series DIR=LABEL ... --unet unet.pth --decovnet decovnet.pth
    python -m benchmarks.uncertainty --published published-predictions.txt

The demonstration model on phantoms that are hard for it (few, small and faint lesions; confounders in both classes),
or another model on real series, each with its truth, 0 or 1. Every output is tried, whatever the card's band. For the
card's own changes, for shifts of the slice grid by half a slice, for shifts of the HU by 10, and for all of them: how
many results are right and wrong, how many of each are indeterminate (their range straddles the threshold), how wide
the ranges are, and the area under the ROC curve of the width as a sign of an error. Beside it, what costs nothing: how
near the output lies to the threshold; of published outputs, that alone. The suitability rules do not apply.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from inference.arrays import Grey
from inference.covid.loading import load_pipeline
from inference.covid.pipeline import Pipeline
from inference.covid.spread import changed
from inference.covid.verdict_input import decovnet_input, needed_slices, verdict_box, verdict_mask
from inference.covid.weights import import_authors
from inference.evaluation.predictions import read_predictions
from inference.models.registry import find_model
from inference.phantom.chest import Scanner, make_phantom
from inference.phantom.lesions import CONFOUNDERS, LesionSettings
from inference.phantom.series import write_series
from inference.preprocess import greys, verdict_range
from inference.training.decovnet_training import roc_auc
from inference.volume.ct_volume import CTVolume, upright
from inference.volume.load import load

SEEDS_FROM = 30_000
SHIFT_HU = 10.0
CARD, GRID, WINDOW = "the card's changes", "half a slice", "10 HU"
HARD = LesionSettings(count=(1, 5), radius_mm=(7, 20), ground_glass_hu=(80, 300))
Ranges = Mapping[str, Sequence[float]]


def outputs(pipeline: Pipeline, volume: CTVolume) -> tuple[float, Ranges]:
    """The output for a volume, and those for each group of harmless changes."""
    turned, profile = upright(volume), pipeline.card.profile
    grey = greys(turned, profile)
    raw = pipeline.segmentation.raw_masks(grey, needed_slices(len(turned.hu), len(grey), profile))
    image, mask = decovnet_input(grey, raw, profile)
    found: dict[str, list[float]] = {CARD: [], GRID: [], WINDOW: []}
    start, stop = verdict_range(len(grey), profile.slices)
    inside, masks = grey[start:stop], verdict_mask(raw[start:stop], profile)
    z, y, x = verdict_box(raw, profile)
    box = slice(z.start - start, z.stop - start), y, x
    rule = pipeline.card.spread
    for change in rule.changes if rule else ():
        part = changed(box, change, grey.shape[1], profile.slices.order == "descending")
        found[CARD].append(pipeline.judging.probability(inside[part], masks[part]))
    for by in (0.5, -0.5):
        moved = _along_z(image, by), (_along_z(255 * mask, by) > 127).astype(np.uint8)
        found[GRID].append(pipeline.judging.probability(*moved))
    low, high = profile.intensity.window_hu
    for by in (SHIFT_HU, -SHIFT_HU):
        intensity = replace(profile.intensity, window_hu=(low - by, high - by))
        shifted = greys(turned, replace(profile, intensity=intensity))
        found[WINDOW].append(pipeline.judging.probability(shifted[start:stop][box], mask))
    return pipeline.judging.probability(image, mask), found


def _along_z(image: Grey, by: float) -> Grey:
    """Moved along z by a part of a slice, linearly."""
    return np.rint(ndimage.shift(image.astype(np.float32), (by, 0, 0), order=1, mode="nearest")).astype(np.uint8)


def phantoms(count: int) -> Iterator[tuple[str, bool, CTVolume]]:
    """Name, truth and volume of each; the same for the same number."""
    for seed in range(SEEDS_FROM, SEEDS_FROM + count):
        chance = np.random.default_rng(seed)
        covid = bool(chance.integers(2))
        more = tuple(str(one) for one in chance.choice(sorted(CONFOUNDERS), chance.integers(0, 3), replace=False))
        phantom = make_phantom(
            seed,
            slices=40,
            size=256,
            lesions="mixed" if covid else "none",
            lesion_settings=HARD,
            confounders=more,
            scanner=Scanner(noise_hu=float(chance.uniform(8, 45)), kernel="B50f"),
        )
        with tempfile.TemporaryDirectory() as folder:
            yield f"phantom {seed}", covid, load(write_series(phantom, Path(folder)))


def given(entries: Sequence[str]) -> Iterator[tuple[str, bool, CTVolume]]:
    """As `phantoms`, of FOLDER=LABEL."""
    for entry in entries:
        folder, _, label = entry.rpartition("=")
        yield Path(folder).name, label == "1", load(sorted(path for path in Path(folder).iterdir() if path.is_file()))


def judged(pipeline: Pipeline, cases: Iterator[tuple[str, bool, CTVolume]]) -> Iterator[dict[str, object]]:
    """A row for each case: its truth, its output, and the ranges."""
    for name, truth, volume in cases:
        probability, found = outputs(pipeline, volume)
        found = {**found, "all": [one for some in found.values() for one in some]}
        ranges = {key: (min([probability, *some]), max([probability, *some])) for key, some in found.items()}
        yield {"case": name, "truth": truth, "probability": probability, "ranges": ranges}


def summary(rows: Sequence[dict[str, object]], threshold: float) -> Iterator[str]:
    """The figures for each group of changes, a line each."""
    values = np.array([row["probability"] for row in rows], float)
    wrong = (values >= threshold) != np.array([row["truth"] for row in rows], bool)
    yield f"{len(rows)} cases: {np.count_nonzero(~wrong)} right, {np.count_nonzero(wrong)} wrong"
    near = -np.abs(values - threshold)
    yield f"{'how near to the threshold':26} AUC {_auc(wrong, near)}"
    for key in rows[0]["ranges"]:  # type: ignore[attr-defined]
        ranges = np.array([row["ranges"][key] for row in rows], float)  # type: ignore[index]
        width = ranges[:, 1] - ranges[:, 0]
        torn = (ranges[:, 0] < threshold) & (threshold <= ranges[:, 1])
        of = [f"{np.count_nonzero(torn[some])} of {np.count_nonzero(some)}" for some in (~wrong, wrong)]
        median = [f"{np.median(width[some]):.4f}" if some.any() else "-" for some in (~wrong, wrong)]
        yield (
            f"{key:26} AUC {_auc(wrong, width)}; indeterminate: {of[0]} right, {of[1]} wrong; "
            f"median width: {median[0]} right, {median[1]} wrong"
        )


def of_published(file: Path) -> Iterator[str]:
    """The figures of outputs without their images."""
    read = read_predictions(file)
    rows: list[dict[str, object]] = [
        {"truth": bool(label), "probability": float(value), "ranges": {}}
        for label, value in zip(read.label, read.probability, strict=True)
    ]
    yield from summary(rows, 0.5)


def _auc(wrong: np.ndarray, score: np.ndarray) -> str:
    if wrong.all() or not wrong.any():
        return "-"
    return f"{roc_auc(list(wrong), list(score)):.3f}"


def main() -> None:
    """The command line of `python -m benchmarks.uncertainty`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=0)
    parser.add_argument("--series", nargs="*", default=[], metavar="DIR=LABEL")
    parser.add_argument("--unet", type=Path, help="the authors' checkpoints, for --series")
    parser.add_argument("--decovnet", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=Path, help="file that the rows are written to, a line each")
    parser.add_argument("--published", type=Path, help="outputs of the paper's test cases")
    chosen = parser.parse_args()
    if chosen.published:
        sys.stdout.write("\n".join(of_published(chosen.published)) + "\n")
        return
    with tempfile.TemporaryDirectory() as models:
        if chosen.series and chosen.unet and chosen.decovnet:
            import_authors(chosen.unet, chosen.decovnet, Path(models), allow_unverified=False)
        name = "zheng2020-authors" if chosen.series else "demonstration"
        pipeline = load_pipeline(find_model(Path(models), name), "cpu", threads=chosen.threads)
    rows = []
    for row in judged(pipeline, given(chosen.series) if chosen.series else phantoms(chosen.phantoms)):
        rows.append(row)
        if chosen.rows:
            with chosen.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    sys.stdout.write("\n".join(summary(rows, pipeline.card.threshold)) + "\n")


if __name__ == "__main__":
    main()
