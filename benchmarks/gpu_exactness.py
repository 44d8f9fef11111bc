"""The GPU against the CPU's exact path in each number format, and whether it says the same each time."""

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_variants import tf32
from inference.arrays import Grey
from inference.covid.card import read_zheng_card
from inference.covid.loading import load_pipeline, pipeline_of
from inference.covid.pipeline import Pipeline
from inference.covid.verdict_input import needed_slices
from inference.covid.weights import load_networks
from inference.device import choose_device
from inference.errors import UnsuitableSeries
from inference.evaluation.overlap import dice
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from inference.preprocess import greys
from inference.volume.ct_volume import CTVolume
from inference.volume.folder import find_series
from inference.volume.load import load

LARGEST_DP, SMALLEST_DICE, ALLOWED_DP = 1e-3, 0.99999, 5e-3


def cases(slices: int, scans: Path | None) -> list[tuple[str, CTVolume]]:
    """Two phantoms, and the series of a folder."""
    found = []
    for seed, lesions in ((11, "mixed"), (12, "none")):
        with tempfile.TemporaryDirectory() as folder:
            phantom = make_phantom(seed, slices=max(30, min(60, slices)), size=256, lesions=lesions)  # type: ignore[arg-type]
            found.append((f"phantom {lesions}", load(write_series(phantom, Path(folder)))))
    for number, paths in enumerate(find_series(scans).values() if scans else (), 1):
        try:
            found.append((f"scan {number}", load(paths)))
        except UnsuitableSeries as error:
            print(f"scan {number} is not a volume: {error.refusal.code}")
    return found


def compare(name: str, model: Path, device: str, volumes: list[tuple[str, CTVolume]]) -> None:
    """Lines of the table for one model."""
    exact = load_pipeline(model, "cpu")
    formats = list(_formats(model, device))
    for case, volume in volumes:
        grey = greys(volume, exact.card.profile, torch.device("cpu"))
        truth, wanted = _verdict(exact, grey, volume)
        for words, pipeline, context, allowed in formats:
            with context():
                mask, found = _verdict(pipeline, grey, volume)
            overlap, same = dice(mask > 0, truth > 0), "same" if _box(mask) == _box(truth) else "DIFFERS"
            moved = float("nan") if wanted is None or found is None else abs(found - wanted)
            both_none = wanted is None and found is None
            holds = (both_none or moved <= allowed) and (overlap >= SMALLEST_DICE or words != "float32")
            said = "no lung" if both_none else f"{moved:.2e}"
            print(f"| {name} | {case} | {words} | {overlap:.7f} | {same} | {said} | {'yes' if holds else 'NO'} |")


def _formats(model: Path, device: str) -> Iterator[tuple[str, Pipeline, type[AbstractContextManager[None]], float]]:
    """Words, a pipeline, what to run it in, and the allowed |dp|."""
    float32 = load_pipeline(model, device)
    yield "float32", float32, contextlib.nullcontext, LARGEST_DP  # type: ignore[misc]
    yield "TF32", float32, tf32, ALLOWED_DP  # type: ignore[misc]
    # Not by autocast around it: the engine has its own, and DeCoVNet's parts run in threads that know of none.
    card = replace(read_zheng_card(model), precisions=("bfloat16", "float32"))
    lower = pipeline_of(card, *load_networks(model, card), choose_device(device), "fast")
    yield f"U-Net in {lower.segmentation.precision}", lower, contextlib.nullcontext, ALLOWED_DP  # type: ignore[misc]


def _verdict(pipeline: Pipeline, grey: Grey, volume: CTVolume) -> tuple[Grey, float | None]:
    """The raw mask of the slices that count, and the probability; None if there is no lung."""
    mask = pipeline.segmentation.raw_masks(grey, needed_slices(len(volume.hu), len(grey), pipeline.card.profile))
    try:
        return mask, pipeline.probability(grey)
    except UnsuitableSeries:
        return mask, None


def _box(mask: Grey) -> list[tuple[int, int]]:
    return [(int(axis.min()), int(axis.max())) for axis in np.nonzero(mask)] if mask.any() else []


def same_each_time(pipeline: Pipeline, volume: CTVolume) -> None:
    """Print whether a slice's mask is the same whatever it is batched with, and the whole in two runs."""
    grey = greys(volume, pipeline.card.profile, torch.device("cpu"))
    masks = pipeline.segmentation.raw_masks
    whole = masks(grey)
    alone = np.concatenate([masks(grey[start : start + 3]) for start in range(0, len(grey), 3)])
    for words, other in (("independent of the batch", alone), ("the same in two runs", masks(grey))):
        differing = int(np.sum(whole != other))
        print(f"masks {words}: {f'no, {differing} of {whole.size} pixels differ' if differing else 'yes'}")
    with contextlib.suppress(UnsuitableSeries):
        again = {pipeline.probability(grey) for _ in range(3)}
        print(f"probability the same in three runs: {'yes' if len(again) == 1 else f'no: {sorted(again)}'}")
