"""The GPU path on one card, in one run: exactness, speed, memory, two workers. Prints tables in minutes.

    python -m benchmarks.gpu                       # a GPU machine; random weights and phantoms if nothing else is there
    python -m benchmarks.gpu --models DIR          # a folder of imported models: the authors' weights
    python -m benchmarks.gpu --scans DIR           # also the series of a folder, such as the parity cases
    python -m benchmarks.gpu --device cpu --slices 12 --seconds 2      # to try the script itself, without a GPU

It needs this repository and its environment with a CUDA build of torch, and nothing else. A part that fails says so and
the others go on. Times are medians of several runs after a first one that warms up, of the whole step, synchronised.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import gpu_variants as variants
from benchmarks.analysis_speed import Clock, Stages, floors, measured, median, ours, random_model, synthetic_volume
from benchmarks.gpu_workers import one_and_two_workers
from inference.arrays import Grey
from inference.covid.card import read_zheng_card
from inference.covid.loading import load_pipeline
from inference.covid.pipeline import Pipeline
from inference.covid.verdict_input import needed_slices
from inference.covid.weights import load_networks
from inference.device import choose_device
from inference.errors import UnsuitableSeries
from inference.evaluation.overlap import dice
from inference.lungs.engine_cuda import CudaUnet
from inference.models.registry import find_model
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from inference.preprocess import greys, verdict_range
from inference.volume.ct_volume import CTVolume
from inference.volume.folder import find_series
from inference.volume.load import load

PAPER_S = 1.93  # one CT, paper, section 3.3, on a GPU of 2020
LARGEST_DP, SMALLEST_DICE, ALLOWED_DP = 1e-3, 0.99999, 5e-3
ROUNDS = 5


@dataclass(frozen=True)
class Options:
    """What a run is of. slices: of the two generated volumes."""

    model: Path
    device: str
    slices: tuple[int, ...]
    scans: Path | None
    seconds: float


def main() -> None:
    """Parse the command line and run every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of imported models; without it random weights are used")
    parser.add_argument("--scans", type=Path, help="folder of DICOM series for the exactness")
    parser.add_argument("--device", default="cuda", help='"cuda", "cuda:1", ...; "cpu" tries the script')
    parser.add_argument("--slices", type=int, nargs="+", default=[141, 300])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each window with workers")
    parser.add_argument("--parts", nargs="+", default=[title for title, _ in PARTS], help="only some, by their titles")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = find_model(arguments.models) if arguments.models else random_model(Path(folder))
        options = Options(model, arguments.device, tuple(arguments.slices), arguments.scans, arguments.seconds)
        for title, part in PARTS:
            if title not in arguments.parts:
                continue
            started = time.perf_counter()
            print(f"\n## {title}", flush=True)
            try:
                part(options)
            except (RuntimeError, ValueError, ImportError, UnsuitableSeries) as error:
                print(f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            print(f"({time.perf_counter() - started:.1f} s)", flush=True)


# The machine


def machine(options: Options) -> None:
    """What it is, and its measured rates."""
    device = choose_device(options.device)
    print(
        f"{device.name}; torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )
    kind = device.kind
    found = measured(kind)
    rates = [f"{str(name)[6:]} {rate / 1000:.1f} TFLOP/s" for name, rate in found.gflops.items()]
    if kind == "cuda":
        with tf32():
            rates.append(f"TF32 {measured(kind).gflops[torch.float32] / 1000:.1f} TFLOP/s")
        rates.append(f"pageable to the GPU {copied(pinned=False):.1f} GB/s, pinned {copied(pinned=True):.1f} GB/s")
    print("matrix products: " + ", ".join(rates) + f"; memory {found.gbytes:.0f} GB/s")


def copied(*, pinned: bool) -> float:
    """GB/s of a copy to the GPU."""
    host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=pinned)
    device = torch.empty_like(host, device="cuda")
    seconds = variants.seconds_of(lambda: device.copy_(host, non_blocking=True), ROUNDS)
    return host.numel() / seconds / 1e9


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Let float32 products and convolutions round their factors to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


# Exactness


def exactness(options: Options) -> None:
    """The GPU against the CPU's exact path, in each number format."""
    exact = load_pipeline(options.model, "cpu")
    on_gpu = load_pipeline(options.model, options.device)
    print("| case | format | Dice of masks | crop | \\|dp\\| | holds |\n|---|---|---|---|---|---|")
    for name, volume in _cases(options):
        grey = greys(volume, exact.card.profile, torch.device("cpu"))
        truth, wanted = _verdict(exact, grey, volume)
        for words, context, allowed in (
            ("float32", contextlib.nullcontext(), LARGEST_DP),
            ("TF32", tf32(), ALLOWED_DP),
            ("bfloat16", torch.autocast(choose_device(options.device).kind, torch.bfloat16), ALLOWED_DP),
        ):
            with context:
                mask, found = _verdict(on_gpu, grey, volume)
            overlap, moved = dice(mask > 0, truth > 0), abs(found - wanted)
            holds = moved <= allowed and (overlap >= SMALLEST_DICE or words != "float32")
            same = "same" if _box(mask) == _box(truth) else "DIFFERS"
            print(
                f"| {name} | {words} | {overlap:.7f} | {same} | {moved:.2e} | {'yes' if holds else 'NO'} |", flush=True
            )
    _same_each_time(options, on_gpu)


def _cases(options: Options) -> Iterator[tuple[str, CTVolume]]:
    few = options.slices[0]
    for seed, lesions in ((11, "mixed"), (12, "none")):
        with tempfile.TemporaryDirectory() as folder:
            phantom = make_phantom(seed, slices=max(30, min(60, few)), size=256, lesions=lesions)
            yield f"phantom {lesions}", load(write_series(phantom, Path(folder)))
    if options.scans:
        for number, paths in enumerate(find_series(options.scans).values(), 1):
            try:
                yield f"scan {number}", load(paths)
            except UnsuitableSeries as error:
                print(f"| scan {number} | - | not a volume: {error.refusal.code} | | | |")


def _verdict(pipeline: Pipeline, grey: Grey, volume: CTVolume) -> tuple[Grey, float]:
    """The raw mask of the slices that count, and the probability."""
    profile = pipeline.card.profile
    mask = pipeline.segmentation.raw_masks(grey, needed_slices(len(volume.hu), len(grey), profile))
    try:
        return mask, pipeline.probability(grey)
    except UnsuitableSeries:  # random weights find no lung
        return mask, 0.0


def _box(mask: Grey) -> list[tuple[int, int]]:
    return [(int(axis.min()), int(axis.max())) for axis in np.nonzero(mask)] if mask.any() else []


def _same_each_time(options: Options, pipeline: Pipeline) -> None:
    """A slice's mask whatever it is batched with, and the whole twice."""
    grey = greys(_generated(options.slices[0]), pipeline.card.profile, torch.device("cpu"))
    masks = pipeline.segmentation.unet.masks
    whole = masks(grey)
    alone = np.concatenate([masks(grey[start : start + 3]) for start in range(0, len(grey), 3)])
    again = masks(grey)
    for words, other in (("independent of the batch", alone), ("the same in two runs", again)):
        differing = int(np.sum(whole != other))
        print(f"{words}: {f'{differing} pixels differ' if differing else 'yes'}")


# Speed


def speed(options: Options) -> None:
    """From HU in memory to the probability, stage by stage, beside plain code on the same GPU."""
    pipeline = load_pipeline(options.model, options.device)
    kind = choose_device(options.device).kind
    rates = measured(kind)
    print(
        f"paper: {PAPER_S:.2f} s for one CT. In brackets: what the operations need at the measured rates, of the time."
    )
    print("| slices | path | total ms | stages, ms |\n|---|---|---|---|")
    for slices in options.slices:
        hu = synthetic_volume(slices)
        ours(hu[:24], 1.0, pipeline, True)
        runs = [ours(hu, 1.0, pipeline, True) for _ in range(ROUNDS)]
        plain = [variants.plain_code(hu, options.model, options.device, Clock(wall=True)) for _ in range(2)]
        profile = pipeline.card.profile
        start, stop = verdict_range(slices, profile.slices)
        needed = len(needed_slices(slices, slices, profile))
        floor = floors({torch.float32: needed}, stop - start, _crop(runs[-1][1][start:stop]), rates)
        _line(slices, "ours", median([run[2] for run in runs]), floor)
        _line(slices, "plain code", median(plain), {})


def _crop(mask: Grey) -> tuple[int, int]:
    """Rows and columns that a mask reaches over, at least two: random weights find no lung."""
    rows, columns = np.flatnonzero(mask.any((0, 2))), np.flatnonzero(mask.any((0, 1)))
    return tuple(int(np.ptp(found)) if len(found) > 2 else 2 for found in (rows, columns))  # type: ignore[return-value]


def _line(slices: int, path: str, stages: Stages, floor: Stages) -> None:
    each = ", ".join(
        f"{name} {1000 * seconds:.1f}" + (f" ({floor[name] / seconds:.0%})" if name in floor else "")
        for name, seconds in stages.items()
    )
    print(f"| {slices} | {path} | {1000 * sum(stages.values()):.1f} | {each} |", flush=True)


def kept_or_not(options: Options) -> None:
    """What could make the U-Net faster: its time and whether its masks stay the same."""
    card = read_zheng_card(options.model)
    unet, _ = load_networks(options.model, card)
    grey = greys(_generated(options.slices[-1]), card.profile, torch.device("cpu"))
    variants.table(unet, grey, choose_device(options.device))


def _generated(slices: int) -> CTVolume:
    return CTVolume(synthetic_volume(slices), (1.0, 0.7, 0.7), np.eye(4), (), "", "")


# Memory


def memory(options: Options) -> None:
    """The peak, and what happens when it is not there: smaller batches, then the CPU."""
    device = choose_device(options.device)
    unet, _ = load_networks(options.model, read_zheng_card(options.model))
    grey = greys(_generated(options.slices[0]), read_zheng_card(options.model).profile, torch.device("cpu"))
    if device.kind == "cpu":
        print("no GPU: not tried")
        return
    torch.cuda.reset_peak_memory_stats()
    free = CudaUnet(unet, device, "float32")
    wanted = free.masks(grey)
    print(f"peak of the U-Net: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB, batches of {free._batch}")
    total = torch.cuda.get_device_properties(device.index).total_memory
    for allowed_mb in (2048, 512, 128):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed_mb * 2**20 / total), device.index)
        try:
            engine = CudaUnet(unet, device, "float32")
            same = np.array_equal(engine.masks(grey), wanted)
            print(f"with {allowed_mb} MiB: batches of {engine._batch}, masks {'the same' if same else 'DIFFER'}")
        except RuntimeError as error:
            print(f"with {allowed_mb} MiB: {type(error).__name__}")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device.index)


def workers(options: Options) -> None:
    """One worker process and two on one device: CTs an hour, from HU in memory."""
    one_and_two_workers(options.model, options.device, options.slices[-1], options.seconds)


PARTS: tuple[tuple[str, Callable[[Options], None]], ...] = (
    ("Machine", machine),
    ("Exactness", exactness),
    ("Speed", speed),
    ("What could make the U-Net faster", kept_or_not),
    ("Memory", memory),
    ("Two workers on one GPU", workers),
)

if __name__ == "__main__":
    main()
