"""Simulated hospitals: streams of studies with the facts that phantoms were measured to have, and planted shifts."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from benchmarks.drift_effects import FILE
from dicom_node.watch.studies import Study

START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
DAY = timedelta(days=1)
WEEKEND = 0.3  # of a working day's studies
THRESHOLD = 0.5
# What phantoms lack: how far patients and days lie apart, as standard deviations. The probability's is of its log-odds.
SPREAD = {"hu_air": 3.0, "hu_trachea": 8.0, "hu_lung": 20.0, "noise_hu": 3.0, "lung_volume_ml": 600.0}
SPREAD_LOG_ODDS = 1.5
QUEUED = 0.3  # of the turnaround
REFUSED = {"LOCALIZER": 0.02, "LUNG_CUT_OFF": 0.01, "DERIVED": 0.005}


@dataclass(frozen=True)
class Machine:
    """A scanner: its header, how its phantoms were scanned, and its share of the studies."""

    model: str
    kernel: str
    condition: str
    share: float
    software: str = "VA40A"


FIRST = Machine("Force", "Br40d", "usual", 0.6)
SECOND = Machine("Edge", "B50f", "second scanner", 0.4)


@dataclass(frozen=True)
class Shift:
    """What changes at a site.

    machines: those there are afterwards.  mistake: the condition whose difference from the usual one is added to all.
    grows: days until the whole effect is there.  affects: models of the scanners concerned.
    """

    machines: tuple[Machine, ...] = (FIRST, SECOND)
    prevalence: float = 0.2
    mistake: str = ""
    grows: float = 0.0
    affects: frozenset[str] = frozenset({"Force", "Edge"})


STABLE = Shift()


def _first(**changed: object) -> tuple[Machine, ...]:
    return (Machine(**{**vars(FIRST), **changed}), SECOND)


FORCE = frozenset({"Force"})
SHIFTS: Mapping[str, Shift] = {
    "a new scanner": Shift((FIRST, SECOND, Machine("Apex", "Br44", "new scanner", 0.3)), affects=frozenset({"Apex"})),
    "a sharp kernel, by its name": Shift(_first(kernel="Br60f", condition="sharp kernel"), affects=FORCE),
    "a sharp kernel under the old name": Shift(_first(condition="sharp kernel"), affects=FORCE),
    "HU 20 too high at once": Shift(_first(condition="air at -980 HU"), affects=FORCE),
    "HU 20 too high in 30 days": Shift(_first(condition="air at -980 HU"), grows=30, affects=FORCE),
    "prevalence 20% to 30%": Shift(prevalence=0.3),
    "prevalence 20% to 40%": Shift(prevalence=0.4),
    "slices in reverse": Shift(mistake="slices in reverse"),
    "another HU window": Shift(mistake="another HU window"),
}


@dataclass
class Site:
    """A hospital with so many studies a working day. shift: what changes at `shifts_at`."""

    per_day: float
    seed: int
    shift: Shift = STABLE
    shifts_at: datetime | None = None
    rows: Mapping[str, list[dict[str, float]]] = field(default_factory=lambda: json.loads(FILE.read_text()))

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def days(self, first: int, count: int) -> Iterator[list[Study]]:
        """The studies of each day, in order; days count from START."""
        for day in range(first, first + count):
            start = START + day * DAY
            expected = self.per_day * (WEEKEND if start.weekday() >= 5 else 1.0)
            hours = np.sort(self._rng.uniform(7, 19, self._rng.poisson(expected)))
            yield [self._study(start + timedelta(hours=float(hour))) for hour in hours]

    def _study(self, when: datetime) -> Study:
        shifted = self.shifts_at is not None and when >= self.shifts_at
        shift = self.shift if shifted else STABLE
        machine = self._one_of(shift.machines)
        if reason := self._refusal():
            return self._refused(when, machine, reason)
        number = 2 * int(self._rng.integers(len(self.rows["usual"]) // 2)) + (self._rng.random() < shift.prevalence)
        row, wrong = self.rows[machine.condition][number], self.rows[shift.mistake or "usual"][number]
        if reason := row.get("reason") or wrong.get("reason"):
            return self._refused(when, machine, str(reason))
        if shifted and shift.grows:
            row = self._on_the_way(row, machine, number, when)
        if shift.mistake:
            usual = self.rows["usual"][number]
            row = {fact: row[fact] + wrong[fact] - usual[fact] for fact in usual}
        return self._analysed(when, machine, row)

    def _on_the_way(self, row: dict[str, float], machine: Machine, number: int, when: datetime) -> dict[str, float]:
        """The facts of a phantom while a shift grows."""
        before = {each.model: each.condition for each in STABLE.machines}[machine.model]
        grown = min(1.0, (when - (self.shifts_at or when)) / timedelta(days=self.shift.grows))
        usual = self.rows[before][number]
        return {fact: usual[fact] + grown * (row[fact] - usual[fact]) for fact in usual}

    def _one_of(self, machines: tuple[Machine, ...]) -> Machine:
        at = self._rng.random() * sum(machine.share for machine in machines)
        for machine in machines[:-1]:
            at -= machine.share
            if at < 0:
                return machine
        return machines[-1]

    def _refusal(self) -> str:
        at = self._rng.random()
        for reason, share in REFUSED.items():
            at -= share
            if at < 0:
                return reason
        return ""

    def _header(self, when: datetime, machine: Machine) -> dict[str, object]:
        rng = self._rng
        thickness = (1.0, 1.0, 1.0, 1.5, 3.0)[int(rng.integers(5))]
        return {
            "when": when,
            "manufacturer": "Phantom",
            "scanner_model": machine.model,
            "kernel": machine.kernel,
            "software": machine.software,
            "sex": "F" if rng.random() < 0.46 else "M",
            "thickness_mm": thickness,
            "spacing_mm": thickness * (0.7 if rng.random() < 0.5 else 1.0),
            "pixel_mm": float(rng.uniform(0.6, 0.9)),
            "kv": (100.0, 100.0, 120.0, 120.0, 140.0)[int(rng.integers(5))],
            "mas": float(rng.lognormal(4.4, 0.4)),
            "age_years": float(min(max(rng.normal(61, 16), 18), 100) // 1),
            "turnaround_s": (turnaround_s := float(rng.lognormal(4.0, 0.5))),
            "queue_s": QUEUED * turnaround_s,
        }

    def _analysed(self, when: datetime, machine: Machine, row: dict[str, float]) -> Study:
        """A measured phantom, moved by what phantoms lack."""
        facts = {name: row[name] + spread * float(self._rng.standard_normal()) for name, spread in SPREAD.items()}
        share = min(max(row["probability"], 0.001), 0.999)
        log_odds = np.log(share / (1 - share)) + SPREAD_LOG_ODDS * self._rng.standard_normal()
        probability = float(1 / (1 + np.exp(-log_odds)))
        judged = {"probability": probability, "positive": probability >= THRESHOLD}
        return Study(**self._header(when, machine), **facts, **judged)

    def _refused(self, when: datetime, machine: Machine, reason: str) -> Study:
        return Study(**self._header(when, machine), reason=reason)
