"""What limits a densitometry: each remark says what was found, and what that means for the numbers."""

from collections.abc import Iterator

from inference.densitometry.calibration import AirSample
from inference.densitometry.density import Density
from inference.densitometry.kernels import Sharpness
from inference.densitometry.lungs import Lungs
from inference.densitometry.settings import Settings
from inference.finding import QualityCheck
from inference.volume.ct_volume import SeriesHeader

_GAS_SAID_FROM_ML = 2.0
_NOT_COMPARABLE = "not comparable with published ones"


def acquisition_remarks(
    header: SeriesHeader, spacing_z_mm: float, kernel: Sharpness, sample: AirSample | None, settings: Settings
) -> Iterator[QualityCheck]:
    """How the scan was made: a value with any of these is not comparable."""
    thickness = header.slice_thickness_mm or spacing_z_mm
    if thickness > settings.thickest_mm:
        yield QualityCheck(
            "THICKNESS",
            f"Slices of {thickness:.3g} mm, more than {settings.thickest_mm:g} mm, average over small areas of low "
            f"attenuation: the values are {_NOT_COMPARABLE}.",
        )
    if kernel == "sharp":
        yield QualityCheck(
            "KERNEL",
            f"The kernel is sharp. The lungs were smoothed in plane with a Gaussian of {settings.filter_sigma_mm:g} mm "
            f"before they were measured; the values are {_NOT_COMPARABLE}.",
        )
    elif kernel == "unknown":
        yield QualityCheck(
            "KERNEL", "It is not known how sharp the kernel is: the values may not be comparable with published ones."
        )
    if header.contrast:
        yield QualityCheck(
            "CONTRAST", f"Contrast medium was given, which makes lung denser: the values are {_NOT_COMPARABLE}."
        )
    yield from _calibration(sample, settings)


def air_check(sample: AirSample) -> QualityCheck:
    """What was measured in the windpipe."""
    return QualityCheck("WINDPIPE_AIR", f"Air in the windpipe: {sample.hu:.0f} HU.")


def noise_check(noise_hu: float) -> QualityCheck:
    """How noisy the lungs are."""
    return QualityCheck("NOISE", f"Small areas of the lungs vary by {noise_hu:.0f} HU (standard deviation).")


def _calibration(sample: AirSample | None, settings: Settings) -> Iterator[QualityCheck]:
    low, high = settings.air_hu
    if sample is None:
        yield QualityCheck(
            "CALIBRATION",
            "Too little air is seen in the windpipe to check the scanner's calibration, so that the values are "
            f"{_NOT_COMPARABLE}.",
        )
    elif not low <= sample.hu <= high:
        yield QualityCheck(
            "CALIBRATION",
            f"Air in the windpipe measures {sample.hu:.0f} HU; {low:g} to {high:g} HU are expected. The densities are "
            f"off by as much, and {_NOT_COMPARABLE}.",
        )


def lung_remarks(lungs: Lungs, both: Density, noise_hu: float | None, settings: Settings) -> Iterator[QualityCheck]:
    """Whether the lungs were full of air, how noisy they are, and what was left out of them."""
    if noise_hu is not None and noise_hu > settings.noise_hu:
        yield QualityCheck(
            "NOISE",
            f"Small areas of the lungs vary by {noise_hu:.0f} HU (standard deviation), mostly from noise. Above "
            f"{settings.noise_hu:g} HU it carries lung of normal density below {settings.threshold_hu} HU: the share "
            "may be too high, and the percentile too low.",
        )
    if lungs.gas_ml >= _GAS_SAID_FROM_ML:
        yield QualityCheck(
            "GAS_LEFT_OUT",
            f"{lungs.gas_ml:.0f} mL of gas that touches the lungs was taken for stomach or bowel and left out. If it "
            "is a bulla, the share of low attenuation is larger.",
        )
    if both.volume_ml < settings.inspired_ml or both.mean_hu > settings.inspired_mean_hu:
        yield QualityCheck(
            "INSPIRATION",
            f"The lungs hold {both.volume_ml:.0f} mL with a mean of {both.mean_hu:.0f} HU: they may not have been "
            "fully inflated, which makes areas of low attenuation smaller.",
        )
