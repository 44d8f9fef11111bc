"""Masks that were computed before they were asked for, each found again by the very slice that it is of."""

import hashlib

import numpy as np
import numpy.typing as npt

from inference.arrays import Grey


class KeptMasks:
    """The U-Net's masks by the digest of their grey slices.

    A mask depends on its slice and the network alone. So a mask that is found here is the one that would be computed,
    bit for bit, whatever was guessed about the series when it was made.
    """

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: most memory for the masks; what no longer fits is not kept."""
        self._max_bytes = max_bytes
        self._masks: dict[tuple[str, bytes], npt.NDArray[np.uint8]] = {}
        self.nbytes = 0

    def add(self, grey: Grey, masks: Grey, precision: str) -> None:
        """Keep the masks of some slices.

        grey, masks: uint8 (n, Y, X), masks 0 or 1.  precision: number format in which they were computed.
        """
        for slice_, mask in zip(grey, masks, strict=True):
            key, packed = _key(slice_, precision), np.packbits(mask)
            if key not in self._masks and self.nbytes + packed.nbytes <= self._max_bytes:
                self._masks[key] = packed
                self.nbytes += packed.nbytes

    def fill(self, masks: Grey, grey: Grey, indices: npt.NDArray[np.intp], precision: str) -> npt.NDArray[np.bool_]:
        """Put what is kept of the chosen slices of `grey` into `masks`; both uint8 (T, Y, X).

        Returns for each of `indices` whether its mask was kept: bool (n,).
        """
        found = np.zeros(len(indices), bool)
        if not self._masks:
            return found
        for number, index in enumerate(indices):
            packed = self._masks.get(_key(grey[index], precision))
            if packed is not None:
                masks[index] = np.unpackbits(packed, count=masks[index].size).reshape(masks[index].shape)
                found[number] = True
        return found


def _key(grey: npt.NDArray[np.uint8], precision: str) -> tuple[str, bytes]:
    shape = repr(grey.shape).encode()
    return precision, hashlib.sha256(shape + np.ascontiguousarray(grey).tobytes()).digest()
