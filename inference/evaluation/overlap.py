"""How much two masks agree."""

from collections.abc import Sequence

import numpy as np

from inference.arrays import Mask


def dice(first: Mask | Sequence[Mask], second: Mask | Sequence[Mask]) -> float:
    """Dice overlap of two masks of the same shape, 0 to 1; two empty masks agree, so they give 1.

    Source: Dice 1945, "Measures of the amount of ecologic association between species".
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / total if total else 1.0
