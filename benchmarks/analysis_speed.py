"""Compares the model path with a plain PyTorch reference, stage by stage, on one volume and the same weights.

    python -m benchmarks.analysis_speed --models DIR      # CPU: reference, exact and fast, interleaved
    python -m benchmarks.analysis_speed --models DIR --threads 2 --slices 40 --spacing 4
    python -m benchmarks.analysis_speed --device cuda     # a GPU machine: no DICOM files, random weights

The reference is written straight from the description of the preprocessing: spline zooms by scipy, batch 1, slice by
slice, the U-Net on every slice. CPU seconds are those of the whole process; on a GPU, wall-clock milliseconds are
printed instead. A stage's floor is the time that its operations need at the machine's measured rates (matrix product or
memory copy, whichever takes longer). Its share is floor over time, above 100% if an algorithm needs fewer operations.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch.utils.flop_counter import FlopCounterMode

from inference.covid.card import read_zheng_card
from inference.covid.decovnet import DeCoVNet
from inference.covid.loading import load_pipeline
from inference.covid.pipeline import Pipeline
from inference.covid.verdict_input import decovnet_input, needed_slices, resized
from inference.covid.weights import load_networks, save_network
from inference.evaluation.overlap import dice
from inference.lungs.unet import UNet
from inference.models.cards import shipped_folder, write_card
from inference.models.registry import find_model
from inference.preprocess import greys, resampled_count, verdict_range

Stages = dict[str, float]


def synthetic_volume(slices: int, seed: int = 0) -> np.ndarray:
    """A body with two lungs and noise, HU int16 (slices, 512, 512): enough work for the networks, and no patient."""
    random = np.random.default_rng(seed)
    y, x = np.ogrid[:512, :512]
    hu = np.full((slices, 512, 512), -1000, np.int16)
    hu[:, ((y - 256) / 170) ** 2 + ((x - 256) / 230) ** 2 < 1] = 40
    for side in (-100, 100):
        hu[:, ((y - 250) / 110) ** 2 + ((x - 256 - side) / 70) ** 2 < 1] = -850
    for plane in hu:
        plane += random.normal(0, 25, plane.shape).astype(np.int16)
    return hu


def random_model(folder: Path) -> Path:
    """The authors' card with random weights: the same amount of work if the published files are not available."""
    torch.manual_seed(0)
    card = read_zheng_card(shipped_folder() / "zheng2020-authors")
    unet = save_network(UNet(), folder / card.unet.file)
    decovnet = save_network(DeCoVNet(), folder / card.decovnet.file)
    write_card(
        replace(card, unet=replace(card.unet, sha256=unet), decovnet=replace(card.decovnet, sha256=decovnet)), folder
    )
    return folder


def whole_slices(folder: Path, target: Path) -> Path:
    """A copy of a model whose verdict is made from all slices, so that both networks see every one."""
    card = read_zheng_card(folder)
    slices = replace(card.profile.slices, lung_range=(0.0, 1.0), verdict_range=(0.0, 1.0))
    for weights in (card.unet, card.decovnet):
        (target / weights.file).write_bytes((folder / weights.file).read_bytes())
    write_card(replace(card, profile=replace(card.profile, slices=slices)), target)
    return target


Value = TypeVar("Value")


class Clock:
    """Seconds by stage: CPU time of the process, or wall-clock time if a GPU computes."""

    def __init__(self, wall: bool) -> None:
        self.stages: Stages = {}
        self._now = time.perf_counter if wall else time.process_time

    def time(self, name: str, function: Callable[[], Value]) -> Value:
        """Run a function and add its time to a stage."""
        started = self._now()
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stages[name] = self.stages.get(name, 0.0) + self._now() - started
        return result


def reference(hu: np.ndarray, spacing: float, folder: Path, threads: int) -> tuple[float, np.ndarray, Stages]:
    """The published steps in plain code: P(COVID-19), raw mask, seconds by stage."""
    torch.set_num_threads(threads)
    card = read_zheng_card(folder)
    unet, decovnet = load_networks(folder, card)
    count = round(len(hu) * spacing)
    start, stop = verdict_range(count, card.profile.slices)
    clock = Clock(wall=False)

    def prepare() -> np.ndarray:
        y, x = np.ogrid[:512, :512]
        lowered = hu.copy()
        lowered[:, (y - 255) ** 2 + (x - 255) ** 2 >= 253**2] -= 2000
        zoomed = ndimage.zoom(lowered, (count / len(hu), 1, 1), order=3, mode="nearest")
        return np.floor(255 * np.clip((zoomed + 1200.0) / 1800.0, 0, 1)).astype(np.uint8)

    def segment() -> np.ndarray:
        with torch.inference_mode():
            planes = (torch.from_numpy(plane.astype(np.float32) / 255)[None, None] for plane in grey)
            return np.stack([unet(plane)[0].argmax(0).numpy().astype(np.uint8) for plane in planes])

    def crop() -> np.ndarray:
        kept, shown = mask[start:stop], grey[start:stop]
        box = tuple(slice(axis.min(), axis.max()) for axis in np.nonzero(kept))
        image, inside = shown[box], kept[box]
        factors = (1, 224 / image.shape[1], 336 / image.shape[2])
        return np.stack([ndimage.zoom(image, factors, order=3) / 255, ndimage.zoom(inside, factors, order=3)])

    def classify() -> float:
        with torch.inference_mode():
            return float(torch.softmax(decovnet(torch.from_numpy(pair.astype(np.float32))[None]), 1)[0, 1])

    grey = clock.time("preprocess", prepare)
    mask = clock.time("unet", segment)
    pair = clock.time("crop", crop)
    probability = clock.time("decovnet", classify)
    return probability, mask, clock.stages  # type: ignore[return-value]


def ours(hu: np.ndarray, spacing: float, pipeline: Pipeline, wall: bool) -> tuple[float, np.ndarray, Stages]:
    """The same result from the product's own steps; as in the node, the U-Net skips slices that nothing needs."""
    from inference.volume.ct_volume import CTVolume

    volume = CTVolume(hu, (spacing, 0.7, 0.7), np.eye(4), (), "", "")
    clock, profile = Clock(wall), pipeline.card.profile
    device = pipeline._device.torch_device
    grey = clock.time("preprocess", lambda: greys(volume, profile, device))
    needed = needed_slices(len(hu), len(grey), profile)  # type: ignore[arg-type]
    mask = clock.time("unet", lambda: pipeline.segmentation.raw_masks(grey, needed))  # type: ignore[arg-type]
    pair = clock.time("crop", lambda: resized(*decovnet_input(grey, mask, profile), profile, device))  # type: ignore[arg-type]
    probability = clock.time("decovnet", lambda: pipeline._decovnet.probability(*pair))  # type: ignore[misc]
    return probability, mask, clock.stages  # type: ignore[return-value]


@dataclass(frozen=True)
class Machine:
    """Measured rates of the device. gflops: by number format.  gbytes: read and written per second by a copy."""

    gflops: dict[torch.dtype, float]
    gbytes: float


def measured(device: str) -> Machine:
    """The best of five large matrix products in each number format, and of five copies; one thread on the CPU."""
    torch.set_num_threads(1)
    size = 8192 if device == "cuda" else 1536
    gflops = {}
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.randn(size, size, dtype=dtype, device=device)
        gflops[dtype] = 2 * size**3 / _best(partial(torch.mm, one, one), device) / 1e9
    large = torch.zeros((1 << 31 if device == "cuda" else 1 << 27) // 4, device=device)
    return Machine(gflops, 2 * 4 * large.numel() / _best(large.clone, device) / 1e9)


def _best(run: Callable[[], object], device: str) -> float:
    now = time.perf_counter if device == "cuda" else time.process_time
    best = float("inf")
    for _ in range(5):
        started = now()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, now() - started)
    return best


def floors(slices: dict[torch.dtype, int], shown: int, crop: tuple[int, int], machine: Machine) -> Stages:
    """Seconds that the operations of each stage need at the machine's rates.

    slices: how many the U-Net sees, by number format.  shown: how many DeCoVNet sees.  crop: their rows and columns.
    """
    gflop, values = work(UNet(), (1, 1, 512, 512))
    unet = 0.0
    for dtype, count in slices.items():
        unet += count * max(gflop / machine.gflops[dtype], values * dtype.itemsize / machine.gbytes)
    gflop, values = work(DeCoVNet(), (1, 2, max(2, shown), 224, 336))
    decovnet = max(gflop / machine.gflops[torch.float32], 4 * values / machine.gbytes)
    # Image and mask, two products each, in double precision: half the rate of float32.
    resize = 2 * shown * 2 * (224 * crop[0] * crop[1] + 224 * crop[1] * 336) / 1e9
    return {"unet": unet, "decovnet": decovnet, "crop": 2 * resize / machine.gflops[torch.float32]}


def work(network: torch.nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """GFLOP of one pass, and how many 10^9 values its convolutions read and write, each once."""
    moved: list[int] = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv3d):
            layer.register_forward_hook(lambda _, given, made: moved.append(given[0].numel() + made.numel()))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.to("meta").eval()(torch.zeros(shape, device="meta"))
    return counter.get_total_flops() / 1e9, sum(moved) / 1e9


def report(name: str, stages: Stages, base: Stages | None, floor: Stages, wall: bool) -> None:
    """One line per path: time by stage with the share of its floor, and the ratio to the reference."""
    total = sum(stages.values())
    scale, unit = (1000.0, "ms") if wall else (1.0, "s")
    each = "  ".join(
        f"{stage} {scale * seconds:.2f}" + (f" ({floor[stage] / seconds:.0%})" if stage in floor else "")
        for stage, seconds in stages.items()
    )
    ratio = f"  {sum(base.values()) / total:5.2f} times the reference" if base else ""
    print(f"{name:10} total {scale * total:.2f} {unit}  {each}{ratio}", flush=True)


def median(runs: list[Stages]) -> Stages:
    """The median of each stage."""
    return {stage: float(np.median([run[stage] for run in runs])) for stage in runs[0]}


def compare(arguments: argparse.Namespace, folder: Path, hu: np.ndarray, spacing: float) -> None:
    """Interleave the paths on one volume and print them side by side."""
    torch.set_num_threads(arguments.threads)
    wall = arguments.device == "cuda"
    pipelines = {
        speed: load_pipeline(folder, arguments.device, speed, arguments.threads)
        for speed in arguments.paths
        if speed != "reference"
    }
    for pipeline in pipelines.values():
        ours(hu[:24], 1.0, pipeline, wall)  # compile before the timing starts; the node does so once per process
    runs: dict[str, list[Stages]] = {path: [] for path in arguments.paths}
    results: dict[str, tuple[float, np.ndarray]] = {}
    for _ in range(arguments.rounds):
        for path in arguments.paths:
            if path == "reference":
                run = reference(hu, spacing, folder, arguments.threads)
            else:
                run = ours(hu, spacing, pipelines[path], wall)
            results[path] = run[0], run[1]
            runs[path].append(run[2])
    base = median(runs["reference"]) if "reference" in runs else None
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    machine = measured(arguments.device)
    rates = ", ".join(f"{rate:.0f} GFLOP/s {str(dtype)[6:]}" for dtype, rate in machine.gflops.items())
    print(
        f"measured: {rates}, {machine.gbytes:.1f} GB/s; in brackets: share of what the operations need at these rates"
    )
    profile = read_zheng_card(folder).profile
    count = resampled_count(len(hu), spacing, profile.slices)
    start, stop = verdict_range(count, profile.slices)
    needed = needed_slices(len(hu), count, profile)
    inside = int(((needed >= start) & (needed < stop)).sum())
    for path in arguments.paths:
        seen = {torch.float32: count if path == "reference" else len(needed)}
        if path == "fast" and "bfloat16" in str(pipelines[path].segmentation.precision):
            seen = {torch.float32: inside, torch.bfloat16: len(needed) - inside}
        mask = results[path][1][start:stop]
        crop = (int(np.ptp(np.flatnonzero(mask.any((0, 2))))), int(np.ptp(np.flatnonzero(mask.any((0, 1))))))
        before = base if path != "reference" else None
        report(path, median(runs[path]), before, floors(seen, stop - start, crop, machine), wall)
    print(f"slices: {len(hu)} given, {count} resampled, {len(needed)} needed, {inside} of them for the verdict")
    first = results[arguments.paths[0]]
    for path in arguments.paths[1:]:
        moved = abs(results[path][0] - first[0])
        overlap = dice(results[path][1][needed] > 0, first[1][needed] > 0)
        print(f"{path} against {arguments.paths[0]}: |dp| {moved:.6f}, Dice {overlap:.7f}")
    for path in arguments.paths:
        print(json.dumps({"path": path, "slices": len(hu), "spacing_mm": spacing, **median(runs[path])}))
    print(f"peak memory of this process {peak_mb:.0f} MiB (all paths that ran in it; --paths exact for one alone)")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of imported models; without it random weights are used")
    parser.add_argument("--series", type=Path, help="folder of a DICOM series; without it a volume is generated")
    parser.add_argument("--spacing", type=float, default=1.0, help="mm from slice to slice of the generated volume")
    parser.add_argument("--all-slices", action="store_true", help="both networks see every slice, not the card's range")
    parser.add_argument("--slices", type=int, default=141)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--paths", nargs="+", default=["reference", "exact", "fast"])
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        arguments.paths = [path for path in arguments.paths if path != "reference"]
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        source = find_model(arguments.models) if arguments.models else random_model(Path(first))
        model = whole_slices(source, Path(second)) if arguments.all_slices else source
        compare(arguments, model, *_volume(arguments))


def _volume(arguments: argparse.Namespace) -> tuple[np.ndarray, float]:
    if not arguments.series:
        return synthetic_volume(arguments.slices), arguments.spacing
    from inference.volume.folder import find_series
    from inference.volume.load import load

    volume = load(next(iter(find_series(arguments.series).values())))
    return volume.hu, volume.spacing_mm[0]


if __name__ == "__main__":
    main()
