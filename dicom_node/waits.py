"""How long to wait before what failed is tried again."""

import random

DOUBLINGS = 30
LONGEST_PAUSE_S = 10.0
"""Of a loop that fails whatever it takes up: the index is away, or the disk is."""


def doubling_s(first_s: float, times: int, longest_s: float, rng: random.Random | None = None) -> float:
    """A wait that doubles from `first_s` with each of the `times`, from 1, and ends at `longest_s`.

    Half of it is random, so that what failed together does not come back together.
    """
    ceiling = min(max(first_s, longest_s), first_s * 2.0 ** min(max(times, 1) - 1, DOUBLINGS))
    return ceiling * (0.5 + 0.5 * (rng or random).random())
