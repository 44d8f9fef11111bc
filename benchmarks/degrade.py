"""Is any series wrongly analysed or wrongly refused? Tests some hundred variants of each series.

    python -m benchmarks.degrade [SERIES_FOLDER ...] [--phantoms 3] [--model NAME ...] [--models-dir DIR] [--verbose]

Each variant is written to files, loaded and checked. What passes goes through every named model, including the mask
gate. A variant that must be refused counts as right only if the reason is right and no model gave a probability. A
harmless variant must be analysed. If it changes no voxel, its probability must not move by more than 1e-6. A model's
output depends only on its input, so each distinct input goes through a model once. Harmless variants that do change
voxels, such as another vendor's padding, go through models only with --thorough.
"""

import argparse
import hashlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.degradations import Images, Variant, read_images, write_images
from benchmarks.variants import all_variants
from inference.covid.loading import load_pipeline
from inference.covid.pipeline import Pipeline
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.models.registry import find_model
from inference.phantom.chest import Scanner, make_phantom
from inference.phantom.series import write_series
from inference.preprocess import clamped
from inference.suitability.check import Policy, check
from inference.volume.ct_volume import CTVolume, upright
from inference.volume.folder import find_series
from inference.volume.load import load

MOST_MOVED = 1e-6


class Models:
    """Models that give probabilities and remember each input."""

    def __init__(self, pipelines: Sequence[Pipeline] = (), *, thorough: bool = False) -> None:
        self.pipelines = tuple(pipelines)
        self.thorough = thorough
        self._seen: dict[tuple[int, str], float | str] = {}

    def probabilities(self, volume: CTVolume) -> tuple[float, ...]:
        """The probability of each model. Raises UnsuitableSeries if any model refuses."""
        return tuple(self._probability(number, volume) for number in range(len(self.pipelines)))

    def _probability(self, number: int, volume: CTVolume) -> float:
        pipeline = self.pipelines[number]
        sha = hashlib.sha256(repr(np.round(volume.spacing_mm, 6)).encode())
        sha.update(np.ascontiguousarray(clamped(upright(volume), pipeline.card.profile.intensity)).data)
        key = (number, sha.hexdigest())
        if key not in self._seen:
            try:
                self._seen[key] = pipeline.run(volume).probability
            except UnsuitableSeries as refusal:
                self._seen[key] = refusal.code
        found = self._seen[key]
        if isinstance(found, str):
            raise UnsuitableSeries(found, "Refused by the model's own gate.")
        return found


@dataclass(frozen=True)
class Base:
    """The undegraded series."""

    volume: CTVolume

    def is_same(self, other: CTVolume) -> bool:
        """True if another volume has the same voxels at the same positions, to a thousandth of a millimetre."""
        one, two = upright(self.volume), upright(other)
        return np.array_equal(one.hu, two.hu) and np.allclose(one.affine, two.affine, atol=1e-3)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one variant. seen: the code, or ANALYSED. moved: the largest change of a probability."""

    series: str
    variant: Variant
    seen: str
    same: bool = True
    moved: float = 0.0
    probabilities: tuple[float, ...] = field(default_factory=tuple)

    @property
    def verdict(self) -> str:
        if not self.variant.codes:
            if self.seen != "ANALYSED":
                return "wrongly refused"
            unchanged = self.same and self.moved <= MOST_MOVED
            return "analysed" if unchanged or not self.variant.same else "analysed, but changed"
        if self.seen == "ANALYSED":
            return "wrongly analysed"
        return "refused rightly" if self.seen in self.variant.codes else "refused for a wrong reason"


RIGHT = ("analysed", "refused rightly")


def try_variant(name: str, images: Images, variant: Variant, base: Base, policy: Policy, models: Models) -> Outcome:
    """Write, load, check and analyse one variant."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(variant.change(images), Path(folder))
        try:
            volume = load(sorted(paths))
            check(volume, policy)
            found = models.probabilities(volume) if variant.codes or variant.same or models.thorough else ()
        except UnsuitableSeries as refusal:
            return Outcome(name, variant, refusal.code)
        except CorruptInstance:
            return Outcome(name, variant, "CORRUPT")
    before = models.probabilities(base.volume) if found else ()
    moved = max((abs(a - b) for a, b in zip(found, before, strict=True)), default=0.0)
    return Outcome(name, variant, "ANALYSED", base.is_same(volume), moved, found)


def try_all(
    name: str,
    volume: CTVolume,
    others: Sequence[Images],
    policy: Policy,
    models: Models,
    share: tuple[int, int] = (1, 1),
    *,
    harmless_only: bool = False,
) -> Iterator[Outcome]:
    """Try every variant of one series, or one of `share[1]` equal shares of them; if asked, only the harmless ones."""
    images, base = read_images(volume), Base(volume)
    for variant in all_variants(others)[share[0] - 1 :: share[1]]:
        if variant.codes and harmless_only:
            continue
        yield try_variant(name, images, variant, base, policy, models)


def phantom_volume(seed: int, folder: Path, *, size: int = 512, slices: int = 110) -> CTVolume:
    """A phantom, written to files and loaded; every third one has padding around its field of view."""
    lesions = ("none", "ground-glass", "consolidation")[seed % 3]
    scanner = Scanner(padding_hu=-3024) if seed % 3 == 2 else Scanner()
    phantom = make_phantom(seed, size=size, slices=slices, lesions=lesions, scanner=scanner)
    return load(write_series(phantom, folder / f"phantom{seed}"))


def _sized_phantom(seed: int, folder: Path) -> CTVolume:
    size, slices = ((512, 60), (256, 120), (256, 40), (384, 80))[seed % 4]
    return phantom_volume(seed, folder, size=size, slices=slices)


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts by series and verdict, and how far the probabilities of unchanged volumes moved."""
    verdicts = sorted({outcome.verdict for outcome in outcomes} | {*RIGHT, "wrongly analysed", "wrongly refused"})
    head = ["series", "variants", *verdicts, "most moved"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for series in [*dict.fromkeys(outcome.series for outcome in outcomes), "all"]:
        chosen = [outcome for outcome in outcomes if series in (outcome.series, "all")]
        counted = Counter(outcome.verdict for outcome in chosen)
        moved = max((o.moved for o in chosen if not o.variant.codes and o.variant.same and o.probabilities), default=0)
        cells = [series, str(counted.total()), *(str(counted[name]) for name in verdicts), f"{moved:.0e}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="folders of series that are fit to be analysed")
    parser.add_argument("--phantoms", type=int, default=3, help="how many phantoms besides")
    parser.add_argument("--first-phantom", type=int, default=0, help="seed of the first")
    parser.add_argument("--model", action="append", default=[], help="a model that analyses what passes; repeatable")
    parser.add_argument("--models-dir", type=Path, default=Path("var/models"), help="folder of imported models")
    parser.add_argument("--only", help="try this series; the others are there to be mixed in")
    parser.add_argument("--share", default="1/1", help="K/N: the K-th of N equal shares of the variants")
    parser.add_argument("--harmless", action="store_true", help="only the variants that must be analysed")
    parser.add_argument("--thorough", action="store_true", help="models also see harmless variants with other voxels")
    parser.add_argument("--verbose", action="store_true", help="a line for every variant")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    pipelines = [load_pipeline(find_model(arguments.models_dir, name), "cpu") for name in arguments.model]
    models = Models(pipelines, thorough=arguments.thorough)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        volumes = {
            f"{folder.name}": load(paths) for folder in arguments.folders for paths in find_series(folder).values()
        }
        seeds = range(arguments.first_phantom, arguments.first_phantom + arguments.phantoms)
        volumes |= {f"phantom {seed}": _sized_phantom(seed, Path(scratch)) for seed in seeds}
        names = list(volumes)
        for index, name in enumerate(names):
            other = read_images(volumes[names[(index + 1) % len(names)]])
            if arguments.only not in (None, name):
                continue
            share = tuple(int(part) for part in arguments.share.split("/"))
            tried = try_all(
                name,
                volumes[name],
                [other],
                Policy(),
                models,
                (share[0], share[1]),
                harmless_only=arguments.harmless,
            )
            for outcome in tried:
                outcomes.append(outcome)
                if arguments.verbose or outcome.verdict not in RIGHT:
                    sys.stdout.write(
                        f"{name}: {outcome.variant.name}: {outcome.seen} {outcome.probabilities or ''}: "
                        f"{outcome.verdict}\n"
                    )
                    sys.stdout.flush()
    sys.stdout.write(table(outcomes) + "\n")
    return 0 if all(outcome.verdict in RIGHT for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
