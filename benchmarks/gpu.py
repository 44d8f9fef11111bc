"""The GPU path on one card, in one run: exactness, speed, memory, two workers. Prints tables in minutes.

    python -m benchmarks.gpu                       # a GPU machine; random weights and phantoms if nothing else is there
    python -m benchmarks.gpu --models DIR          # a folder of imported models: the authors' weights
    python -m benchmarks.gpu --scans DIR           # also the series of a folder, such as the parity cases
    python -m benchmarks.gpu --device cpu --slices 12 --seconds 2      # to try the script itself, without a GPU

It needs this repository and its environment with a CUDA build of torch, and nothing else. Each part has a process of
its own: one that fails, crashes or hangs says so, and the others go on. Times are medians of several runs after a first
one that warms up, of the whole step, synchronised; those of plain code are of one run, because each takes long.
"""

import argparse
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import gpu_exactness as exact
from benchmarks import gpu_faults as faults
from benchmarks import gpu_variants as variants
from benchmarks.analysis_speed import Clock, Stages, floors, measured, median, ours, random_model, synthetic_volume
from benchmarks.gpu_faults import DEMONSTRATION
from benchmarks.gpu_workers import from_files, one_and_two_workers
from inference.arrays import Grey
from inference.covid.card import read_zheng_card
from inference.covid.loading import load_pipeline
from inference.covid.verdict_input import needed_slices
from inference.covid.weights import load_networks
from inference.device import choose_device
from inference.models.registry import find_model
from inference.preprocess import greys, verdict_range
from inference.volume.ct_volume import CTVolume

PAPER_S = 1.93  # one CT, paper, section 3.3, on a GPU of 2020
ROUNDS = 5


@dataclass(frozen=True)
class Options:
    """What a run is of. trained: not with random weights.  slices: of the two generated volumes.

    limit_s: that a part may take.
    """

    model: Path
    trained: bool
    device: str
    slices: tuple[int, ...]
    scans: Path | None
    seconds: float
    limit_s: float


def main() -> None:
    """Parse the command line and run every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of imported models; without it random weights are used")
    parser.add_argument("--scans", type=Path, help="folder of DICOM series for the exactness")
    parser.add_argument("--device", default="cuda", help='"cuda", "cuda:1", ...; "cpu" tries the script')
    parser.add_argument("--slices", type=int, nargs="+", default=[141, 300])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each window with workers")
    titles = [title for title, _ in PARTS]
    parser.add_argument("--parts", nargs="+", choices=titles, default=titles, help="only some, by their titles")
    parser.add_argument("--limit", type=float, default=100.0, help="seconds that a part may take")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        model = find_model(arguments.models) if arguments.models else random_model(Path(folder))
        trained, slices = bool(arguments.models), tuple(arguments.slices)
        options = Options(model, trained, arguments.device, slices, arguments.scans, arguments.seconds, arguments.limit)
        for title in arguments.parts:
            started = time.perf_counter()
            print(f"\n## {title}\n")
            _apart(title, options)
            print(f"({time.perf_counter() - started:.1f} s)")


def _apart(title: str, options: Options) -> None:
    """Run a part in a process of its own: an error of CUDA ends what its process can do, and memory comes back."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu_exactness", "benchmarks.gpu_workers"])  # torch and all else, once
    process = context.Process(target=_run, args=(title, options))
    process.start()
    process.join(options.limit_s)
    if process.is_alive():
        print(f"FAILED: not done after {options.limit_s:.0f} s")
        os.killpg(process.pid or 0, signal.SIGKILL)  # with the processes that it has started
        process.join()
    elif process.exitcode:
        print(f"FAILED: its process ended with {process.exitcode}")


def _run(title: str, options: Options) -> None:
    os.setsid()
    faulthandler.dump_traceback_later(max(1.0, options.limit_s - 2))  # where it hangs, if it does
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        dict(PARTS)[title](options)
    except Exception as error:  # noqa: BLE001 - whatever a card does, the other parts go on
        traceback.print_exc()
        print(f"FAILED: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


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
        with variants.tf32():
            rates.append(f"TF32 {measured(kind).gflops[torch.float32] / 1000:.1f} TFLOP/s")
        rates.append(f"pageable to the GPU {copied(pinned=False):.1f} GB/s, pinned {copied(pinned=True):.1f} GB/s")
    print("matrix products: " + ", ".join(rates) + f"; memory {found.gbytes:.0f} GB/s")


def copied(*, pinned: bool) -> float:
    """GB/s of a copy to the GPU."""
    host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=pinned)
    device = torch.empty_like(host, device="cuda")
    seconds = variants.seconds_of(lambda: device.copy_(host, non_blocking=True), ROUNDS)
    return host.numel() / seconds / 1e9


# Exactness


def exactness(options: Options) -> None:
    """The shipped model, whose masks are of lungs, and the given one; random weights only without another."""
    print("| model | case | format | Dice of masks | crop | \\|dp\\| | holds |\n|---|---|---|---|---|---|---|")
    volumes = exact.cases(options.slices[0], options.scans)
    exact.compare("demonstration", DEMONSTRATION, options.device, volumes)
    if options.trained:
        exact.compare(read_zheng_card(options.model).name, options.model, options.device, volumes)
    print()
    exact.same_each_time(load_pipeline(options.model, options.device), _generated(options.slices[0]))


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
        variants.plain_code(hu[:24], options.model, options.device, Clock(wall=True))
        plain = variants.plain_code(hu, options.model, options.device, Clock(wall=True))
        with variants.tf32():
            default = variants.plain_code(hu, options.model, options.device, Clock(wall=True))
        profile = pipeline.card.profile
        start, stop = verdict_range(slices, profile.slices)
        needed = len(needed_slices(slices, slices, profile))
        floor = floors({torch.float32: needed}, stop - start, _crop(runs[-1][1][start:stop]), rates)
        _line(slices, "ours", median([run[2] for run in runs]), floor)
        _line(slices, "plain code, float32", plain, {})
        _line(slices, "plain code, TF32 as PyTorch has it by default", default, {})


def _crop(mask: Grey) -> tuple[int, int]:
    """Rows and columns that a mask reaches over, at least two: random weights find no lung."""
    rows, columns = np.flatnonzero(mask.any((0, 2))), np.flatnonzero(mask.any((0, 1)))
    return tuple(int(np.ptp(found)) if len(found) > 2 else 2 for found in (rows, columns))  # type: ignore[return-value]


def _line(slices: int, path: str, stages: Stages, floor: Stages) -> None:
    each = ", ".join(
        f"{name} {1000 * seconds:.1f}" + (f" ({floor[name] / seconds:.0%})" if name in floor else "")
        for name, seconds in stages.items()
    )
    print(f"| {slices} | {path} | {1000 * sum(stages.values()):.1f} | {each} |")


def kept_or_not(options: Options) -> None:
    """What could make the U-Net faster: its time and whether its masks stay the same."""
    card = read_zheng_card(options.model)
    unet, _ = load_networks(options.model, card)
    grey = greys(_generated(options.slices[-1]), card.profile, torch.device("cpu"))
    variants.table(unet, grey, choose_device(options.device))


def _generated(slices: int) -> CTVolume:
    return CTVolume(synthetic_volume(slices), (1.0, 0.7, 0.7), np.eye(4), (), "", "")


# Faults


def memory(options: Options) -> None:
    """The peak, and what happens if it is not there: smaller batches, then the CPU."""
    device, card = choose_device(options.device), read_zheng_card(options.model)
    if device.kind == "cpu":
        print("no GPU: not tried")
        return
    grey = greys(_generated(options.slices[0]), card.profile, torch.device("cpu"))
    faults.exhaustion(load_networks(options.model, card)[0], grey, device)
    faults.taken_over(options.device)


def lost(options: Options) -> None:
    """A GPU that fails in mid-run. The next part shows that a new process finds it again."""
    if choose_device(options.device).kind == "cpu":
        print("no GPU: not tried")
        return
    faults.lost(options.device)


# Throughput


def workers(options: Options) -> None:
    """One worker process and two on one device: CTs an hour, from HU in memory."""
    one_and_two_workers(options.model, options.device, options.slices[-1], options.seconds)


def end_to_end(options: Options) -> None:
    """From DICOM files to a finding, on this device and on the CPU."""
    from_files(options.model if options.trained else DEMONSTRATION, options.device, options.slices[0])


PARTS: tuple[tuple[str, Callable[[Options], None]], ...] = (
    ("Machine", machine),
    ("Exactness", exactness),
    ("Speed", speed),
    ("What could make the U-Net faster", kept_or_not),
    ("Memory", memory),
    ("A GPU that fails in mid-run", lost),
    ("Two workers on one GPU", workers),
    ("End to end", end_to_end),
)

if __name__ == "__main__":
    main()
