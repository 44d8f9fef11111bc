"""How long to wait before a destination is tried or asked again."""

import random

from config.settings import SenderSettings

DOUBLINGS = 30


def backoff_s(attempt: int, sender: SenderSettings, rng: random.Random | None = None) -> float:
    """Seconds until the next attempt to send. attempt: how many were made, from 1."""
    return doubling_s(sender.first_retry_s, attempt, sender.longest_retry_s, rng)


def doubling_s(first_s: float, times: int, longest_s: float, rng: random.Random | None = None) -> float:
    """A wait that doubles from `first_s` with each of the `times`, from 1, and ends at `longest_s`.

    Half of it is random, so that what failed together does not come back together.
    """
    ceiling = min(max(first_s, longest_s), first_s * 2.0 ** min(max(times, 1) - 1, DOUBLINGS))
    return ceiling * (0.5 + 0.5 * (rng or random).random())
