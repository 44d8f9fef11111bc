"""How far a verdict moves when nothing of importance changes: the same networks on an input that a reader would call
the same.

Only DeCoVNet's part is cropped anew; the U-Net's mask stays. One row of pixels or one slice less changes no diagnosis,
but it moves the statistics over the volume that the authors' profile normalises with.
"""

from collections.abc import Iterable, Iterator

from inference.arrays import Box, Grey
from inference.covid.verdict_input import verdict_box, verdict_mask
from inference.finding import Spread
from inference.models.profile import Change, Profile, SpreadRule
from inference.preprocess import verdict_range


def spread_of(probability: float, after_changes: Iterable[float], rule: SpreadRule) -> Spread:
    """The lowest and highest of the probabilities after the card's harmless changes and of the verdict's own."""
    found = [probability, *after_changes]
    return Spread(min(found), max(found), rule.changes)


def changed_inputs(grey: Grey, raw: Grey, profile: Profile, rule: SpreadRule) -> Iterator[tuple[Change, Grey, Grey]]:
    """What DeCoVNet is given after each of the card's harmless changes: image and mask, cropped and not yet resized.

    grey: uint8 (T, Y, X), all resampled slices.  raw: the U-Net's mask on them.
    Yields uint8 (T, Y, X) both. A change that leaves fewer than 2 slices is left out.
    """
    start, stop = verdict_range(len(grey), profile.slices)
    image, mask = grey[start:stop], verdict_mask(raw[start:stop], profile)
    z, y, x = verdict_box(raw, profile)
    box = slice(z.start - start, z.stop - start), y, x
    for change in rule.changes:
        part = changed(box, change, grey.shape[1], profile.slices.order == "descending")
        if part[0].stop - part[0].start >= 2:
            yield change, image[part], mask[part]


def changed(box: Box, change: Change, rows: int, descending: bool) -> Box:
    """The part of the images that DeCoVNet gets after a change. rows: of the images. descending: z runs to the feet."""
    z, y, x = box
    if change == "one row higher":
        return z, slice(max(y.start - 1, 0), y.stop - 1), x
    if change == "one row lower":
        return z, slice(y.start + 1, min(y.stop + 1, rows)), x
    if (change == "without its lowest slice") != descending:
        return slice(z.start + 1, z.stop), y, x
    return slice(z.start, z.stop - 1), y, x
