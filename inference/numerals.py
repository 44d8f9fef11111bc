"""Numbers as a reader sees them, rounded so that no rounding changes what they say."""


def percent(certainty: float, threshold: float | None) -> str:
    """A certainty, 0 to 1, in whole percent, with decimals only as far as they show its side of the threshold.

    Never 0 or 100: no output of a network is as certain as that.
    """
    for decimals in range(10):
        shown = round(100 * certainty, decimals)
        if threshold is None or (shown >= 100 * threshold) == (certainty >= threshold):
            if decimals == 0 and shown in (0, 100):
                return "<1" if shown == 0 else ">99"
            return f"{shown:.{decimals}f}"
    return f"{100 * certainty!r}"


def share(part: int, whole: int) -> str:
    """A share in whole percent."""
    percent_of_whole = 100 * part / whole
    return "<1" if 0 < percent_of_whole < 0.5 else f"{percent_of_whole:.0f}"
