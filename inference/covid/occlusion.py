"""How a model's output changes when a part of the lungs is made to look like normal lung.

This checks the class activation map without gradients. If the marked region drove the output, the output falls when
the region is taken away, and hardly changes when the same amount of lung is taken away elsewhere.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from inference.arrays import Mask
from inference.covid.localisation import NetworkInput
from inference.covid.pipeline import Pipeline
from inference.covid.verdict import Verdict
from inference.plug import Explanation, Occlusion
from inference.volume.ct_volume import CTVolume, upright

ELSEWHERE = 3
"""How many random regions of the same size the marked one is compared with."""


def explain(
    pipeline: Pipeline, volume: CTVolume, progress: Callable[[str], None] = lambda what: None, *, zones: bool = True
) -> Explanation:
    """Analyse a volume, then again without each of its parts.

    progress: called with what is taken away next.  zones: also take away each zone of the lungs.
    Raises UnsuitableSeries if the volume gives no result.
    """
    volume = upright(volume)
    verdict, given = pipeline.run_and_show(volume)
    normal = round(float(np.median(given.image[given.mask > 0])))
    occlusions = []
    for what, part in _parts(verdict, given, zones):
        progress(what)
        image = np.where(part, np.uint8(normal), given.image)
        share = 100 * np.count_nonzero(part) / np.count_nonzero(given.mask)
        occlusions.append(Occlusion(what, share, *pipeline.verdict_on(image, given.mask)))
    _, log_odds = pipeline.verdict_on(given.image, given.mask)
    return Explanation(verdict.probability, verdict.threshold, verdict.positive, log_odds, tuple(occlusions))


def _parts(verdict: Verdict, given: NetworkInput, zones: bool) -> Iterator[tuple[str, Mask]]:
    """Names and voxels (T, rows, columns) of what is to be taken away."""
    lungs = given.mask > 0
    if verdict.localisation is not None and verdict.localisation.any():
        region = on_input_grid(verdict.localisation, given) & lungs
        if region.any():
            yield "the region that drove the model", region
            random = np.random.default_rng(0)
            for number in range(1, ELSEWHERE + 1):
                yield f"as much lung elsewhere, {number} of {ELSEWHERE}", _elsewhere(lungs & ~region, region, random)
    if zones:
        yield from _zones(lungs, given.placement.descending)


def on_input_grid(mask: Mask, given: NetworkInput) -> Mask:
    """A mask brought from the source grid to DeCoVNet's input by nearest voxels: bool (T, rows, columns)."""
    placement = given.placement
    indices = []
    for axis, (count, box) in enumerate(zip(given.image.shape, placement.box, strict=True)):
        in_crop = np.linspace(box.start, box.stop - 1, count)
        if axis == 0:
            in_crop = in_crop * (placement.shape[0] - 1) / max(1, placement.resampled - 1)
            in_crop = placement.shape[0] - 1 - in_crop if placement.descending else in_crop
        indices.append(np.rint(in_crop).astype(np.intp))
    return mask[np.ix_(*indices)]


def _elsewhere(lungs: Mask, region: Mask, random: np.random.Generator) -> Mask:
    """As many voxels as the region has, around a random voxel of `lungs`; distances are counted in voxels."""
    places = np.argwhere(lungs)
    distance = ((places - places[random.integers(len(places))]) ** 2).sum(axis=1)
    chosen = places[np.argsort(distance, kind="stable")[: np.count_nonzero(region)]]
    part = np.zeros(lungs.shape, bool)
    part[tuple(chosen.T)] = True
    return part


def _zones(lungs: Mask, descending: bool) -> Iterator[tuple[str, Mask]]:
    """Both lungs in thirds of their height, each third in front and back halves: 12 zones, right and head first."""
    z, y, x = (np.flatnonzero(lungs.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    middle_y, middle_x = (int(axis[0] + axis[-1]) // 2 + 1 for axis in (y, x))
    edges = np.linspace(z[0], z[-1] + 1, 4).round().astype(int)
    thirds: list[npt.NDArray[np.intp]] = [np.arange(edges[n], edges[n + 1]) for n in range(3)]
    for height, planes in zip(("upper", "middle", "lower"), thirds if descending else thirds[::-1], strict=True):
        for side, columns in (("right", slice(0, middle_x)), ("left", slice(middle_x, None))):
            for depth, rows in (("front", slice(0, middle_y)), ("back", slice(middle_y, None))):
                zone = np.zeros(lungs.shape, bool)
                zone[planes, rows, columns] = lungs[planes, rows, columns]
                if zone.any():
                    yield f"{side} lung, {height} third, {depth}", zone
