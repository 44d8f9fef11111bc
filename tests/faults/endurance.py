"""Kills nodes at every fail point again and again, with many nodes side by side, for hours.

    python -m tests.faults.endurance --rounds 21 [--lanes 8] [--minutes M] [--counts FILE] [--only SCENARIO ...]

In each round a node is killed once at every point; the rounds differ in what dies with it (see `test_kills`). If a life
loses or repeats something, or gets stuck, that is reported at once with its folder, which is kept. The other lives
continue. `--counts` keeps the number of kills at each point, so that one run continues where another ended. The exit
status is 1 if any life failed.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from tests.faults.scenarios import Life
from tests.faults.test_kills import POINTS, SCENARIOS, SCOPES
from tests.zygote import Zygote

Case = tuple[str, str, str]


class Endurance:
    """The counts of all lives so far. lanes: number of nodes side by side. points: (scenario, point) to kill at."""

    def __init__(self, folder: Path, counts: Path | None, lanes: int, points: Sequence[tuple[str, str]]) -> None:
        self._folder = folder
        self._points = points
        self._counts = counts
        self._zygotes = [Zygote(faults=True) for _ in range(lanes)]
        self._free = list(self._zygotes)
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.killed: Counter[str] = Counter(json.loads(counts.read_text()) if counts and counts.exists() else {})
        self.failed = 0
        self.lives = 0

    def live(self, case: Case) -> None:
        """Run one node: kill it once at the case's point, restart it, and check it in the end."""
        name, point, scope = case
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        with self._lock:
            zygote = self._free.pop()
        try:
            node = SCENARIOS[name](Life(zygote, folder, point, scope))
            assert node.died, "the point was never reached"
            shutil.rmtree(folder)
            self._count(case)
        except Exception:  # noqa: BLE001  one life's failure is reported; the others continue
            self._tell(case, folder)
        finally:
            with self._lock:
                self._free.append(zygote)

    def _count(self, case: Case) -> None:
        with self._lock:
            self.killed[" ".join(case)] += 1
            self.lives += 1
            if self._counts:
                self._counts.write_text(json.dumps(self.killed, indent=0, sort_keys=True))
            if self.lives % 50 == 0:
                self.say(f"{self.lives} kills, {self.failed} failed, {time.monotonic() - self._started:.0f} s")

    def _tell(self, case: Case, folder: Path) -> None:
        with self._lock:
            self.failed += 1
            self.say(f"FAILED {' '.join(case)} in {folder}\n{traceback.format_exc()[-6000:]}")

    def say(self, line: str) -> None:
        """A line, at once."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def summary(self) -> str:
        """Kills over all points, and the smallest number at any point."""
        by_point = [sum(self.killed[f"{n} {p} {s}"] for s in SCOPES) for n, p in self._points]
        return (
            f"{sum(by_point)} kills at {len(self._points)} points, at least {min(by_point)} at each; "
            f"{self.failed} lives failed; {time.monotonic() - self._started:.0f} s"
        )

    def stop(self) -> None:
        """End the processes from which nodes are forked."""
        for zygote in self._zygotes:
            zygote.stop()


def main() -> int:
    """Run all rounds that have not been counted yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="kills at each point")
    parser.add_argument("--lanes", type=int, default=8, help="nodes side by side; they wait more than they compute")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no life after this time")
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--only", nargs="*", default=list(SCENARIOS), choices=SCENARIOS, help="scenarios; default: all")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    folder = Path(tempfile.mkdtemp(prefix="endurance-"))
    points = [(name, point) for name, point in POINTS if name in options.only]
    endurance = Endurance(folder, options.counts, options.lanes, points)

    def live(case: Case) -> None:
        if time.monotonic() < end:
            endurance.live(case)

    before = Counter(endurance.killed)
    with ThreadPoolExecutor(options.lanes) as lanes:
        for number, (name, point) in product(range(options.rounds), points):
            case = (name, point, SCOPES[number % len(SCOPES)])
            # Rounds of an earlier run are not repeated.
            if before[" ".join(case)] > 0:
                before[" ".join(case)] -= 1
                continue
            lanes.submit(live, case)
    endurance.stop()
    endurance.say(endurance.summary())
    return 1 if endurance.failed else 0


if __name__ == "__main__":
    sys.exit(main())
