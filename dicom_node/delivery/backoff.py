"""How long to wait before a destination is tried again."""

import random

from config.settings import SenderSettings


def backoff_s(attempt: int, sender: SenderSettings, rng: random.Random | None = None) -> float:
    """Seconds until the next attempt: doubles from `first_retry_s` up to `longest_retry_s`, of which a random half, so
    that deliveries that failed together do not come back together.

    attempt: how many were made, from 1.
    """
    ceiling = min(sender.longest_retry_s, sender.first_retry_s * 2.0 ** min(max(attempt, 1) - 1, 30))
    return ceiling * (0.5 + 0.5 * (rng or random).random())
