"""How far a verdict moves when nothing of importance changes: the same networks on an input that a reader would call
the same.

Only DeCoVNet's part is cropped anew; the U-Net's mask stays. One row of pixels or one slice less changes no diagnosis,
but it moves the statistics over the volume that the authors' profile normalises with.
"""

from collections.abc import Callable

from inference.arrays import Box, Grey
from inference.covid.verdict_input import verdict_box, verdict_mask
from inference.finding import Spread
from inference.models.profile import Change, Profile, SpreadRule
from inference.preprocess import verdict_range

Judge = Callable[[Grey, Grey], float]


def spread_of(probability: float, grey: Grey, raw: Grey, profile: Profile, rule: SpreadRule, judge: Judge) -> Spread:
    """The lowest and highest probability over the card's harmless changes, the verdict's own included.

    grey: uint8 (T, Y, X), all resampled slices.  raw: the U-Net's mask on them.
    judge: probability of an image and its mask: uint8 (T, Y, X), cropped and not yet resized.
    """
    start, stop = verdict_range(len(grey), profile.slices)
    image, mask = grey[start:stop], verdict_mask(raw[start:stop], profile)
    z, y, x = verdict_box(raw, profile)
    box = slice(z.start - start, z.stop - start), y, x
    found = [probability]
    for change in rule.changes:
        part = changed(box, change, grey.shape[1], profile.slices.order == "descending")
        if part[0].stop - part[0].start >= 2:
            found.append(judge(image[part], mask[part]))
    return Spread(min(found), max(found), rule.changes)


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
