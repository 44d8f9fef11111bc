"""Pictures as PNG, quickly: a step through the stack must not wait for the last percent of compression."""

import io

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image

from config.headers import quiet
from dicom_node.web.viewer.planes import Grey

FILL_ALPHA = 90
"""Of 255, within a segment; its outline has 255. The browser multiplies both with the opacity that a person chose."""

LEAST_HEAT = 0.15
"""Share of the maximum below which a map is not shown, as on the summary image."""
RGB = tuple[int, int, int]


def grey_png(grey: Grey) -> bytes:
    """An 8-bit grey picture, (Y, X)."""
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(grey), level=1))


def colour_png(part10: bytes) -> bytes:
    """A secondary capture that this node made. Raises ValueError if it is not 8-bit colour."""
    with quiet():
        dataset = pydicom.dcmread(io.BytesIO(part10))
        pixels = dataset.pixel_array
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError("not an 8-bit colour image")
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=3))


def mask_png(mask: npt.NDArray[np.bool_], colour: RGB) -> bytes:
    """A picture in one colour, transparent outside the mask, with its outline drawn strongly."""
    indexed = mask.astype(np.uint8)
    indexed[outline_of(mask)] = 2
    image = Image.fromarray(indexed, "P")
    image.putpalette([0, 0, 0, *colour, *colour])
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, transparency=bytes([0, FILL_ALPHA, 255]))
    return file.getvalue()


def heat_png(heat: npt.NDArray[np.uint8], tall: int, wide: int) -> bytes:
    """A map, 0 to 255, as a picture from red to orange, transparent where it is cold.

    tall, wide: how many rows and columns of the picture stand for one of the map, interpolated.
    """
    size = (heat.shape[1] * wide, heat.shape[0] * tall)
    fine = np.asarray(Image.fromarray(np.ascontiguousarray(heat)).resize(size, Image.Resampling.BILINEAR), np.float32)
    strength = np.clip((fine / 255 - LEAST_HEAT) / (1 - LEAST_HEAT), 0, 1)
    rgba = np.zeros((*strength.shape, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[..., 1] = np.rint(165 * strength)
    rgba[..., 3] = np.rint(200 * np.sqrt(strength))
    return bytes(imagecodecs.png_encode(rgba, level=1))


def outline_of(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The pixels of a mask, (Y, X), with a neighbour above, below, left or right that is outside it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner, dtype=np.bool_)


def rgb_of_lab(lightness: float, a: float, b: float) -> RGB:
    """CIELab (D50) as sRGB, 0 to 255, clipped to what a screen can show. Source: PS3.3, C.10.7.1.1; ICC.1."""
    y = (lightness + 16) / 116
    linear = np.array([_XN * _inverse(y + a / 500), _inverse(y), _ZN * _inverse(y - b / 200)]) @ _TO_SRGB
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.rint(np.clip(curved, 0, 1) * 255))
    return red, green, blue


_XN, _ZN = 0.96422, 0.82521
# From XYZ at D50 to linear sRGB, transposed. Source: Bradford-adapted matrix of IEC 61966-2-1.
_TO_SRGB = np.array(
    [
        [3.1338561, -0.9787684, 0.0719453],
        [-1.6168667, 1.9161415, -0.2289914],
        [-0.4906146, 0.0334540, 1.4052427],
    ]
)


def _inverse(t: float) -> float:
    return t**3 if t > 6 / 29 else 3 * (6 / 29) ** 2 * (t - 4 / 29)
