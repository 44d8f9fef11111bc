"""From the numbers to what the node reports: coded measurements, segments, a histogram and lines for the summary."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from inference.arrays import Mask
from inference.densitometry import codes
from inference.densitometry.density import LOWEST_HU, SIDES, THIRDS, Densities, Density, Part, Side
from inference.densitometry.lungs import PARENCHYMA_BELOW_HU, Lungs
from inference.densitometry.settings import Reference, Settings
from inference.finding import QualityCheck
from inference.plug import Algorithm, Histogram, Line, Measurement, Output, Qualifier, Segment, Table

ALGORITHM = "Lung densitometry"
LOW_SEGMENT = "Low attenuation"
LUNG_SEGMENTS: dict[Side, str] = {"right": "Right lung", "left": "Left lung"}
STATEMENTS = (
    "Densities of the lung parenchyma: both lungs without windpipe, main bronchi, and everything above -400 HU, "
    "such as large vessels and consolidation. Volumes hold the vessels. Thirds are of the height of both lungs.",
    "Low attenuation is a measurement, not a diagnosis of emphysema.",
)
_HISTOGRAM_HU, _BIN_HU = (-1050, PARENCHYMA_BELOW_HU), 10
_ROWS = {
    Part(): "both lungs",
    Part("right"): "right",
    Part("left"): "left",
    Part(third="upper"): "upper third",
    Part(third="middle"): "middle third",
    Part(third="lower"): "lower third",
}
_MEASURED = {
    "laa_percent": ("Share below {0.threshold_hu} HU", "%"),
    "perc15_hu": ("Perc{0.percentile:g}", "HU"),
    "mean_hu": ("Mean density", "HU"),
}


def parts_reported() -> tuple[Part, ...]:
    """Both lungs, each lung, and each third of both."""
    return (*(Part(side) for side in SIDES), *(Part("both", third) for third in THIRDS[1:]))


def make_output(
    densities: Densities,
    lungs: Lungs,
    low: Mask,
    settings: Settings,
    checks: Sequence[QualityCheck],
    not_comparable: Sequence[QualityCheck],
    remarks: Sequence[QualityCheck],
) -> Output:
    """The output on the grid of `lungs`.

    low: bool (Z, Y, X), parenchyma below the threshold.  checks: what the volume passed.
    not_comparable: why the numbers must not be compared with published ones; `remarks` limits them otherwise.
    """
    limits = (*not_comparable, *remarks)
    return Output(
        measurements=(
            *(one for part in parts_reported() for one in _measurements(part, densities, settings)),
            _low_volume(low, densities),
        ),
        segments=_segments(lungs, low, settings),
        algorithms=(Algorithm(ALGORITHM, "Density of the lungs by thresholds", parameters=_parameters(settings)),),
        checks=tuple(checks),
        statements=STATEMENTS,
        remarks=tuple(limit.sentence for limit in limits),
        table=_table(densities, settings),
        lines=tuple(_lines(densities, settings, not_comparable, limits)),
        histogram=_histogram(densities, settings),
    )


def _measurements(part: Part, densities: Densities, settings: Settings) -> Iterator[Measurement]:
    density = densities.parts[part]
    where = {
        "site": codes.LUNG,
        "laterality": codes.LATERALITY[part.side],
        "topography": codes.ZONE.get(part.third),
        "segment": LUNG_SEGMENTS.get(part.side) if part.third == "whole" else None,
    }
    yield Measurement(codes.VOLUME, density.volume_ml, codes.MILLILITRE, decimals=0, **where)  # type: ignore[arg-type]
    if not density.voxels:
        return
    below = (Qualifier(codes.THRESHOLD, settings.threshold_hu, codes.HOUNSFIELD),)
    share = (Qualifier(codes.PERCENTILE, settings.percentile, codes.PERCENT),)
    for concept, value, unit, extra in (
        (codes.LAA_PERCENT, density.laa_percent, codes.PERCENT, {"qualifiers": below}),
        (codes.PERCENTILE_DENSITY, density.perc15_hu, codes.HOUNSFIELD, {"qualifiers": share}),
        (codes.ATTENUATION, density.mean_hu, codes.HOUNSFIELD, {"derivation": codes.MEAN}),
    ):
        yield Measurement(concept, value, unit, decimals=1, **where, **extra)  # type: ignore[arg-type]


def _low_volume(low: Mask, densities: Densities) -> Measurement:
    """The volume of the low attenuation, on its own segment."""
    return Measurement(
        codes.VOLUME,
        float(np.count_nonzero(low)) * densities.voxel_ml,
        codes.MILLILITRE,
        site=codes.LUNG,
        laterality=codes.LATERALITY["both"],
        segment=LOW_SEGMENT,
        decimals=0,
    )


def _segments(lungs: Lungs, low: Mask, settings: Settings) -> tuple[Segment, ...]:
    sides: tuple[tuple[Side, Mask], ...] = (("right", lungs.right), ("left", lungs.left))
    anatomy = tuple(
        Segment(
            LUNG_SEGMENTS[side],
            mask,
            codes.ANATOMICAL_STRUCTURE,
            codes.LUNG,
            "anatomy",
            site=codes.LUNG,
            laterality=codes.LATERALITY[side],
            algorithm=ALGORITHM,
        )
        for side, mask in sides
    )
    found = Segment(
        LOW_SEGMENT,
        low,
        codes.SPATIAL_CONCEPT,
        codes.LOW_ATTENUATION,
        "finding",
        label=f"Lung below {settings.threshold_hu} HU",
        site=codes.LUNG,
        laterality=codes.LATERALITY["both"],
        algorithm=ALGORITHM,
        comments=(STATEMENTS[1],),
        drawn="area",
    )
    return (*anatomy, found)


def _parameters(settings: Settings) -> tuple[str, ...]:
    return (f"threshold={settings.threshold_hu} HU", f"percentile={settings.percentile:g}")


def _table(densities: Densities, settings: Settings) -> Table:
    """The numbers of each part that is reported."""
    columns = (
        ("", ""),
        (f"< {settings.threshold_hu} HU", "%"),
        (f"Perc{settings.percentile:g}", "HU"),
        ("mean", "HU"),
        ("volume", "mL"),
    )
    return Table(columns, tuple(_row(name, densities.parts[part]) for part, name in _ROWS.items()))


def _row(name: str, density: Density) -> tuple[str, ...]:
    numbers = ((density.laa_percent, 1), (density.perc15_hu, 0), (density.mean_hu, 0), (density.volume_ml, 0))
    return (name, *(_number(value, decimals) for value, decimals in numbers))


def _lines(
    densities: Densities, settings: Settings, not_comparable: Sequence[QualityCheck], limits: Sequence[QualityCheck]
) -> Iterator[Line]:
    yield Line(STATEMENTS[1])
    if not not_comparable:
        for reference in settings.reference:
            yield Line(_compared(reference, densities.parts[Part()], settings))
    for limit in limits:
        yield Line(limit.sentence, "caution")


def _compared(reference: Reference, both: Density, settings: Settings) -> str:
    name, unit = _MEASURED[reference.measure]
    value = getattr(both, reference.measure)
    return (
        f"{name.format(settings)}: {value:.1f} {unit}. In {reference.people}: {reference.mean:g} {unit}, standard "
        f"deviation {reference.deviation:g}, by other software ({reference.source})."
    )


def _number(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def _histogram(densities: Densities, settings: Settings) -> Histogram:
    """Shares of the parenchyma over 10 HU each, as percentages; the little below the range is left out."""
    low, high = _HISTOGRAM_HU
    counts = densities.histogram[low - LOWEST_HU : high - LOWEST_HU].reshape(-1, _BIN_HU).sum(axis=1)
    shares = 100.0 * counts / max(1, int(densities.histogram.sum()))
    both, threshold = densities.parts[Part()], settings.threshold_hu
    percentile = f"Perc{settings.percentile:g} {_number(both.perc15_hu, 0)} HU"
    return Histogram(
        title=f"Both lungs, % of voxels per {_BIN_HU} HU",
        unit="HU",
        count_unit="%",
        edges=tuple(float(edge) for edge in np.arange(low, high + 1, _BIN_HU)),
        counts=tuple(map(float, shares)),
        marks=((float(threshold), f"{threshold} HU"), (both.perc15_hu, percentile)),
        highlight=(float(low), float(threshold)),
    )
