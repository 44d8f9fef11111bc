"""Which of a study's chest series suits a model best: decided from headers and geometry, without decoding a pixel.

Source of the order: Zheng et al. 2020 trained on whole lungs without contrast, 1 mm slices every 0.8 mm.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

from inference.suitability.check import check_outline
from inference.suitability.policy import Policy
from inference.volume.load import outline

# A scan this long covers most adults' lungs; only the pixels show whether it covers this patient's. Beyond this, more
# length is not better.
_WHOLE_MM, _COVERAGE_STEP_MM = 240.0, 40.0
_CONTIGUOUS = 1.1
_TRAINED_THICKNESS_MM, _TRAINED_SPACING_MM = 1.0, 0.8
# Kernels for lung (first) and soft tissue, by the names of Siemens, GE, Philips, Canon and United Imaging.
# Sources: their conformance statements and public archives.
_LUNG_KERNELS = re.compile(r"^(LUNG|CHEST|L|Y[ABC]|FC[58]\d|B_SHARP|SHARP|[BDIQ][FLRV]?[5-9]\d)(?![A-Z]{3})")
_SOFT_KERNELS = re.compile(r"^(STANDARD|SOFT|DETAIL|CHST|[ABC]$|FC[01]\d|B_SOFT|B_MEDIUM|[BDIQ][FLRV]?[1-4]\d)")


@dataclass(frozen=True)
class Candidate:
    """A series that passed every rule that needs no pixels. kernel: "lung", "soft" or "other"."""

    slices: int
    extent_mm: float
    spacing_mm: float
    thickness_mm: float | None
    kernel: str
    contrast: bool

    def merits(self) -> dict[str, float]:
        """The criteria, most important first; more is better."""
        thickness = self.thickness_mm or self.spacing_mm
        return {
            "it covers more of the patient": min(self.extent_mm, _WHOLE_MM) // _COVERAGE_STEP_MM,
            "it was made without contrast medium": float(not self.contrast),
            "its slices leave no gap": float(self.spacing_mm <= _CONTIGUOUS * thickness),
            "its thickness is nearer to the 1 mm of the training": -float(_doublings(thickness, _TRAINED_THICKNESS_MM)),
            "its kernel is made for lungs": float(("other", "soft", "lung").index(self.kernel)),
            "its spacing is nearer to the 0.8 mm of the training": -round(
                abs(self.spacing_mm - _TRAINED_SPACING_MM), 2
            ),
        }

    def in_words(self) -> str:
        """The merits in words, for the audit."""
        thick = "of unknown thickness" if self.thickness_mm is None else f"of {self.thickness_mm:g} mm"
        medium = "with" if self.contrast else "without"
        return (
            f"{self.slices} slices {thick}, {self.spacing_mm:g} mm apart, cover {self.extent_mm:.0f} mm; "
            f"{self.kernel} kernel, {medium} contrast medium"
        )


def _doublings(one: float, other: float) -> int:
    """How many times one length must be doubled or halved to come close to the other."""
    return round(abs(math.log2(one / other)))


def examine(paths: Sequence[Path], policy: Policy) -> Candidate:
    """What the headers of a series say about it.

    Raises UnsuitableSeries or CorruptInstance if its headers or its geometry rule it out.
    """
    volume = outline(paths)
    check_outline(volume, policy)
    header, spacing = volume.header, volume.spacing_mm[0]
    return Candidate(
        slices=len(volume.hu),
        extent_mm=len(volume.hu) * spacing,
        spacing_mm=spacing,
        thickness_mm=header.slice_thickness_mm or None,
        kernel=kernel_class(header.kernel),
        contrast=header.contrast,
    )


def kernel_class(name: str) -> str:
    """ "lung", "soft" or "other", from a Convolution Kernel."""
    first = name.upper().split("\\")[0].strip()
    if _LUNG_KERNELS.match(first):
        return "lung"
    return "soft" if _SOFT_KERNELS.match(first) else "other"


def why_better(one: Candidate, other: Candidate) -> str:
    """The first merit in which one series is ahead of another; empty if there is none."""
    pairs = zip(one.merits().items(), other.merits().values(), strict=True)
    ahead = next(dropwhile(lambda pair: pair[0][1] == pair[1], pairs), None)
    return ahead[0][0] if ahead is not None and ahead[0][1] > ahead[1] else ""
