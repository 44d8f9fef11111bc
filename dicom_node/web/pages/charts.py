"""Small pictures as inline SVG, made here: no chart library in the browser. Colours are the style's, by class."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

_WIDE = 1000.0
_GAP = 1.5
"""A step of more than this many usual ones is a hole."""


def holes_of(heights_mm: Sequence[float]) -> tuple[float, list[tuple[float, float]]]:
    """The usual step from one image to the next in mm, and the holes: heights between which images are missing."""
    steps = np.diff(heights_mm)
    if not len(steps) or not steps.max() > 0:
        return 0.0, []
    usual = float(np.median(steps[steps > 0.05]))
    wide = np.flatnonzero(steps > _GAP * usual)
    return usual, [(heights_mm[at], heights_mm[at + 1]) for at in wide.tolist()]


def positions(heights_mm: Sequence[float]) -> Markup:
    """A line for each image where it lies from foot to head, holes marked. heights_mm: ascending, not empty."""
    usual, holes = holes_of(heights_mm)
    low, high = heights_mm[0], heights_mm[-1]
    span = max(high - low, 1e-6)

    def x(height: float) -> float:
        return 10 + (height - low) / span * (_WIDE - 20)

    marks = [Markup('<rect class="hole" x="{:.1f}" y="8" width="{:.1f}" height="64"/>').format(x(a), x(b) - x(a))
             for a, b in holes]  # fmt: skip
    lines = " ".join(f"M{x(height):.1f} 14V66" for height in heights_mm)
    words = f"{len(heights_mm)} images from {signed(low)} to {signed(high)} mm, {usual:.2f} mm apart"
    words += f"; {len(holes)} hole{'' if len(holes) == 1 else 's'}" if holes else "; no hole"
    return Markup(
        '<svg class="positions" viewBox="0 0 1000 100" role="img" aria-label="{}">{}<path class="slice" d="{}"/>'
        '<text x="10" y="92">F {} mm</text><text x="990" y="92" text-anchor="end">H {} mm</text></svg>'
    ).format(words, Markup("").join(marks), lines, signed(low), signed(high))


def signed(mm: float) -> str:
    """A coordinate with one decimal and a real minus sign."""
    return f"{mm:.1f}".replace("-", "\N{MINUS SIGN}")


def gauge(certainty: float, threshold: float | None) -> Markup:
    """A certainty from 0 to 1 on a bar, with the threshold that it was held against."""
    mark = Markup("")
    if threshold is not None:
        line = 4 + threshold * 392
        mark = Markup('<path class="threshold" d="M{0:.1f} 2V24"/><text x="{0:.1f}" y="37" text-anchor="middle">'
                      "threshold {1:.10g} %</text>").format(line, 100 * threshold)  # fmt: skip
    side = "over" if threshold is not None and certainty >= threshold else "under"
    return Markup(
        '<svg class="gauge {}" viewBox="0 0 400 42" aria-hidden="true"><rect class="whole" x="4" y="8" width="392" '
        'height="10" rx="5"/><rect class="part" x="4" y="8" width="{:.1f}" height="10" rx="5"/>{}</svg>'
    ).format(side, max(10.0, certainty * 392), mark)
