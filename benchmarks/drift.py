"""How soon the watches find a planted shift, and how often they cry wolf: simulated years of several hospitals.

    python -m benchmarks.drift --years 5 --runs 10

Prints two tables: false alarms of each watch in years without a shift, assessed once a day; and for each shift how
many studies and days pass until an alarm, assessed every six hours. The facts of the studies come from
benchmarks/drift_effects.json, which `python -m benchmarks.drift_effects` measures on phantoms. The same seed gives
the same tables.
"""

import argparse
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np

from benchmarks.drift_sites import DAY, SHIFTS, START, Site
from dicom_node.watch.assessment import Level
from dicom_node.watch.reference import Reference
from dicom_node.watch.studies import Study
from dicom_node.watch.thresholds import LOOK_BACK_STUDIES, REFERENCE_PERIOD, WINDOW
from dicom_node.watch.watches import assess

SIZES = (5, 20, 60)  # studies a working day
YEAR_DAYS, LOOKED_FOR_DAYS, QUIET_DAYS = 365, 60, 40
EVERY = timedelta(hours=6)

Key = tuple[str, str, str]  # watch, fact, scanner


class Found(NamedTuple):
    """How a shift was found. studies: those that it affected, until the alarm."""

    studies: int
    days: float
    by: str


def reference_of(site: Site) -> tuple[Reference, int]:
    """The site's reference, and the first day after it."""
    studies: list[Study] = []
    for day, of_day in enumerate(site.days(0, 2 * REFERENCE_PERIOD.days), 1):
        studies += of_day
        if Reference.due(studies, START + day * DAY):
            return Reference.of(studies), day
    raise ValueError(f"no reference after {2 * REFERENCE_PERIOD.days} days")


def alarms(reference: Reference, studies: list[Study], now: datetime) -> set[Key]:
    """The alarms that stand at a time. studies: all since the reference, in order."""
    first = bisect_left(studies, now - WINDOW, key=lambda study: study.when)
    given = studies[max(0, min(first, len(studies) - LOOK_BACK_STUDIES)) :]
    found = assess(reference, given, now)
    return {(each.watch, each.fact, each.scanner) for each in found if each.level is Level.ALARM}


def stable_year(per_day: int, seed: int) -> Counter[str]:
    """How often each watch began an alarm in a year in which nothing changed."""
    site = Site(per_day, seed)
    reference, first = reference_of(site)
    studies: list[Study] = []
    standing: set[Key] = set()
    begun: Counter[str] = Counter()
    for day, of_day in enumerate(site.days(first, YEAR_DAYS), first + 1):
        studies += of_day
        now = alarms(reference, studies, START + day * DAY)
        begun.update(watch for watch, _, _ in now - standing)
        standing = now
    return begun


def all_shifts(per_day: int, seed: int) -> dict[str, Found | None]:
    """When each shift is found at a site; None if it is not within 60 days."""
    site = Site(per_day, seed)
    reference, first = reference_of(site)
    studies = [study for of_day in site.days(first, QUIET_DAYS) for study in of_day]
    found = {}
    for name, shift in SHIFTS.items():
        shifting = deepcopy(site)
        shifting.shift, shifting.shifts_at = shift, START + (first + QUIET_DAYS) * DAY
        found[name] = _shifted(shifting, reference, first + QUIET_DAYS, list(studies))
    return found


def _shifted(site: Site, reference: Reference, since: int, studies: list[Study]) -> Found | None:
    """site: whose shift begins on the day `since`.  studies: up to that day."""
    begin = START + since * DAY
    before = alarms(reference, studies, begin)
    for day, of_day in enumerate(site.days(since, LOOKED_FOR_DAYS)):
        for part in range(1, DAY // EVERY + 1):
            until = begin + day * DAY + part * EVERY
            arrived = [study for study in of_day if until - EVERY < study.when <= until]
            studies += arrived
            new = alarms(reference, studies, until) - before if arrived else set()
            if new:
                return _found(site, studies, until, new)
    return None


def _found(site: Site, studies: list[Study], now: datetime, new: set[Key]) -> Found:
    affected = [study for study in studies if study.when > site.shifts_at]
    affected = [study for study in affected if study.scanner_model in site.shift.affects]
    watch, fact, _ = min(new)
    return Found(len(affected), (now - site.shifts_at) / DAY, f"{watch}: {fact}")


def false_alarms(years: int, seed: int, pool: ProcessPoolExecutor) -> None:
    """Print the table of stable years."""
    counts: dict[str, dict[int, list[int]]] = defaultdict(dict)
    for size in SIZES:
        begun = list(pool.map(stable_year, [size] * years, range(seed, seed + years)))
        for watch in {*WATCHES, *(name for year in begun for name in year)}:
            counts[watch][size] = [year[watch] for year in begun]
    _row("watch", *(f"{size} studies a day" for size in SIZES))
    _row(*["---"] * (len(SIZES) + 1))
    for watch in sorted(counts):
        _row(watch, *(f"{np.mean(of_year):.2f} ({max(of_year)})" for of_year in counts[watch].values()))


def delays(runs: int, seed: int, pool: ProcessPoolExecutor) -> None:
    """Print the table of shifts."""
    outcomes = {size: list(pool.map(all_shifts, [size] * runs, range(seed, seed + runs))) for size in SIZES}
    _row("shift", "studies a day", "found", "studies until then", "days until then", "mostly found by")
    _row(*["---"] * 6)
    for name in SHIFTS:
        for size, of_size in outcomes.items():
            found = [each for run in of_size if (each := run[name])]
            by = Counter(each.by for each in found).most_common(1)
            spans = (_span([each.studies for each in found]), _span([each.days for each in found]))
            _row(name, str(size), f"{len(found)} of {runs}", *spans, by[0][0] if by else "")


def _span(values: Iterable[float]) -> str:
    """Median, and 90% of the runs."""
    known = list(values)
    return f"{np.median(known):.3g} ({np.quantile(known, 0.9):.3g})" if known else ""


def _row(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


WATCHES = (
    "distribution",
    "mix",
    "new value",
    "control chart",
    "positive rate",
    "positive rate CUSUM",
    "refusals",
    "turnaround",
)


def main() -> None:
    """The command line of `python -m benchmarks.drift`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=5, help="of each size of site, without a shift")
    parser.add_argument("--runs", type=int, default=10, help="of each shift and size of site")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    with ProcessPoolExecutor(chosen.processes) as pool:
        false_alarms(chosen.years, chosen.seed, pool)
        sys.stdout.write("\n")
        delays(chosen.runs, chosen.seed, pool)


if __name__ == "__main__":
    main()
