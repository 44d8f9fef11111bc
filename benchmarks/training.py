"""Compares epochs of DeCoVNet's training with the plain loop that the paper's authors describe, on the same volumes.

    python -m benchmarks.training                                   # CPU: 4 volumes of 24 slices, 3 interleaved rounds
    python -m benchmarks.training --device cuda --volumes 32 --slices 141 --precision bfloat16

The plain loop follows the description alone. Its batch is 1, it reads each volume when it is needed, augments every
slice with Pillow on the CPU by the volume's one set of parameters, and fetches the loss after each step. The other loop
is `train`, as `dicom-node train decovnet` runs it: threads read volumes ahead, and the device augments them. Network,
optimizer, order and number of steps are the same. Idle is the share of an epoch in which the network waits for its next
volume. On a busy machine, read the ratio of CPU seconds, not of wall time.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional

from inference.covid.decovnet import DeCoVNet
from inference.training.augmentation import AugmentationSettings, Change, draw
from inference.training.decovnet_training import VolumeCase, VolumeTask
from inference.training.inputs import mapped
from inference.training.loop import EpochReport, TrainingSettings, train

SIZE = (224, 336)


def make_volumes(folder: Path, count: int, slices: int) -> list[VolumeCase]:
    """Volumes of noise with a mask, as files: their content does not affect the time of either loop."""
    cases = []
    for number in range(count):
        rng = np.random.default_rng(number)
        paths = [folder / f"{number}-{part}.npy" for part in ("grey", "lungs")]
        np.save(paths[0], rng.integers(0, 255, (slices, *SIZE), dtype=np.uint8))
        np.save(paths[1], (rng.random((slices, *SIZE)) < 0.3).astype(np.uint8))
        cases.append(VolumeCase(str(number), mapped(paths[0]), mapped(paths[1]), number % 2 == 1))
    return cases


def plain_epoch(folder: Path, cases: list[VolumeCase], device: torch.device, rate: float) -> tuple[float, float]:
    """Seconds of one epoch of the plain loop, and the share of them spent on reading and augmenting."""
    torch.manual_seed(0)
    network = DeCoVNet().to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    started, loading = time.perf_counter(), 0.0
    for case in cases:
        before = time.perf_counter()
        change = draw(AugmentationSettings(), torch.Generator().manual_seed(int(case.name)))
        volume = plain_volume(folder, case.name, change)
        loading += time.perf_counter() - before
        inputs = torch.from_numpy(volume)[None].to(device)
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(inputs), torch.tensor([int(case.covid)], device=device))
        loss.backward()
        optimizer.step()
        loss.item()
    seconds = time.perf_counter() - started
    return seconds, loading / seconds


def plain_volume(folder: Path, name: str, change: Change) -> np.ndarray:
    """Read and augment one volume, slice by slice: float32 (2, T, H, W)."""
    grey, lungs = (np.load(folder / f"{name}-{part}.npy") for part in ("grey", "lungs"))
    matrix = pillow_matrix(change)
    size = (SIZE[1], SIZE[0])
    planes = []
    for image, mask in zip(grey, lungs, strict=True):
        picture = Image.fromarray(image)
        picture = ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(change.brightness)).enhance(
            change.contrast
        )
        picture = picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        covered = Image.fromarray(mask).transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
        planes.append((np.asarray(picture, np.float32) / 255, np.asarray(covered, np.float32)))
    return np.stack([np.stack([plane[part] for plane in planes]) for part in (0, 1)])


def pillow_matrix(change: Change) -> tuple[float, ...]:
    """Maps positions in the result to positions in the source, in pixels from the centre."""
    cos, sin, shear = math.cos(change.rotation), math.sin(change.rotation), math.tan(change.shear)
    a, b = cos * change.scale, (cos * shear - sin) * change.scale
    c, d = sin * change.scale, (sin * shear + cos) * change.scale
    det = a * d - b * c
    a, b, c, d = d / det, -b / det, -c / det, a / det
    x, y = SIZE[1] / 2, SIZE[0] / 2
    shift_x, shift_y = change.shift[0] * SIZE[1], change.shift[1] * SIZE[0]
    return (a, b, x - a * (x + shift_x) - b * (y + shift_y), c, d, y - c * (x + shift_x) - d * (y + shift_y))


def our_epoch(cases: list[VolumeCase], settings: TrainingSettings, device: torch.device) -> tuple[float, float]:
    """Seconds of one epoch of `train`, and the share of them spent waiting for a volume."""
    torch.manual_seed(0)
    task = VolumeTask(DeCoVNet().to(device), cases, [], settings)
    reports: list[EpochReport] = []
    with tempfile.TemporaryDirectory() as run:
        train(task, settings, Path(run), report=reports.append)
    return reports[0].seconds, reports[0].waiting_share


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="of `train` only")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    # Balancing would give one loop more steps than the other.
    settings = replace(TrainingSettings(epochs=1, balance=False), precision=chosen.precision)
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as name:
        cases = make_volumes(Path(name), chosen.volumes, chosen.slices)
        plain_epoch(Path(name), cases[:1], device, settings.learning_rate)  # warm up
        our_epoch(cases[:1], settings, device)
        cpu: list[tuple[float, float]] = []
        for number in range(chosen.rounds):
            marks = [time.process_time()]
            plain.append(plain_epoch(Path(name), cases, device, settings.learning_rate))
            marks.append(time.process_time())
            ours.append(our_epoch(cases, settings, device))
            marks.append(time.process_time())
            cpu.append((marks[1] - marks[0], marks[2] - marks[1]))
            print(f"round {number + 1}: plain {plain[-1][0]:.2f} s, train {ours[-1][0]:.2f} s", file=sys.stderr)
    ratios = [before[0] / after[0] for before, after in zip(plain, ours, strict=True)]
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "volumes": chosen.volumes,
        "slices": chosen.slices,
        "precision": chosen.precision,
        "plain_epoch_s": round(statistics.median(seconds for seconds, _ in plain), 3),
        "plain_idle_share": round(statistics.median(share for _, share in plain), 4),
        "train_epoch_s": round(statistics.median(seconds for seconds, _ in ours), 3),
        "train_idle_share": round(statistics.median(share for _, share in ours), 4),
        "plain_over_train": round(statistics.median(ratios), 3),
        "plain_over_train_cpu_s": round(statistics.median(before / after for before, after in cpu), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
