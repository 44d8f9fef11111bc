"""Make the demonstration model: phantoms, both trainings from volume-level labels alone, and the test.

    python -m inference.training.demonstration --out DIR
    python -m inference.training.demonstration --out DIR --tiny         # a few tiny phantoms, to see that it runs

Writes a model's folder (card and weights), metrics.json and, for `dicom-node evaluate`, predictions.csv to DIR.
A run that was killed continues from its cache.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from inference.arrays import Grey
from inference.covid.decovnet import DeCoVNet
from inference.covid.verdict_input import decovnet_input, resized
from inference.device import choose_device
from inference.evaluation.intervals import delong
from inference.evaluation.overlap import dice
from inference.lungs.engine import UnetEngine, open_unet
from inference.lungs.mask import clean
from inference.lungs.unet import UNet
from inference.preprocess import nearest_pixels, resize_slices
from inference.training.augmentation import AugmentationSettings
from inference.training.cohort import TEST, TRAINING, Population, Prepared, load_prepared, prepare_all
from inference.training.decovnet_training import VolumeCase, VolumeTask, initialise, probability, roc_auc
from inference.training.demonstration_card import DECOVNET_FILE, PROFILE, UNET_FILE, write_demonstration_card
from inference.training.lesion_start import new_finder, start_classifier, task_input
from inference.training.loop import EpochReport, Task, TrainingSettings, train
from inference.training.unet_training import LungCase, LungTask

Say = Callable[[str], None]

# The paper's learning rate of 1e-5 needs its 100 epochs; these settings reach a fair result in minutes. After the
# first epoch, batch normalisation trains with its running statistics, because the node uses those.
UNET_SETTINGS = TrainingSettings(
    epochs=3,
    learning_rate=2e-3,
    validation_share=0.1,
    precision="bfloat16",
    warm_statistics_share=0.3,
    decay_share=0.8,
    rise_samples=20,
    augmentation=AugmentationSettings(brightness_share=0.1, contrast_share=0.1),
)
UNET_FINE_SETTINGS = replace(
    UNET_SETTINGS, epochs=2, learning_rate=5e-4, warm_statistics_share=0.5, validation_share=0.05, decay_share=1.0
)
COARSE = (160, 160)
# DeCoVNet is trained and used with the statistics of the single volume, like the authors' (the card says so). It
# needs no augmentation: every phantom is a different body already.
FINDER_SETTINGS = TrainingSettings(
    epochs=6,
    learning_rate=1e-3,
    validation_share=0.1,
    precision="bfloat16",
    samples_per_step=2,
    rise_samples=40,
    decay_share=0.9,
    augmentation=AugmentationSettings(0, 0, 0, 0, 0, 0),
)
DECOVNET_SETTINGS = replace(FINDER_SETTINGS, epochs=2, learning_rate=3e-4, samples_per_step=4)


@dataclass(frozen=True)
class Plan:
    """How many phantoms to make and how much to train.

    training, test: numbers of phantoms.  unet_volumes: training phantoms that the U-Net learns from.
    unet_slices: slices of each of them per epoch, and per step.
    """

    training: int = 400
    test: int = 100
    training_population: Population = TRAINING
    test_population: Population = TEST
    unet_volumes: int = 200
    unet_slices: int = 4
    unet: TrainingSettings = UNET_SETTINGS
    unet_fine: TrainingSettings = UNET_FINE_SETTINGS
    finder: TrainingSettings = FINDER_SETTINGS
    decovnet: TrainingSettings = DECOVNET_SETTINGS


TINY = Plan(
    training=8,
    test=4,
    training_population=replace(TRAINING, sizes=(64,), slices=(16, 18)),
    test_population=replace(TEST, sizes=(64,), slices=(16, 18)),
    unet_volumes=8,
    unet_slices=2,
    unet=replace(UNET_SETTINGS, epochs=1),
    unet_fine=replace(UNET_FINE_SETTINGS, epochs=1),
    finder=replace(FINDER_SETTINGS, epochs=1),
    decovnet=replace(DECOVNET_SETTINGS, epochs=1),
)


def train_unet(paths: Sequence[Path], plan: Plan, folder: Path, say: Say) -> UNet:
    """Train the U-Net on the phantoms whose mask passed its checks, first on coarse slices, which is quick."""
    learnable = [path for path in paths if load_prepared(path).learnable]
    say(f"U-Net: {len(learnable)} of {len(paths)} unsupervised masks passed their checks")
    torch.manual_seed(plan.unet.seed)
    network = UNet()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learn_lungs(network, learnable, plan.unet, COARSE, plan.unet_slices, folder / "coarse", say)
    learn_lungs(network, learnable, plan.unet_fine, PROFILE.unet.size, plan.unet_slices, folder / "fine", say)
    return network


def learn_lungs(
    network: UNet,
    paths: Sequence[Path],
    settings: TrainingSettings,
    size: tuple[int, int],
    slices: int,
    folder: Path,
    say: Say,
) -> None:
    """Train the network on slices of one size: (rows, columns)."""
    cases = [lung_case(load_prepared(path), size) for path in paths]
    held = max(1, round(settings.validation_share * len(cases)))
    task = LungTask(network, cases[held:], cases[:held], settings, slices_per_step=slices, slices_per_volume=slices)
    _train(task, settings, folder, f"U-Net, {size[0]} x {size[1]},", "Dice", say)


def lung_case(case: Prepared, size: tuple[int, int], every: int = 3) -> LungCase:
    """What the U-Net learns from: every third slice, which is plenty, with grey values as in the node."""
    grey = resize_slices(case.grey.numpy()[::every], size, PROFILE.unet.interpolation_order)
    lungs = case.unpacked(case.unsupervised)[::every] * np.uint8(255)
    lungs = (resize_slices(lungs, size, PROFILE.unet.interpolation_order) > 127).view(np.uint8)
    return LungCase(str(case.seed), torch.from_numpy(grey), torch.from_numpy(lungs))


def find_lungs(case: Prepared, unet: UnetEngine) -> Grey:
    """The U-Net's lungs on the phantom's own grid, as the node finds them: uint8 (T, Y, X), 0 or 1."""
    grey = resize_slices(case.grey.numpy(), PROFILE.unet.size, PROFILE.unet.interpolation_order)
    return nearest_pixels(unet.masks(grey), (case.grey.shape[1], case.grey.shape[2]))


def volume_case(case: Prepared, lungs: Grey) -> VolumeCase:
    """A phantom with a lung mask, as DeCoVNet receives it in the node."""
    image, mask = resized(*decovnet_input(case.grey.numpy(), lungs, PROFILE), PROFILE)
    return VolumeCase(str(case.seed), torch.from_numpy(image), torch.from_numpy(mask), case.covid)


def learning_cases(paths: Sequence[Path], unet: UnetEngine | None) -> list[VolumeCase]:
    """Training volumes, with the U-Net's masks as in the node or with the unsupervised ones."""
    cases = []
    for path in paths:
        case = load_prepared(path)
        lungs = find_lungs(case, unet) if unet else case.unpacked(case.unsupervised).view(np.uint8)
        cases.append(volume_case(case, lungs))
    return cases


@dataclass(frozen=True)
class Tested:
    """One test volume. kind: of its lesions.  overlap: Dice of the U-Net's cleaned lung mask and the truth."""

    case: VolumeCase
    kind: str
    overlap: float


def test_case(path: Path, unet: UnetEngine) -> Tested:
    """A phantom with the U-Net's mask, as in the node."""
    prepared = load_prepared(path)
    lungs = find_lungs(prepared, unet)
    overlap = dice(clean(lungs), prepared.unpacked(prepared.truth))
    return Tested(volume_case(prepared, lungs), prepared.lesions, overlap)


def train_decovnet(paths: Sequence[Path], unet: UnetEngine, plan: Plan, folder: Path, say: Say) -> DeCoVNet:
    """Train DeCoVNet on volumes and their labels: first its features, then the whole network (see `lesion_start`)."""
    held = max(2, round(plan.decovnet.validation_share * len(paths)))
    cases = learning_cases(paths, None)
    torch.manual_seed(plan.finder.seed)
    network = DeCoVNet("batch", dropout=0.0)
    initialise(network)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    finder = new_finder(network, cases[held:])
    task = VolumeTask(finder, cases[held:], cases[:held], plan.finder)
    _train(task, plan.finder, folder / "finder", "features", "AUC", say)
    network = start_classifier(finder)
    cases = learning_cases(paths, unet)
    task = VolumeTask(network, cases[held:], cases[:held], plan.decovnet)
    _train(task, plan.decovnet, folder / "whole", "DeCoVNet", "AUC", say)
    return network.eval()


def _train(task: Task, settings: TrainingSettings, folder: Path, network: str, metric: str, say: Say) -> None:
    started = time.monotonic()

    def report(epoch: EpochReport) -> None:
        score = epoch.validation
        say(
            f"{network} epoch {epoch.epoch + 1}/{settings.epochs}: training loss {epoch.training_loss:.4f}, validation "
            f"loss {score.loss:.4f}, {metric} {score.metric:.4f}{' (best)' if epoch.best else ''}  "
            f"{time.monotonic() - started:.0f} s"
        )

    train(task, settings, folder, report=report)


def evaluate(tests: Sequence[Tested], network: DeCoVNet, out: Path) -> dict[str, object]:
    """ROC AUC with its 95% interval (DeLong) and lung Dice; predictions.csv in `out` for `dicom-node evaluate`."""
    with torch.inference_mode():
        found = np.array([probability(network, task_input(test.case)) for test in tests])
    labels = np.array([test.case.covid for test in tests])
    with (out / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "probability", "label", "lesions", "slices", "lung_dice"))
        for test, p in zip(tests, found, strict=True):
            slices, overlap = len(test.case.grey), f"{test.overlap:.4f}"
            writer.writerow((test.case.name, f"{p:.6f}", int(test.case.covid), test.kind, slices, overlap))
    interval = delong(labels, found)
    kinds = {test.kind for test in tests}
    positive = {kind: [p >= 0.5 for p, test in zip(found, tests, strict=True) if test.kind == kind] for kind in kinds}
    overlaps = [test.overlap for test in tests]
    # If the classes do not overlap, the method gives no interval.
    bounds = {"roc_auc_95": [round(interval.low, 4), round(interval.high, 4)]} if interval else {}
    return {
        "volumes": len(tests),
        "roc_auc": round(roc_auc(labels.tolist(), found.tolist()), 4),
        **bounds,
        "positive_at_0.5": {kind: f"{sum(said)} of {len(said)}" for kind, said in sorted(positive.items())},
        "lung_dice_mean": round(float(np.mean(overlaps)), 4),
        "lung_dice_least": round(min(overlaps), 4),
    }


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the weights as safetensors, float32, replacing the file atomically."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def make(plan: Plan, out: Path, cache: Path, workers: int, say: Say) -> dict[str, object]:
    """Do all of it; returns what metrics.json holds."""
    out.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    learning = prepare_all(plan.training_population, plan.training, cache / "phantoms", workers, say)
    testing = prepare_all(plan.test_population, plan.test, cache / "phantoms", workers, say)
    clock.stop("phantoms")
    if (out / UNET_FILE).exists():
        unet = UNet()
        unet.load_state_dict(load_file(out / UNET_FILE))
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        unet = train_unet(learning[: plan.unet_volumes], plan, cache / "unet", say)
        save_weights(unet, out / UNET_FILE)
    clock.stop("unet")
    engine = open_unet(unet.eval(), choose_device("cpu", torch.get_num_threads()), "float32")
    decovnet = train_decovnet(learning, engine, plan, cache / "decovnet", say)
    save_weights(decovnet, out / DECOVNET_FILE)
    clock.stop("decovnet")
    tests = [test_case(path, engine) for path in testing]
    result = evaluate(tests, decovnet, out)
    clock.stop("test")
    write_demonstration_card(out, training_summary(plan), result)
    metrics: dict[str, object] = {"training_volumes": len(learning), "test": result}
    metrics |= {"seconds": clock.wall_s, "cpu_seconds_of_this_process": clock.cpu_s, "threads": torch.get_num_threads()}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    say(json.dumps(metrics, indent=2))
    return metrics


def training_summary(plan: Plan) -> dict[str, object]:
    """What the card says about the training."""
    return {
        "data": f"{plan.training} synthetic phantoms, half with COVID-19; confounders in both classes",
        "labels": "one label a volume; lung masks without labels",
        "unet_epochs": plan.unet.epochs + plan.unet_fine.epochs,
        "decovnet_epochs": plan.finder.epochs + plan.decovnet.epochs,
    }


class _Clock:
    """Wall and CPU seconds of each stage."""

    def __init__(self) -> None:
        self.wall_s: dict[str, int] = {}
        self.cpu_s: dict[str, int] = {}
        self._last = time.monotonic(), time.process_time()

    def stop(self, stage: str) -> None:
        now = time.monotonic(), time.process_time()
        self.wall_s[stage], self.cpu_s[stage] = round(now[0] - self._last[0]), round(now[1] - self._last[1])
        self._last = now


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """The command line of `python -m inference.training.demonstration`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and metrics.json")
    parser.add_argument("--cache", type=Path, help="folder for phantoms and checkpoints; a killed run goes on from it")
    parser.add_argument("--threads", type=int, help="cores to use; all of them if absent")
    parser.add_argument("--tiny", action="store_true", help="a few minute phantoms, to see that it runs")
    chosen = parser.parse_args(arguments)
    threads = chosen.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    make(TINY if chosen.tiny else Plan(), chosen.out, chosen.cache or chosen.out / "cache", threads, _say)


if __name__ == "__main__":
    main()
