"""The model path against a plain PyTorch reference, stage by stage, on one volume and the same weights.

    python -m benchmarks.inference --models DIR                      # CPU: reference, exact and fast, interleaved
    python -m benchmarks.inference --models DIR --threads 2 --slices 40
    python -m benchmarks.inference --synthetic --device cuda         # a GPU machine: no DICOM files, random weights

The reference is written straight from the description of the preprocessing: float64 spline zooms by scipy, batch 1,
slice by slice. CPU seconds are of the whole process; on a GPU, wall milliseconds are printed instead.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from inference.cards import read_card, shipped_folder, write_card  # noqa: E402
from inference.decovnet import DeCoVNet  # noqa: E402
from inference.mask import dice  # noqa: E402
from inference.pipeline import Pipeline, decovnet_input, load_pipeline, resized  # noqa: E402
from inference.preprocess import greys, verdict_range  # noqa: E402
from inference.registry import find_model  # noqa: E402
from inference.unet import UNet  # noqa: E402
from inference.weights import load_networks, save_network  # noqa: E402

UNET_GFLOP = 15.49  # one slice of 512 x 512, multiplications and additions of its convolutions
Stages = dict[str, float]


def synthetic_volume(slices: int, seed: int = 0) -> np.ndarray:
    """A body with two lungs and noise, HU int16 (slices, 512, 512): enough to load the networks, no patient."""
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
    """The authors' card beside random weights: the same work where the published files are not at hand."""
    torch.manual_seed(0)
    card = read_card(shipped_folder() / "zheng2020-authors")
    unet = save_network(UNet(), folder / card.unet.file)
    decovnet = save_network(DeCoVNet(), folder / card.decovnet.file)
    write_card(
        replace(card, unet=replace(card.unet, sha256=unet), decovnet=replace(card.decovnet, sha256=decovnet)), folder
    )
    return folder


def whole_slices(folder: Path, target: Path) -> Path:
    """A copy of a model whose verdict is made from all slices, so that both networks see every one."""
    card = read_card(folder)
    slices = replace(card.profile.slices, lung_range=(0.0, 1.0), verdict_range=(0.0, 1.0))
    for weights in (card.unet, card.decovnet):
        (target / weights.file).write_bytes((folder / weights.file).read_bytes())
    write_card(replace(card, profile=replace(card.profile, slices=slices)), target)
    return target


class Clock:
    """Seconds by stage: of the process's CPU, or of the wall where a GPU computes."""

    def __init__(self, wall: bool) -> None:
        self.stages: Stages = {}
        self._now = time.perf_counter if wall else time.process_time

    def time(self, name: str, function: Callable[[], object]) -> object:
        """Run a function and count its time towards a stage."""
        started = self._now()
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stages[name] = self.stages.get(name, 0.0) + self._now() - started
        return result


def reference(hu: np.ndarray, folder: Path, threads: int) -> tuple[float, np.ndarray, Stages]:
    """The published steps, written plainly: P(COVID-19), raw mask, seconds by stage."""
    torch.set_num_threads(threads)
    card = read_card(folder)
    unet, decovnet = load_networks(folder, card)
    start, stop = verdict_range(len(hu), card.profile.slices)
    clock = Clock(wall=False)

    def prepare() -> np.ndarray:
        y, x = np.ogrid[:512, :512]
        lowered = hu.copy()
        lowered[:, (y - 255) ** 2 + (x - 255) ** 2 >= 253**2] -= 2000
        return np.floor(255 * np.clip((lowered + 1200.0) / 1800.0, 0, 1)).astype(np.uint8)

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


def ours(hu: np.ndarray, pipeline: Pipeline, wall: bool) -> tuple[float, np.ndarray, Stages]:
    """The same result from the product's own steps."""
    from inference.ct import CTVolume

    volume = CTVolume(hu, (1.0, 0.7, 0.7), np.eye(4), (), "", "")
    clock, profile = Clock(wall), pipeline.card.profile
    grey = clock.time("preprocess", lambda: greys(volume, profile))
    mask = clock.time("unet", lambda: pipeline.raw_masks(grey))  # type: ignore[arg-type]
    pair = clock.time("crop", lambda: resized(*decovnet_input(grey, mask, profile), profile))  # type: ignore[arg-type]
    probability = clock.time("decovnet", lambda: pipeline._decovnet.probability(*pair))  # type: ignore[misc]
    return probability, mask, clock.stages  # type: ignore[return-value]


def peak_gflops(device: str, dtype: torch.dtype = torch.float32) -> float:
    """The best of five large matrix products on one thread, GFLOP/s."""
    size = 8192 if device == "cuda" else 1536
    torch.set_num_threads(1)
    one = torch.randn(size, size, dtype=dtype, device=device)
    now = time.perf_counter if device == "cuda" else time.process_time
    best = float("inf")
    for _ in range(5):
        started = now()
        torch.mm(one, one)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, now() - started)
    return 2 * size**3 / best / 1e9


def report(name: str, stages: Stages, base: Stages | None, slices: int, peak: float) -> None:
    """One line per path: seconds by stage, ratio to the reference, share of the measured peak."""
    total = sum(stages.values())
    each = "  ".join(f"{stage} {seconds:7.2f}" for stage, seconds in stages.items())
    ratio = f"  {sum(base.values()) / total:5.2f} times the reference" if base else ""
    share = UNET_GFLOP * slices / stages["unet"] / peak
    print(f"{name:22} total {total:7.2f} s  {each}{ratio}  U-Net at {share:.0%} of {peak:.0f} GFLOP/s", flush=True)


def median(runs: list[Stages]) -> Stages:
    """The median of each stage."""
    return {stage: float(np.median([run[stage] for run in runs])) for stage in runs[0]}


def compare(arguments: argparse.Namespace, folder: Path, hu: np.ndarray) -> None:
    """Interleave the paths on one volume and print them beside each other."""
    wall = arguments.device == "cuda"
    pipelines = {
        speed: load_pipeline(folder, arguments.device, speed, arguments.threads)
        for speed in arguments.paths
        if speed != "reference"
    }
    for pipeline in pipelines.values():
        ours(hu[:24], pipeline, wall)  # compile outside of the timing; the node does so once per process
    runs: dict[str, list[Stages]] = {path: [] for path in arguments.paths}
    results: dict[str, tuple[float, np.ndarray]] = {}
    for _ in range(arguments.rounds):
        for path in arguments.paths:
            run = reference(hu, folder, arguments.threads) if path == "reference" else ours(hu, pipelines[path], wall)
            results[path] = run[0], run[1]
            runs[path].append(run[2])
    base = median(runs["reference"]) if "reference" in runs else None
    for path in arguments.paths:
        dtype = torch.float32 if path in ("reference", "exact") else torch.bfloat16
        report(
            path,
            median(runs[path]),
            base if path != "reference" else None,
            len(hu),
            peak_gflops(arguments.device, dtype),
        )
    first = results[arguments.paths[0]]
    for path in arguments.paths[1:]:
        moved, overlap = abs(results[path][0] - first[0]), dice(results[path][1] > 0, first[1] > 0)
        print(f"{path} against {arguments.paths[0]}: |dp| {moved:.6f}, Dice {overlap:.7f}")
    for path in arguments.paths:
        print(json.dumps({"path": path, "slices": len(hu), "threads": arguments.threads, **median(runs[path])}))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process {peak_mb:.0f} MiB (all paths that ran in it; --paths exact for one alone)")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of imported models; without it random weights are used")
    parser.add_argument("--synthetic", action="store_true", help="a generated volume, not a series of --series")
    parser.add_argument("--series", type=Path, help="folder of a DICOM series; its slices are used as they are")
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
        compare(arguments, model, _volume(arguments))


def _volume(arguments: argparse.Namespace) -> np.ndarray:
    if arguments.synthetic or not arguments.series:
        return synthetic_volume(arguments.slices)
    from inference.volume import find_series, load

    ((files),) = find_series(arguments.series).values()
    hu = load(files).hu
    return hu[np.linspace(0, len(hu) - 1, arguments.slices).round().astype(int)]


if __name__ == "__main__":
    main()
