"""What a lung densitometry costs beside the COVID-19 pipeline, and how near it comes to known emphysema.

python -m benchmarks.densitometry cost --models DIR     CPU seconds on a phantom of 300 slices of 512 x 512
python -m benchmarks.densitometry truth                 errors on phantoms of known emphysema
python -m benchmarks.densitometry noise                 what noise and kernels do to the share of low attenuation
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from inference.covid.loading import load_pipeline
from inference.densitometry import codes
from inference.densitometry.model import Densitometry
from inference.densitometry.settings import Settings
from inference.evaluation.overlap import dice
from inference.models.registry import find_model
from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.phantom.emphysema import EmphysemaSettings
from inference.plug import Output
from inference.suitability.policy import Policy
from inference.volume.ct_volume import CTVolume, SeriesHeader, SourceSlice


def main() -> None:
    """Print one JSON line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "truth", "noise"))
    parser.add_argument("--models", type=Path, help="folder of imported models; without it only densitometry is timed")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    given = parser.parse_args()
    rows = {"cost": cost, "truth": truth, "noise": noise}[given.what](given)
    for row in rows:
        print(json.dumps(row), flush=True)


def cost(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """CPU seconds of all threads, for the volume in memory."""
    made = scanned(2, 0.15, given)
    volume = volume_of(made)
    model = Densitometry(Settings(), Policy())
    seconds = cpu_seconds(lambda: model.analyse(volume))
    yield {"densitometry_cpu_s": round(seconds, 1), "shape": list(made.hu.shape)}
    if given.models:
        pipeline = load_pipeline(find_model(given.models), "cpu")
        beside = replace(volume)  # as the node has it: loaded once, seen by one model after the other
        other = cpu_seconds(lambda: pipeline.run(beside))
        after = cpu_seconds(lambda: model.analyse(beside))
        yield {"covid_cpu_s": round(other, 1), "model": pipeline.identity.name, "alone": round(seconds / other, 3)}
        yield {"densitometry_after_covid_cpu_s": round(after, 1), "ratio": round(after / other, 3)}
    sharp = replace(volume, header=replace(volume.header, kernel="B60f"))
    yield {"densitometry_of_a_sharp_kernel_cpu_s": round(cpu_seconds(lambda: model.analyse(sharp)), 1)}


def truth(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Known emphysema against what is measured, in percent and percentage points."""
    for seed, share in ((1, 0.0), (2, 0.05), (3, 0.15), (4, 0.25), (5, 0.35)):
        made = scanned(seed, share, given)
        output = analysed(made)
        lungs = output.segments[0].mask | output.segments[1].mask
        yield {"seed": seed, **compared(made, output), "dice": round(dice(lungs, made.lung_mask), 4)}


def noise(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """The same chest at rising noise, and with sharp kernels, smoothed and not."""
    for noise_hu in (6, 12, 18, 25):
        made = scanned(2, 0.15, given, Scanner(noise_hu=noise_hu))
        yield {"noise_hu": noise_hu, "kernel": "soft", **compared(made, analysed(made))}
    for noise_hu, blur_mm in ((45, 0.35), (70, 0.30)):
        made = scanned(2, 0.15, given, Scanner(noise_hu=noise_hu, blur_mm=blur_mm))
        for kernel in ("B30f", "B60f"):
            row = compared(made, analysed(made, kernel))
            yield {"noise_hu": noise_hu, "kernel": "sharp", "smoothed": kernel == "B60f", **row}


def scanned(seed: int, share: float, given: argparse.Namespace, scanner: Scanner | None = None) -> Phantom:
    scanner = scanner or Scanner(noise_hu=10.0)
    emphysema = EmphysemaSettings(share)
    return make_phantom(seed, slices=given.slices, size=given.size, scanner=scanner, emphysema=emphysema)


def volume_of(made: Phantom, kernel: str = "B30f") -> CTVolume:
    """The phantom as a volume without files."""
    slices = tuple(SourceSlice(Path(), str(z), "", 0, (0.0, 0.0, 0.0)) for z in range(len(made.hu)))
    header = SeriesHeader(modality="CT", kernel=kernel, age_years=60.0)
    return CTVolume(made.hu, made.spacing_mm, np.diag([*made.spacing_mm[::-1], 1.0]), slices, "1.2", "1.3", header)


def analysed(made: Phantom, kernel: str = "B30f") -> Output:
    return Densitometry(Settings(), Policy()).analyse(volume_of(made, kernel))


def compared(made: Phantom, output: Output) -> dict[str, object]:
    """Of both lungs."""
    found = next(item.value for item in output.measurements if item.concept.is_same(codes.LAA_PERCENT))
    known = 100 * made.emphysema.share if made.emphysema else 0.0
    return {"known": round(known, 2), "measured": round(found, 2), "error": round(found - known, 2)}


def cpu_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main()
