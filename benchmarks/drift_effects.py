"""What a change of the scanner or a mistake in the preprocessing does to the facts that the watches see: measured.

    python -m benchmarks.drift_effects --phantoms 8

Each phantom is scanned by each of the CONDITIONS and goes through the demonstration model's pipeline. The facts are
written to benchmarks/drift_effects.json, from which `python -m benchmarks.drift` simulates years.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from inference.anatomy.regions import Air, air_in, beyond_field
from inference.covid.card import read_zheng_card
from inference.covid.loading import pipeline_of
from inference.covid.pipeline import Pipeline
from inference.covid.weights import load_networks
from inference.densitometry.calibration import sample_air
from inference.densitometry.lungs import find_lungs
from inference.densitometry.noise import noise_in
from inference.device import choose_device
from inference.errors import UnsuitableSeries
from inference.models.profile import Profile
from inference.models.registry import find_model
from inference.phantom.chest import Scanner, make_phantom
from inference.phantom.lesions import CONFOUNDERS
from inference.phantom.series import write_series
from inference.volume.ct_volume import CTVolume
from inference.volume.load import load

FILE = Path(__file__).with_name("drift_effects.json")
SEEDS_FROM = 30_000
USUAL = Scanner(noise_hu=18, blur_mm=0.75, padding_hu=-1024)


def _same(profile: Profile) -> Profile:
    return profile


def _flipped(profile: Profile) -> Profile:
    return replace(profile, slices=replace(profile.slices, order="descending"))


def _other_window(profile: Profile) -> Profile:
    return replace(profile, intensity=replace(profile.intensity, window_hu=(-1000.0, 400.0)))


@dataclass(frozen=True)
class Condition:
    """How a phantom is scanned, how far its HU are off, and what the preprocessing does."""

    scanner: Scanner = USUAL
    offset_hu: int = 0
    profile: Callable[[Profile], Profile] = _same


CONDITIONS = {
    "usual": Condition(),
    "slices in reverse": Condition(profile=_flipped),
    "another HU window": Condition(profile=_other_window),
    "air at -980 HU": Condition(offset_hu=20),
    "second scanner": Condition(Scanner(noise_hu=12, blur_mm=1.1, padding_hu=-2000)),
    "new scanner": Condition(Scanner(noise_hu=30, blur_mm=0.5, padding_hu=-3024, table=False)),
    "sharp kernel": Condition(replace(USUAL, noise_hu=45, blur_mm=0.35)),
}


def pipelines() -> dict[Callable[[Profile], Profile], Pipeline]:
    """The demonstration model, as it is and with each mistake in its preprocessing."""
    folder = find_model(Path("none"), "demonstration")
    card = read_zheng_card(folder)
    made = {}
    for change in (_same, _flipped, _other_window):
        changed = replace(card, profile=change(card.profile), spread=None)
        made[change] = pipeline_of(changed, *load_networks(folder, card), choose_device("cpu", 0))
    return made


@lru_cache(maxsize=1)
def _scanned(seed: int, scanner: Scanner) -> tuple[CTVolume, bool]:
    """A phantom as the node loads it, and whether it has COVID-19, as every second one has."""
    rng = np.random.default_rng(seed)
    confounders = [name for name in CONFOUNDERS if rng.random() < 0.3]
    lesions = ("none", "ground-glass", "none", "mixed")[seed % 4]
    phantom = make_phantom(seed, slices=40, size=256, lesions=lesions, confounders=confounders, scanner=scanner)
    with tempfile.TemporaryDirectory() as folder:
        return load(write_series(phantom, Path(folder))), phantom.covid


@lru_cache(maxsize=1)
def _hu_facts(seed: int, scanner: Scanner, offset_hu: int) -> dict[str, float | None]:
    volume = _off_by(_scanned(seed, scanner)[0], offset_hu)
    air = air_in(volume)
    trachea = sample_air(volume.hu, volume.spacing_mm, air)
    noise = noise_in(volume.hu, find_lungs(volume.hu, volume.spacing_mm, air), volume.spacing_mm)
    return {"hu_air": _around(volume, air), "hu_trachea": trachea.hu if trachea else None, "noise_hu": noise}


def _off_by(volume: CTVolume, offset_hu: int) -> CTVolume:
    return replace(volume, hu=np.where(volume.hu > -1024, volume.hu + offset_hu, volume.hu).astype(np.int16))


def facts_of(seed: int, condition: Condition, pipeline: Pipeline) -> dict[str, object]:
    """What the node would store of one phantom."""
    scanned, covid = _scanned(seed, condition.scanner)
    volume = _off_by(scanned, condition.offset_hu)
    row: dict[str, object] = {"seed": seed, "covid": covid}
    try:
        verdict = pipeline.run(volume, localise=False)
    except UnsuitableSeries as error:
        return row | {"reason": str(error.code)}
    return row | {
        "probability": verdict.probability,
        "lung_volume_ml": verdict.lung_volume_ml,
        "hu_lung": float(np.median(volume.hu[verdict.lung_mask])),
        **_hu_facts(seed, condition.scanner, condition.offset_hu),
    }


def _around(volume: CTVolume, air: Air) -> float:
    """Median HU of the air around the patient, inside the field of view."""
    inside = air.cells.to_voxels(air.outside & ~beyond_field(air.outside.shape[1:], 0.95))
    values = volume.hu[inside & (volume.hu < -900) & (volume.hu > -1024)]
    return float(np.median(values))


def main() -> None:
    """The command line of `python -m benchmarks.drift_effects`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=8)
    chosen = parser.parse_args()
    made = pipelines()
    rows: dict[str, list[dict[str, object]]] = {}
    for seed in range(SEEDS_FROM, SEEDS_FROM + chosen.phantoms):
        for name, condition in CONDITIONS.items():
            rows.setdefault(name, []).append(facts_of(seed, condition, made[condition.profile]))
            sys.stdout.write(f"{name}: {json.dumps(rows[name][-1])}\n")
            sys.stdout.flush()
    FILE.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
