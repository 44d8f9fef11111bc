"""Does a third dimension help the lung mask? Compares a 2.5D U-Net with the 2D one on the same volumes.

    python -m benchmarks.segmentation_context --cache DIR --json result.json
    python -m benchmarks.segmentation_context --scan SERIES --reference MASK.nrrd ...     # a real scan as well

The 2.5D network is the U-Net with three input channels: a slice between the ones below and above it. Both networks
learn from the same slices of the same phantoms of the training population. Their unsupervised masks, seed, order,
augmentation, steps, learning rate, size and validation are the same. They start from the same weights except for the
first layer. Both are tested on the test population, which is another scanner's, against the phantom's true mask, after
the node's own cleaning. The interval of the mean difference is a bootstrap over volumes, with each volume's Dice
averaged over seeds. It does not include the randomness of training, which the figures of each seed show.

The rule, fixed before the first run: 2.5D is kept if the interval lies above 0, the mean gain is positive with every
seed and larger than the effect of another seed in 2D, and neither the minimum nor the 5th percentile is lower.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.real_lungs import prepare_scan, read_nrrd
from inference.arrays import Mask
from inference.evaluation.overlap import dice
from inference.lungs.mask import clean
from inference.lungs.unet import CHANNELS, UNet
from inference.preprocess import nearest_pixels, resize_slices
from inference.training.cohort import TEST, TRAINING, Prepared, load_prepared, prepare_all
from inference.training.demonstration import COARSE, UNET_SETTINGS, lung_case
from inference.training.demonstration_card import PROFILE
from inference.training.loop import EpochReport, train
from inference.training.unet_training import LungCase, LungTask, segment
from inference.volume.load import load

EVERY = 3  # every third slice is trained on, as for the demonstration model
END_MM = 15.0  # what counts as the lungs' ends, on both sides of their first and last slice
FLAT, CONTEXT = "2D", "2.5D"
Floats = npt.NDArray[np.float64]


class ContextUNet(UNet):
    """The U-Net that sees a slice between its neighbours; all but the first layer is the 2D one."""

    def __init__(self) -> None:
        super().__init__()
        self.inc.double_conv[0] = nn.Conv2d(3, CHANNELS[0], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 2, H, W) of the middle slices of x: (N, 1, 3, H, W), see `with_neighbours`."""
        return super().forward(x[:, 0])


def with_neighbours(grey: Tensor) -> Tensor:
    """Each slice between the ones below and above it: (Z, H, W) to (Z, 3, H, W); the end slices are repeated."""
    below, above = torch.cat([grey[:1], grey[:-1]]), torch.cat([grey[1:], grey[-1:]])
    return torch.stack([below, grey, above], 1)


def inputs_of(kind: str, grey: Tensor) -> Tensor:
    """Slices as a network takes them: (Z, H, W) for 2D, (Z, 3, H, W) for 2.5D."""
    return with_neighbours(grey) if kind == CONTEXT else grey


def learn(kind: str, cases: Sequence[LungCase], seed: int, epochs: int) -> UNet:
    """Train one network from scratch. cases: all slices of each volume; every third is learned from."""
    settings = replace(UNET_SETTINGS, seed=seed, epochs=epochs)
    torch.manual_seed(seed)
    network = ContextUNet() if kind == CONTEXT else UNet()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampled = [LungCase(c.name, inputs_of(kind, c.grey)[::EVERY], c.lungs[::EVERY]) for c in cases]
    held = max(1, round(settings.validation_share * len(sampled)))
    task = LungTask(network, sampled[held:], sampled[:held], settings, slices_per_step=4, slices_per_volume=4)

    def report(epoch: EpochReport) -> None:
        score = epoch.validation
        say(f"{kind} seed {seed} epoch {epoch.epoch + 1}: loss {epoch.training_loss:.4f}, Dice {score.metric:.4f}")

    with tempfile.TemporaryDirectory() as folder:
        train(task, settings, Path(folder), report=report)
    return network


@dataclass(frozen=True)
class Overlap:
    """Dice of one volume: over all of it, and within END_MM of the lungs' ends.  ms: CPU time per slice."""

    whole: float
    ends: float
    ms: float


def judge(kind: str, network: UNet, case: Prepared, truth: Mask) -> Overlap:
    """Find the lungs as the node does, at the training's size, and compare. truth: bool, the case's own grid."""
    grey = torch.from_numpy(resize_slices(case.grey.numpy(), COARSE, PROFILE.unet.interpolation_order))
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        lungs = segment(network, inputs_of(kind, grey), 8)
    ms = 1000 * (time.process_time() - started) / len(grey)
    found = clean(nearest_pixels(lungs.numpy(), (truth.shape[1], truth.shape[2])))
    ends = near_ends(truth, case.spacing_mm[0])
    return Overlap(dice(found, truth), dice(found[ends], truth[ends]), ms)


def near_ends(truth: Mask, spacing_mm: float) -> npt.NDArray[np.bool_]:
    """The slices within END_MM of the lungs' first or last slice: bool (Z,)."""
    filled = np.flatnonzero(truth.any(axis=(1, 2)))
    place = np.arange(len(truth))
    distance_mm = np.minimum(abs(place - filled[0]), abs(place - filled[-1])) * spacing_mm
    return np.asarray(distance_mm <= END_MM)


def multiply_adds(kind: str) -> int:
    """Multiply-adds of one slice at the training's size."""
    network = (ContextUNet() if kind == CONTEXT else UNet()).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(inputs_of(kind, torch.zeros(1, *COARSE))[:, None])
    return int(counter.get_total_flops()) // 2


def describe(values: Floats) -> dict[str, float]:
    """Mean, least and 5th percentile over volumes."""
    summary = {"mean": values.mean(), "least": values.min(), "p5": np.percentile(values, 5)}
    return {name: round(float(value), 4) for name, value in summary.items()}


def compare(flat: Floats, context: Floats) -> dict[str, object]:
    """2.5D against 2D, paired by volume. Both: (seeds, volumes)."""
    gains = (context - flat).mean(axis=0)
    rng = np.random.default_rng(0)
    means = rng.choice(gains, (10_000, len(gains))).mean(axis=1)
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    return {
        FLAT: describe(flat.mean(axis=0)),
        CONTEXT: describe(context.mean(axis=0)),
        "mean_of_each_seed": {
            FLAT: flat.mean(axis=1).round(4).tolist(),
            CONTEXT: context.mean(axis=1).round(4).tolist(),
        },
        "gain": round(float(gains.mean()), 5),
        "gain_95": np.percentile(means, [2.5, 97.5]).round(5).tolist(),
        "better_worse": [better, worse],
        "sign_test_p": round(float(binomtest(better, max(better + worse, 1)).pvalue), 4),
    }


def clearly_better(flat: Floats, context: Floats) -> bool:
    """The rule in the module's docstring. Both: Dice (seeds, volumes)."""
    compared = compare(flat, context)
    low = compared["gain_95"][0]  # type: ignore[index]
    per_seed = (context - flat).mean(axis=1)
    one, other = describe(flat.mean(axis=0)), describe(context.mean(axis=0))
    tails = other["least"] >= one["least"] and other["p5"] >= one["p5"]
    return bool(low > 0 and per_seed.min() > 0 and per_seed.mean() > np.ptp(flat.mean(axis=1)) and tails)


def say(line: str) -> None:
    """Progress, to standard error."""
    print(line, file=sys.stderr, flush=True)


def run(chosen: argparse.Namespace, cache: Path) -> dict[str, object]:
    """Do all of it: phantoms, trainings, tests."""
    learning = [load_prepared(path) for path in prepare_all(TRAINING, chosen.phantoms, cache, 1, say)]
    tests = [load_prepared(path) for path in prepare_all(TEST, chosen.test, cache, 1, say)]
    cases = [lung_case(case, COARSE, every=1) for case in learning if case.learnable]
    pairs = [(case, case.unpacked(case.truth)) for case in tests]
    if chosen.scan:
        scan = prepare_scan(load(sorted(file for file in chosen.scan.rglob("*") if file.is_file())))
        references = [(path.name, read_nrrd(path) > 0) for path in chosen.reference]
    found: dict[str, list[list[Overlap]]] = {FLAT: [], CONTEXT: []}
    real: dict[str, dict[str, list[float]]] = {FLAT: {}, CONTEXT: {}}
    for seed in range(chosen.seeds):
        for kind in found:
            network = learn(kind, cases, seed, chosen.epochs)
            found[kind].append([judge(kind, network, case, truth) for case, truth in pairs])
            say(f"{kind} seed {seed}: test Dice {np.mean([overlap.whole for overlap in found[kind][-1]]):.4f}")
            for name, truth in references if chosen.scan else ():
                real[kind].setdefault(name, []).append(round(judge(kind, network, scan, truth).whole, 4))
    whole, ends, ms = (
        {kind: np.array([[getattr(o, part) for o in row] for row in found[kind]]) for kind in found}
        for part in ("whole", "ends", "ms")
    )
    return {
        "trained_and_validated_on": len(cases),
        "tested_on": len(tests),
        "seeds": chosen.seeds,
        "epochs": chosen.epochs,
        "whole_volume": compare(whole[FLAT], whole[CONTEXT]),
        "ends_of_the_lungs": compare(ends[FLAT], ends[CONTEXT]),
        "unsupervised_masks": describe(np.array([dice(case.unpacked(case.unsupervised), t) for case, t in pairs])),
        "real_scan": real,
        "cpu_ms_per_slice": {kind: round(float(np.median(ms[kind])), 2) for kind in ms},
        "million_multiply_adds_per_slice": {kind: round(multiply_adds(kind) / 1e6, 1) for kind in found},
        "clearly_better": clearly_better(whole[FLAT], whole[CONTEXT]),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line of `python -m benchmarks.segmentation_context`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=120, help="of the training population")
    parser.add_argument("--test", type=int, default=40, help="phantoms of the test population")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--scan", type=Path, help="a folder with one real series, which is only tested on")
    parser.add_argument("--reference", type=Path, nargs="+", default=[], help="NRRD masks of that series")
    parser.add_argument("--cache", type=Path, help="folder that keeps the phantoms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the result")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = run(chosen, chosen.cache or Path(folder))
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if chosen.json:
        chosen.json.write_text(text)


if __name__ == "__main__":
    main()
