"""How long to wait before a destination is tried or asked again."""

import random

from config.settings import SenderSettings
from dicom_node.waits import doubling_s


def backoff_s(attempt: int, sender: SenderSettings, rng: random.Random | None = None) -> float:
    """Seconds until the next attempt to send. attempt: how many were made, from 1."""
    return doubling_s(sender.first_retry_s, attempt, sender.longest_retry_s, rng)
