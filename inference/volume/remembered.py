"""What follows from a volume alone is computed once, for all models that see the volume one after the other."""

import weakref
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from inference.volume.ct_volume import CTVolume

T = TypeVar("T")


def remembered(compute: Callable[[CTVolume], T]) -> Callable[[CTVolume], T]:
    """The same function, which keeps its result for the last volume as long as that volume lives.

    Nobody may change a result: the next caller gets it too.
    """
    kept: dict[int, T] = {}

    @wraps(compute)
    def of(volume: CTVolume) -> T:
        key = id(volume)
        if key not in kept:
            result = compute(volume)
            kept.clear()
            kept[key] = result
            weakref.finalize(volume, kept.pop, key, None)
        return kept[key]

    return of
