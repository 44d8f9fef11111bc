"""Does the localised region overlap the lesions, and does it follow them? Tested on phantoms, whose lesions are known.

    python -m benchmarks.localisation --count 160                  # demonstration model
    python -m benchmarks.localisation --model DIR --size 512 --slices 60 --count 20
    python -m benchmarks.localisation --count 20 --unet            # lungs from the U-Net as in the node: slower

Every phantom goes through the whole pipeline. Without --unet, its true lung mask replaces the U-Net's, because the
U-Net takes nine tenths of the time and plays no part in the localisation. As in the node, only positive results are
localised. Each region is compared with two that no network made: a ball of the same volume at a random place in the
lungs, and both lungs. A hit means that the hottest voxel of the region, through which the summary image passes, lies in
a lesion. For the baselines it means that a random voxel does.
"""

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inference.arrays import Grey, Mask
from inference.covid.card import read_zheng_card
from inference.covid.kept_masks import KeptMasks
from inference.covid.localisation import Localiser
from inference.covid.occlusion import explain
from inference.covid.pipeline import Pipeline
from inference.covid.segmentation import Segmentation
from inference.covid.streamed import StreamedDecovnet
from inference.covid.verdict import Verdict
from inference.covid.weights import load_networks
from inference.device import choose_device
from inference.errors import UnsuitableSeries
from inference.lungs.engine import open_unet
from inference.models.cards import shipped_folder
from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.phantom.lesions import CONFOUNDERS, LESIONS, LesionSettings
from inference.volume.ct_volume import CTVolume

ALWAYS = 1e-9  # a threshold that every result reaches
MOVED_RADIUS_MM, MOVED_HU = 30.0, -150


class KnownLungs(Segmentation):
    """Returns the given lungs of one phantom in place of the U-Net's mask; for None, the U-Net's own."""

    lungs: Mask | None = None

    def raw_masks(self, grey: Grey, chosen: npt.NDArray[np.intp] | None = None, kept: KeptMasks | None = None) -> Grey:
        if self.lungs is None:
            return super().raw_masks(grey, chosen, kept)
        nearest = np.rint(np.linspace(0, len(self.lungs) - 1, len(grey))).astype(int)
        mask: Grey = self.lungs[nearest].view(np.uint8)
        return mask[::-1] if self._profile.slices.order == "descending" else mask


class KnownPipeline(Pipeline):
    """A pipeline that can be given the lungs."""

    segmentation: KnownLungs


def open_pipeline(folder: Path, threshold: float | None = None) -> KnownPipeline:
    """A model on the CPU. threshold: replaces the card's."""
    card, device = read_zheng_card(folder), choose_device("cpu", 1)
    unet, decovnet = load_networks(folder, card)
    engine = open_unet(unet, device, "float32")
    localiser = Localiser(decovnet)
    card = card if threshold is None else replace(card, threshold=threshold)
    lungs = KnownLungs(engine, engine, card.profile, device)
    return KnownPipeline(card, lungs, StreamedDecovnet(decovnet, device), localiser, device)


def analysed(pipeline: KnownPipeline, phantom: Phantom, hu: npt.NDArray[np.int16], unet: bool = False) -> Verdict:
    """The finding on a phantom with `hu` as its voxels."""
    pipeline.segmentation.lungs = None if unet else phantom.lung_mask
    return pipeline.run(volume_of(phantom, hu))


def volume_of(phantom: Phantom, hu: npt.NDArray[np.int16]) -> CTVolume:
    """`hu` on the phantom's grid as a volume without files."""
    affine = np.diag([*phantom.spacing_mm[::-1], 1.0])
    return CTVolume(hu, phantom.spacing_mm, affine, (), "1.2.3", "1.2.4")


def iou(one: Mask, other: Mask) -> float:
    """Intersection over union; 0 for two empty masks."""
    return float(np.count_nonzero(one & other)) / max(1, np.count_nonzero(one | other))


def random_ball(lungs: Mask, voxels: int, spacing_mm: tuple[float, float, float], rng: np.random.Generator) -> Mask:
    """The `voxels` voxels of the lungs that are nearest to a random lung voxel."""
    places = np.argwhere(lungs)
    distance = (((places - places[rng.integers(len(places))]) * np.array(spacing_mm)) ** 2).sum(axis=1)
    chosen = places[np.argsort(distance, kind="stable")[:voxels]]
    ball = np.zeros(lungs.shape, bool)
    ball[tuple(chosen.T)] = True
    return ball


def hottest(finding: Verdict) -> tuple[int, ...]:
    """The hottest voxel of the region, or of the whole heat map if there is no region."""
    assert finding.heat is not None and finding.localisation is not None
    shown = np.where(finding.localisation, finding.heat, 0) if finding.localisation.any() else finding.heat
    return tuple(int(i) for i in np.unravel_index(shown.argmax(), shown.shape))


def with_lesion(phantom: Phantom, centre: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
    """The phantom's voxels with a ball of dense lung around `centre` (z, y, x voxels)."""
    z, y, x = np.ogrid[tuple(slice(0, size) for size in phantom.hu.shape)]
    steps = ((index - at) * mm for index, at, mm in zip((z, y, x), centre, phantom.spacing_mm, strict=True))
    inside = sum(step**2 for step in steps) < MOVED_RADIUS_MM**2
    return np.where(inside & phantom.lung_mask, np.maximum(phantom.hu, np.int16(MOVED_HU)), phantom.hu)


def two_places(phantom: Phantom) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The middle of the lower half of one lung and of the upper half of the other: (z, y, x) voxels."""
    places, middle = np.argwhere(phantom.lung_mask), phantom.hu.shape[2] / 2
    low = places[:, 0] < np.median(places[:, 0])
    left = places[:, 2] > middle
    return places[low & left].mean(axis=0), places[~low & ~left].mean(axis=0)


def follows(pipeline: KnownPipeline, phantom: Phantom) -> bool:
    """True when the hottest voxel of each of two lesions lies nearer to that lesion than to the other's place."""
    places = two_places(phantom)
    found = []
    for own, other in (places, places[::-1]):
        at = np.array(hottest(analysed(pipeline, phantom, with_lesion(phantom, own))))
        own_mm, other_mm = (np.linalg.norm((at - place) * phantom.spacing_mm) for place in (own, other))
        found.append(own_mm < other_mm)
    return all(found)


def fall(pipeline: KnownPipeline, phantom: Phantom) -> tuple[float, float]:
    """How far a positive result's log-odds fall without the region, and without as much lung elsewhere (mean)."""
    pipeline.segmentation.lungs = phantom.lung_mask
    found = explain(pipeline, volume_of(phantom, phantom.hu), zones=False)
    before, (region, *elsewhere) = found.log_odds, found.occlusions
    return before - region.log_odds, before - float(np.mean([part.log_odds for part in elsewhere]))


@dataclass(frozen=True)
class Shapes:
    """How phantoms are drawn. confounders: how often each finding that is not COVID-19 is present too."""

    size: int
    slices: int
    confounders: float = 0.0


def draw(seed: int, shapes: Shapes) -> Phantom:
    """A phantom with lesions; its scanner and their kind and density are drawn. No model was trained on these seeds."""
    rng = np.random.default_rng((seed, 7))
    scanner = Scanner(
        noise_hu=float(rng.uniform(8, 45)),
        blur_mm=float(rng.uniform(0.4, 1.5)),
        padding_hu=[None, -2000][int(rng.integers(2))],
        field_mm=float(rng.uniform(330, 430)),
    )
    settings = LesionSettings(count=(3, 8), radius_mm=(13, 34), ground_glass_hu=(220, 420), peripheral=0.9)
    return make_phantom(
        9_000_000 + seed,
        slices=shapes.slices + int(rng.integers(8)),
        size=shapes.size,
        lesions=str(rng.choice(LESIONS[1:])),
        lesion_settings=settings,
        confounders=[name for name in CONFOUNDERS if rng.random() < shapes.confounders],
        scanner=scanner,
    )


@dataclass(frozen=True)
class Row:
    """Overlap with the lesions, and hit, for the region and both baselines."""

    region: tuple[float, float]
    random: tuple[float, float]
    lungs: tuple[float, float]
    share: float
    true_share: float
    seconds: float


def row_of(finding: Verdict, phantom: Phantom, rng: np.random.Generator) -> Row:
    """One localised phantom and its baselines."""
    region, lungs, lesions = finding.localisation, finding.lung_mask, phantom.lesion_mask
    assert region is not None
    ball = random_ball(lungs, np.count_nonzero(region), phantom.spacing_mm, rng)
    in_ball = np.count_nonzero(ball & lesions) / max(1, np.count_nonzero(ball))
    in_lungs = np.count_nonzero(lungs & lesions) / np.count_nonzero(lungs)
    return Row(
        region=(iou(region, lesions), float(region.any() and lesions[hottest(finding)])),
        random=(iou(ball, lesions), in_ball),
        lungs=(iou(lungs, lesions), in_lungs),
        share=np.count_nonzero(region) / np.count_nonzero(lungs),
        true_share=in_lungs,
        seconds=finding.timings_s["localisation"],
    )


def table(rows: list[Row]) -> str:
    """IoU and hit rate of the region and the baselines."""
    lines = ["| region | IoU mean | IoU median | IoU 5th to 95th percentile | hit rate |", "|---|---|---|---|---|"]
    for name, title in (("region", "localised"), ("random", "random ball, same volume"), ("lungs", "both lungs")):
        values = np.array([getattr(row, name) for row in rows])
        low, middle, high = np.percentile(values[:, 0], (5, 50, 95))
        mean, hit = values.mean(axis=0)
        lines.append(f"| {title} | {mean:.3f} | {middle:.3f} | {low:.3f} to {high:.3f} | {hit:.3f} |")
    return "\n".join(lines)


def localised_rows(pipeline: KnownPipeline, seeds: list[int], shapes: Shapes, unet: bool) -> dict[int, Row | str]:
    """For each phantom, its row or why there is none: "negative", or the code of a refusal."""
    found: dict[int, Row | str] = {}
    for seed in seeds:
        phantom = draw(seed, shapes)
        try:
            finding = analysed(pipeline, phantom, phantom.hu, unet)
        except UnsuitableSeries as error:
            found[seed] = error.code
            continue
        found[seed] = row_of(finding, phantom, np.random.default_rng(seed)) if finding.positive else "negative"
    return found


def kept(file: Path | None) -> dict[int, Row | str]:
    """The results of earlier parts of a run."""
    if file is None or not file.is_file():
        return {}
    return {
        int(seed): Row(**row) if isinstance(row, dict) else row for seed, row in json.loads(file.read_text()).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=shipped_folder() / "demonstration")
    parser.add_argument("--count", type=int, default=160, help="phantoms with lesions")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--keep", type=Path, help="file that keeps the rows, so that a run can be made in parts")
    parser.add_argument("--moved", type=int, default=20, help="phantoms in which a lesion is moved")
    parser.add_argument("--occluded", type=int, default=20, help="positive phantoms that the region is taken from")
    parser.add_argument("--size", type=int, default=256, help="rows and columns")
    parser.add_argument("--slices", type=int, default=44)
    parser.add_argument("--confounders", type=float, default=0.0, help="share of phantoms with each of them")
    parser.add_argument("--unet", action="store_true", help="lungs as the U-Net finds them")
    arguments = parser.parse_args()
    shapes = Shapes(arguments.size, arguments.slices, arguments.confounders)
    pipeline, started, out = open_pipeline(arguments.model), time.process_time(), sys.stdout.write
    out(f"model {pipeline.identity.name} {pipeline.identity.version}, digest {pipeline.identity.digest[:12]}\n")
    seeds = list(range(arguments.first, arguments.first + arguments.count))
    found = kept(arguments.keep) | localised_rows(pipeline, seeds, shapes, arguments.unet)
    if arguments.keep:
        plain = {seed: row if isinstance(row, str) else vars(row) for seed, row in found.items()}
        arguments.keep.write_text(json.dumps(plain))
    rows = {seed: row for seed, row in found.items() if isinstance(row, Row)}
    others = Counter(row for row in found.values() if isinstance(row, str))
    out(f"{len(rows)} of {len(found)} phantoms with lesions are positive and localised; others: {dict(others)}\n")
    out(table(list(rows.values())) + "\n")
    shares = [100 * np.mean([getattr(row, name) for row in rows.values()]) for name in ("share", "true_share")]
    out(f"localised {shares[0]:.1f} % of the lungs on average, lesions are {shares[1]:.1f} %\n")
    out(f"localisation: {1000 * np.median([row.seconds for row in rows.values()]):.0f} ms at the median\n")
    if arguments.occluded:
        falls = [fall(pipeline, draw(seed, shapes)) for seed in list(rows)[: arguments.occluded]]
        without, elsewhere = np.median(falls, axis=0)
        out(f"taken away, the log-odds fall by {without:.2f} (median of {len(falls)} phantoms); ")
        out(f"as much lung elsewhere: by {elsewhere:.2f}\n")
    if arguments.moved:
        always = open_pipeline(arguments.model, ALWAYS)
        bodies = (make_phantom(n, slices=arguments.slices, size=arguments.size) for n in range(arguments.moved))
        followed = sum(follows(always, phantom) for phantom in bodies)
        out(f"one lesion in two places: the hottest voxel follows in {followed} of {arguments.moved} phantoms\n")
    out(f"all of it: {time.process_time() - started:.0f} s of CPU\n")


if __name__ == "__main__":
    main()
