"""The model: a volume in, its lung densities out, or a named reason why not."""

from dataclasses import replace

from config.reasons import ReasonCode
from inference.comparing import Examination
from inference.densitometry.calibration import sample_air
from inference.densitometry.change import in_words
from inference.densitometry.density import Part, measure
from inference.densitometry.kernels import sharpness, smooth
from inference.densitometry.lungs import find_lungs
from inference.densitometry.noise import noise_in
from inference.densitometry.output import make_output
from inference.densitometry.remarks import acquisition_remarks, air_check, lung_remarks, noise_check
from inference.densitometry.settings import Settings
from inference.errors import UnsuitableSeries
from inference.plug import Output
from inference.suitability.check import accept, check_mask
from inference.suitability.policy import Policy
from inference.volume.ct_volume import CTVolume, as_stored, upright


class Densitometry:
    """A densitometry ready for volumes; it needs no weights and no device."""

    def __init__(self, settings: Settings, policy: Policy) -> None:
        self._settings = settings
        self._policy = policy

    def analyse(self, volume: CTVolume) -> Output:
        """The densities of the lungs of a volume.

        Raises UnsuitableSeries if a rule of the card's [suitability] table refuses the volume, or its kernel is sharp
        and the card does not have it filtered.
        """
        settings, turned = self._settings, upright(volume)
        kernel = sharpness(turned.header.kernel)
        if kernel == "sharp" and settings.sharp_kernels == "refuse":
            raise UnsuitableSeries(
                ReasonCode.KERNEL, "The kernel is sharp; its noise would be taken for areas of low attenuation."
            )
        accepted = accept(turned, self._policy)
        lungs = find_lungs(turned.hu, turned.spacing_mm, accepted.air)
        checks = (*accepted.checks, *check_mask(turned, lungs.both, self._policy, accepted.air))
        hu = turned.hu
        if kernel == "sharp":
            hu = smooth(hu, lungs.parenchyma, lungs.box, settings.filter_sigma_mm, turned.spacing_mm)
        densities = measure(
            hu, lungs, turned.voxel_ml, threshold_hu=settings.threshold_hu, percentile=settings.percentile
        )
        sample = sample_air(turned.hu, turned.spacing_mm, accepted.air)
        noise_hu = noise_in(hu, lungs, turned.spacing_mm)
        checks = (
            *checks,
            *([air_check(sample)] if sample else []),
            *([noise_check(noise_hu)] if noise_hu is not None else []),
        )
        low = lungs.parenchyma & (hu < settings.threshold_hu)
        output = make_output(
            densities,
            lungs,
            low,
            settings,
            checks,
            tuple(acquisition_remarks(turned.header, turned.spacing_mm[0], kernel, sample, settings)),
            tuple(lung_remarks(lungs, densities.parts[Part()], noise_hu, settings)),
        )
        return output if turned is volume else _as_stored(output, turned)

    def compare(self, now: Examination, before: Examination) -> tuple[str, ...]:
        """How two densitometries of one patient differ, and what may explain it; see `change.in_words`."""
        return in_words(now, before)


def _as_stored(output: Output, turned: CTVolume) -> Output:
    """The output of an upright copy, with its masks brought to the grid of the stored images."""
    segments = tuple(replace(segment, mask=as_stored(segment.mask, turned)) for segment in output.segments)
    return replace(output, segments=segments)
