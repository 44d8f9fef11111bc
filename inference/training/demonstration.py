"""Make the demonstration weights: phantoms, both trainings, and what came of it.

    python -m inference.training.demonstration --out DIR --device auto
    python -m inference.training.demonstration --out DIR --quick        # smaller, for a machine without a GPU

Needs numpy, scipy, torch and safetensors only. Phantoms are made by as many processes as there are cores.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inference.decovnet import DeCoVNet
from inference.training.augmentation import AugmentationSettings
from inference.training.cohort import TEST_SEEDS_FROM, Prepared, Shapes, prepare_all
from inference.training.decovnet_training import VolumeCase, VolumeTask, initialise, probability, roc_auc
from inference.training.loop import EpochReport, Score, TrainingSettings, train
from inference.training.lung_masks import dice
from inference.training.preparation import UNET_SIZE, enlarge_mask, resize
from inference.training.unet_training import LungTask, segment
from inference.unet import UNet

SHAPES = Shapes(sizes=(256, 256, 384), slices=(32, 48))


# The paper's learning rate of 1e-5 needs its 100 epochs; these settings reach a fair result in minutes. After the
# first epochs batch normalisation trains with its running statistics, since those are what the node uses.
UNET_SETTINGS = TrainingSettings(
    epochs=6, learning_rate=1e-3, warm_statistics_share=0.3, statistics_momentum=0.03, decay_share=0.6
)
# DeCoVNet learns and is used with the statistics of the one volume, as the authors' is (the card says so), and
# without augmentation: every phantom is another body already.
DECOVNET_SETTINGS = TrainingSettings(
    epochs=40,
    learning_rate=3e-4,
    augmentation=AugmentationSettings(0, 0, 0, 0, 0, 0),
    samples_per_step=4,
    rise_samples=300,
    decay_share=0.5,
)


@dataclass(frozen=True)
class Attempt:
    """One way to train DeCoVNet; of several, the one with the best validation score is kept."""

    settings: TrainingSettings = DECOVNET_SETTINGS
    dropout: float = 0.0
    he_start: bool = True


ATTEMPTS = (
    Attempt(replace(DECOVNET_SETTINGS, learning_rate=1e-3)),
    Attempt(replace(DECOVNET_SETTINGS, samples_per_step=2)),
    Attempt(replace(DECOVNET_SETTINGS, learning_rate=1e-4, samples_per_step=1)),
    Attempt(replace(DECOVNET_SETTINGS, learning_rate=5e-4), he_start=False),
)


@dataclass(frozen=True)
class Plan:
    """How much to make and to learn."""

    training: int = 360
    test: int = 40
    shapes: Shapes = SHAPES
    unet: TrainingSettings = UNET_SETTINGS
    attempts: tuple[Attempt, ...] = ATTEMPTS
    slices_per_step: int = 16
    slices_per_volume: int = 16


QUICK = Plan(
    training=120,
    test=24,
    shapes=Shapes((256, 192), (24, 40)),
    unet=replace(UNET_SETTINGS, epochs=4),
    attempts=(Attempt(replace(DECOVNET_SETTINGS, epochs=10)),),
    slices_per_step=8,
    slices_per_volume=8,
)
TINY = Plan(
    training=8,
    test=4,
    shapes=Shapes((96,), (16, 18)),
    unet=replace(UNET_SETTINGS, epochs=1),
    attempts=(Attempt(replace(DECOVNET_SETTINGS, epochs=1)), Attempt(replace(DECOVNET_SETTINGS, epochs=1), 0.5)),
    slices_per_step=4,
    slices_per_volume=4,
)


def train_unet(
    cases: list[Prepared], plan: Plan, device: torch.device, folder: Path, say: Callable[[str], None]
) -> UNet:
    """The U-Net of the cases whose unsupervised mask passed its checks."""
    good = [case.lung_case(device) for case in cases if case.learnable]
    held = max(1, round(plan.unet.validation_share * len(good)))
    torch.manual_seed(plan.unet.seed)
    network = UNet().to(device)
    task = LungTask(
        network,
        good[held:],
        good[:held],
        plan.unet,
        slices_per_step=plan.slices_per_step,
        slices_per_volume=plan.slices_per_volume,
    )
    train(task, plan.unet, folder, report=_reporter("U-Net", "Dice", say))
    return network


def train_decovnet(
    cases: list[Prepared],
    unet: UNet,
    plan: Plan,
    device: torch.device,
    folder: Path,
    seconds: float,
    say: Callable[[str], None],
) -> DeCoVNet:
    """DeCoVNet of every case, with the masks that the trained U-Net gives: the best of the plan's attempts.

    seconds: attempts that are still at it after this time stop and keep their best epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    volumes = [case.volume_case(find_lungs(case, unet, device)) for case in cases]
    content = [[volume.name, volume.grey.cpu(), volume.lungs.cpu(), volume.covid] for volume in volumes]
    torch.save(content, folder / "volumes.pt")
    del volumes, content
    # Side by side on a GPU, which one attempt leaves half idle; one after the other on a CPU.
    together = len(plan.attempts) if device.type == "cuda" else 1
    numbers = range(len(plan.attempts))
    with ProcessPoolExecutor(together, mp_context=get_context("spawn")) as pool:
        scores = list(pool.map(_attempt, [(number, plan, str(device), folder, seconds) for number in numbers]))
    best = max(numbers, key=lambda number: scores[number].rank)
    for number, score in enumerate(scores):
        chosen = "  <- kept" if number == best else ""
        say(f"attempt {number + 1}: validation AUC {score.metric:.4f}, loss {score.loss:.4f}{chosen}")
    network = DeCoVNet("batch").to(device)
    network.load_state_dict(load_file(folder / f"{best}.safetensors"))
    return network.eval()


def _attempt(arguments: tuple[int, Plan, str, Path, float]) -> Score:
    number, plan, device, folder, seconds = arguments
    started, attempt = time.monotonic(), plan.attempts[number]
    content = torch.load(folder / "volumes.pt", map_location=device, weights_only=True)
    volumes = [VolumeCase(*fields) for fields in content]
    held = max(2, round(attempt.settings.validation_share * len(volumes)))
    torch.manual_seed(attempt.settings.seed)
    network = DeCoVNet("batch", attempt.dropout)
    if attempt.he_start:
        initialise(network)
    network.to(device)
    task = VolumeTask(network, volumes[held:], volumes[:held], attempt.settings)
    score = train(
        task,
        attempt.settings,
        folder / str(number),
        report=_reporter(f"DeCoVNet {number + 1}", "AUC", _say),
        stop=lambda: time.monotonic() - started > seconds,
    )
    save_weights(network, folder / f"{number}.safetensors")
    return score


def find_lungs(case: Prepared, unet: UNet, device: torch.device) -> Tensor:
    """The U-Net's lungs on the phantom's own grid: uint8 (Z, Y, X), 0 or 1."""
    lungs = segment(unet, resize(case.grey.to(device), UNET_SIZE))
    return enlarge_mask(lungs, (case.grey.shape[1], case.grey.shape[2]))


def evaluate(cases: list[Prepared], unet: UNet, decovnet: DeCoVNet, device: torch.device) -> dict[str, object]:
    """Lung Dice against the truth on the phantom's own grid, and how well the probabilities separate."""
    overlaps, probabilities = [], []
    for case in cases:
        lungs = find_lungs(case, unet, device)
        overlaps.append(dice(lungs.cpu().numpy().astype(bool), case.unpacked(case.truth)))
        volume = case.volume_case(lungs)
        with torch.inference_mode():
            inputs = torch.stack([volume.grey.float() / 255, volume.lungs.float()])
            probabilities.append(probability(decovnet.eval(), inputs))
    labels = [case.covid for case in cases]
    right = [(p >= 0.5) == label for p, label in zip(probabilities, labels, strict=True)]
    missed = {
        str(case.seed): [case.lesions, round(p, 4)]
        for case, p, good in zip(cases, probabilities, right, strict=True)
        if not good
    }
    return {
        "cases": len(cases),
        "lung_dice_mean": round(float(np.mean(overlaps)), 4),
        "lung_dice_least": round(min(overlaps), 4),
        "unsupervised_dice_mean": round(float(np.mean([case.mask_dice for case in cases])), 4),
        "roc_auc": round(roc_auc(labels, probabilities), 4),
        "accuracy": round(float(np.mean(right)), 4),
        "highest_negative": round(max((p for p, y in zip(probabilities, labels, strict=True) if not y), default=0), 4),
        "lowest_positive": round(min((p for p, y in zip(probabilities, labels, strict=True) if y), default=1), 4),
        "wrong": missed,
    }


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the weights as safetensors, float32, replacing the file in one step."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def make(
    plan: Plan,
    out: Path,
    cache: Path,
    device: torch.device,
    workers: int,
    say: Callable[[str], None],
    *,
    ready_unet: Path | None = None,
    seconds: float = float("inf"),
) -> None:
    """Do all of it and leave unet.safetensors, decovnet.safetensors and metrics.json in `out`.

    ready_unet: a trained U-Net's safetensors, to be used instead of training one.
    seconds: the longest that DeCoVNet may train.
    """
    out.mkdir(parents=True, exist_ok=True)
    seeds = [*range(plan.training), *range(TEST_SEEDS_FROM, TEST_SEEDS_FROM + plan.test)]
    cases = prepare_all(seeds, plan.shapes, cache / "phantoms", workers, say)
    learning, testing = cases[: plan.training], cases[plan.training :]
    say(f"{sum(case.learnable for case in learning)} of {len(learning)} unsupervised masks passed their checks")
    started = time.monotonic()
    if ready_unet:
        unet = UNet().to(device)
        unet.load_state_dict(load_file(ready_unet))
    else:
        unet = train_unet(learning, plan, device, cache / "unet", say)
    save_weights(unet, out / "unet.safetensors")
    unet_s = time.monotonic() - started
    decovnet = train_decovnet(learning, unet, plan, device, cache / "decovnet", seconds, say)
    save_weights(decovnet, out / "decovnet.safetensors")
    decovnet_s = time.monotonic() - started - unet_s
    metrics = evaluate(testing, unet, decovnet, device)
    metrics["training_s"] = {"unet": round(unet_s), "decovnet": round(decovnet_s)}
    metrics["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    say(json.dumps(metrics, indent=2))


def _reporter(network: str, metric: str, say: Callable[[str], None]) -> Callable[[EpochReport], None]:
    started = time.monotonic()

    def report(epoch: EpochReport) -> None:
        score = epoch.validation
        say(
            f"{network} epoch {epoch.epoch + 1}: training loss {epoch.training_loss:.4f}, validation loss "
            f"{score.loss:.4f}, {metric} {score.metric:.4f}{' (best)' if epoch.best else ''}  "
            f"{time.monotonic() - started:.0f} s"
        )

    return report


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """The command line of `python -m inference.training.demonstration`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and metrics.json")
    parser.add_argument("--cache", type=Path, help="folder for phantoms and checkpoints; a killed run goes on from it")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, help="processes that make phantoms; the number of cores if absent")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller phantoms, for a CPU")
    parser.add_argument("--tiny", action="store_true", help="a few minute phantoms, to see that it runs")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the longest that DeCoVNet may train")
    parser.add_argument("--unet", type=Path, help="a trained U-Net (safetensors), instead of training one")
    parser.add_argument("--training", type=int, help="phantoms to learn from")
    parser.add_argument("--test", type=int, help="phantoms of another population to test on")
    chosen = parser.parse_args(arguments)
    plan = TINY if chosen.tiny else QUICK if chosen.quick else Plan()
    plan = replace(plan, training=chosen.training or plan.training, test=chosen.test or plan.test)
    name = chosen.device if chosen.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    workers = chosen.workers or len(os.sched_getaffinity(0))
    make(
        plan,
        chosen.out,
        chosen.cache or chosen.out / "cache",
        torch.device(name),
        workers,
        _say,
        ready_unet=chosen.unet,
        seconds=chosen.seconds,
    )


if __name__ == "__main__":
    main()
