"""How long one series took, whoever took it, and the tables of that."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LAST = "SR at PACS"
MOMENTS = ("complete", "chosen", "claimed", "result", LAST)


@dataclass(frozen=True)
class Case:
    """What is sent. rate: slices a second of each series; 0 is unlimited."""

    slices: int
    at_once: int
    rate: float


@dataclass
class Taken:
    """How one series went, in seconds.

    moments: from its last slice.  stages: of the analysis, as its result keeps them.
    cpu_s: of all processes of the receiver, from the end of its sender to the report; 0 if that is not known.
    storescu_ended: from the last slice in the index.  sending_s: of its sender.  load: of the machine just before.
    """

    moments: dict[str, float]
    stages: dict[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0
    storescu_ended: float = 0.0
    sending_s: float = 0.0
    load: float = 0.0


Found = Mapping[Case, Mapping[str, Sequence[Taken]]]
"""By case and by the name of what took the series."""


def print_moments(found: Found) -> None:
    """Markdown: seconds from the last slice, median (worst)."""
    print(f"\n| slices | series at once | slices/s | system | series | {' | '.join(MOMENTS)} | CPU |")
    print("|---|---|---|---|---|---|" + "---|" * len(MOMENTS))
    for case, systems in found.items():
        for name, taken in systems.items():
            cells = [middle_and_worst([one.moments[m] for one in taken if m in one.moments]) for m in MOMENTS]
            cells.append(middle_and_worst([one.cpu_s for one in taken if one.cpu_s]))
            what = (case.slices, case.at_once, f"{case.rate:g}" if case.rate else "unlimited", name, len(taken))
            print(f"| {' | '.join(map(str, (*what, *cells)))} |")


def print_stages(found: Found) -> None:
    """Markdown: seconds of the stages that the results keep, medians."""
    every = [one for systems in found.values() for taken in systems.values() for one in taken]
    names = list(dict.fromkeys(stage for one in every for stage in one.stages))
    print(f"\n| slices | series at once | slices/s | system | {' | '.join(names)} |")
    print("|---|---|---|---|" + "---|" * len(names))
    for case, systems in found.items():
        for name, taken in systems.items():
            kept = [[one.stages[stage] for one in taken if stage in one.stages] for stage in names]
            cells = [f"{statistics.median(values):.2f}" if values else "" for values in kept]
            print(f"| {case.slices} | {case.at_once} | {case.rate:g} | {name} | {' | '.join(cells)} |")


def middle_and_worst(values: Sequence[float]) -> str:
    """For a cell: "median (worst)", or nothing if there are none."""
    return f"{statistics.median(values):.2f} ({max(values):.2f})" if values else ""
