"""The U-Net in C for x86-64 processors: loading it, and its calls.

It is optional: `available()` is empty if it was not built or the processor has none of its instruction sets.
"""

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import Literal

Kind = Literal["avx2", "avx512", "avx512_bf16"]
KINDS: tuple[Kind, ...] = ("avx2", "avx512", "avx512_bf16")
LANES: dict[Kind, int] = {"avx2": 8, "avx512": 16, "avx512_bf16": 16}
LAYERS = 18
VERSION = 1


class Layer(ctypes.Structure):
    """One 3x3 convolution and its normalisation, laid out as in `unet.c`. Arrays begin on 64-byte boundaries.

    per_slice: 1 if gamma and beta normalise by the slice's own statistics, 0 if they are scale and shift.
    """

    _fields_ = [
        ("weights", ctypes.c_void_p),
        ("gamma", ctypes.c_void_p),
        ("beta", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("per_slice", ctypes.c_int32),
    ]


class Network(ctypes.Structure):
    """All layers, and the last 1x1 convolution to one number, above 0 in the lung."""

    _fields_ = [("layers", Layer * LAYERS), ("last_weights", ctypes.c_void_p), ("last_bias", ctypes.c_float)]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None if they were not built, or were built from other sources than these."""
    try:
        spec = find_spec("inference.lungs.native._unet")
        if spec is None or spec.origin is None:
            return None
        loaded = ctypes.CDLL(spec.origin)
        if loaded.unet_version() != VERSION:
            return None
    except (OSError, AttributeError):
        return None
    loaded.unet_kinds.argtypes = []
    loaded.unet_kinds.restype = ctypes.c_int
    loaded.unet_workspace.argtypes = [ctypes.c_int, ctypes.c_int]
    loaded.unet_workspace.restype = ctypes.c_size_t
    loaded.unet_mask.argtypes = [
        *(ctypes.c_int, ctypes.POINTER(Network), ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
        *(ctypes.c_void_p, ctypes.c_void_p),
    ]
    loaded.unet_mask.restype = ctypes.c_int
    return loaded


@cache
def available() -> tuple[Kind, ...]:
    """What this build and this processor can run."""
    loaded = library()
    if loaded is None:
        return ()
    bits = loaded.unet_kinds()
    return tuple(kind for bit, kind in enumerate(KINDS) if bits >> bit & 1)
