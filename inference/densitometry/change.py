"""How two densitometries of one patient differ, and why that may not be the patient's doing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inference.comparing import Examination
from inference.densitometry import codes
from inference.plug import Code, Measurement

# With another depth of inspiration the same lung has another density. The limit is a rule of thumb of ours.
_SAME_VOLUME = 0.10
_NAMES = {
    codes.LAA_PERCENT.value: ("low attenuation", " percentage points"),
    codes.PERCENTILE_DENSITY.value: ("percentile density", " HU"),
    codes.ATTENUATION.value: ("mean density", " HU"),
    codes.VOLUME.value: ("volume", " mL"),
}


@dataclass(frozen=True)
class Change:
    """A number that both results have. measurement: the later one.  before: the earlier value, in the same unit."""

    measurement: Measurement
    before: float

    @property
    def difference(self) -> float:
        """Later less earlier."""
        return self.measurement.value - self.before


def changes(now: Sequence[Measurement], before: Sequence[Measurement]) -> tuple[Change, ...]:
    """What was measured both times in the same way: concept, unit, place, segment, derivation and qualifiers agree."""
    earlier = {_key(measurement): measurement.value for measurement in before}
    return tuple(Change(measurement, earlier[_key(measurement)]) for measurement in now if _key(measurement) in earlier)


def in_words(now: Examination, before: Examination) -> tuple[str, ...]:
    """The change of both lungs in one sentence, then what may explain it; empty if nothing can be compared."""
    both = [change for change in changes(now.measurements, before.measurements) if _is_of_both(change.measurement)]
    if not both:
        return ()
    days = (now.day - before.day).days
    listed = "; ".join(_said(change) for change in both)
    return (f"Since {before.day.isoformat()} ({days} days): {listed}.", *caveats(now, before))


def caveats(now: Examination, before: Examination) -> tuple[str, ...]:
    """Why the two results may differ in a patient who has not changed: one sentence each."""
    different = ", ".join(_differences(now, before))
    found = [f"The scans differ in {different}: a change of the numbers may come from that alone."] if different else []
    volume = next(
        (
            change
            for change in changes(now.measurements, before.measurements)
            if change.measurement.concept.is_same(codes.VOLUME) and _is_of_both(change.measurement)
        ),
        None,
    )
    if volume and abs(volume.difference) > _SAME_VOLUME * max(volume.before, 1e-9):
        found.append(
            f"The lungs' volume differs by {100 * volume.difference / volume.before:+.0f}%: with another depth of "
            "inspiration the same lung has another density."
        )
    return tuple(found)


def _differences(now: Examination, before: Examination) -> Iterator[str]:
    for name, one, other in (
        ("model", now.model, before.model),
        ("scanner", now.scan.scanner, before.scan.scanner),
        ("kernel", now.scan.kernel, before.scan.kernel),
        ("slice thickness", now.scan.thickness_mm, before.scan.thickness_mm),
        ("contrast medium", now.scan.contrast, before.scan.contrast),
    ):
        if one != other:
            yield name


def _said(change: Change) -> str:
    name, unit = _NAMES.get(change.measurement.concept.value, (change.measurement.concept.meaning, ""))
    decimals = change.measurement.decimals
    return (
        f"{name} {change.before:.{decimals}f} to {change.measurement.value:.{decimals}f} "
        f"({change.difference:+.{decimals}f}{unit})"
    )


def _is_of_both(measurement: Measurement) -> bool:
    side = measurement.laterality
    whole = measurement.topography is None and measurement.segment is None
    return whole and side is not None and side.is_same(codes.LATERALITY["both"])


def _key(measurement: Measurement) -> tuple[object, ...]:
    qualifiers = tuple((_concept(q.concept), q.value, _concept(q.unit)) for q in measurement.qualifiers)
    coded = (measurement.concept, measurement.unit, measurement.site, measurement.laterality, measurement.topography)
    return (*map(_concept, coded), _concept(measurement.derivation), qualifiers, measurement.segment)


def _concept(code: Code | None) -> tuple[str, str] | None:
    return (code.value, code.scheme) if code else None
