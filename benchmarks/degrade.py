"""Is any series analysed that must not be, or refused that must not be? Over some hundred variants of each series.

    python -m benchmarks.degrade [SERIES_FOLDER ...] [--phantoms 3] [--verbose]

Each variant is written to files, loaded and checked. A variant that must be refused counts only when the reason is
right. A harmless one must give the very voxels and geometry of the undegraded series, so that any model, given the
same input, gives the same probability; no model needs to run.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.degradations import Images, Variant, read_images, write_images
from benchmarks.variants import all_variants
from inference.ct import CTVolume
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.phantom import Scanner, make_phantom, write_series
from inference.suitability import Policy, check
from inference.volume import find_series, load


@dataclass(frozen=True)
class Outcome:
    """What happened to one variant. seen: the code, or ANALYSED."""

    series: str
    variant: Variant
    seen: str
    same: bool = True

    @property
    def verdict(self) -> str:
        if not self.variant.codes:
            if self.seen != "ANALYSED":
                return "wrongly refused"
            return "analysed" if self.same or not self.variant.same else "analysed, but changed"
        if self.seen == "ANALYSED":
            return "wrongly analysed"
        return "refused rightly" if self.seen in self.variant.codes else "refused for a wrong reason"


RIGHT = ("analysed", "refused rightly")


def try_variant(name: str, images: Images, variant: Variant, digest: str, policy: Policy) -> Outcome:
    """Write, load and check one variant."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(variant.change(images), Path(folder))
        try:
            volume = load(sorted(paths))
            check(volume, policy)
        except UnsuitableSeries as refusal:
            return Outcome(name, variant, refusal.code)
        except CorruptInstance:
            return Outcome(name, variant, "CORRUPT")
        return Outcome(name, variant, "ANALYSED", volume.digest() == digest)


def try_all(name: str, volume: CTVolume, others: Sequence[Images], policy: Policy) -> list[Outcome]:
    """Every variant of one series."""
    images, digest = read_images(volume), volume.digest()
    return [try_variant(name, images, variant, digest, policy) for variant in all_variants(others)]


def phantom_volume(seed: int, folder: Path, *, size: int = 512, slices: int = 110) -> CTVolume:
    """A phantom through files, every third with padding around its field of view."""
    lesions = ("none", "ground-glass", "consolidation")[seed % 3]
    scanner = Scanner(padding_hu=-3024) if seed % 3 == 2 else Scanner()
    phantom = make_phantom(seed, size=size, slices=slices, lesions=lesions, scanner=scanner)
    return load(write_series(phantom, folder / f"phantom{seed}"))


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts by series and verdict."""
    verdicts = sorted({outcome.verdict for outcome in outcomes} | {*RIGHT, "wrongly analysed", "wrongly refused"})
    rows = ["| series | variants | " + " | ".join(verdicts) + " |", "|---" * (len(verdicts) + 2) + "|"]
    for series in [*dict.fromkeys(outcome.series for outcome in outcomes), "all"]:
        counted = Counter(outcome.verdict for outcome in outcomes if series in (outcome.series, "all"))
        rows.append(f"| {series} | {counted.total()} | " + " | ".join(str(counted[name]) for name in verdicts) + " |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="folders of series that are fit to be analysed")
    parser.add_argument("--phantoms", type=int, default=3, help="how many phantoms besides")
    parser.add_argument("--verbose", action="store_true", help="a line for every variant")
    arguments = parser.parse_args()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        volumes = {
            f"{folder.name}": load(paths) for folder in arguments.folders for paths in find_series(folder).values()
        }
        volumes |= {f"phantom {seed}": phantom_volume(seed, Path(scratch)) for seed in range(arguments.phantoms)}
        names = list(volumes)
        for index, name in enumerate(names):
            other = read_images(volumes[names[(index + 1) % len(names)]])
            found = try_all(name, volumes[name], [other], Policy())
            outcomes += found
            for outcome in found:
                if arguments.verbose or outcome.verdict not in RIGHT:
                    sys.stdout.write(f"{name}: {outcome.variant.name}: {outcome.seen}: {outcome.verdict}\n")
    sys.stdout.write(table(outcomes) + "\n")
    return 0 if all(outcome.verdict in RIGHT for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
