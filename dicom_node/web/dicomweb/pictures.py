"""Frames of the node's own objects, and pictures of them for who decodes no DICOM (WADO-RS, PS3.18 10.4).

Own objects hold uncompressed pixels: 8 bits a sample, grey or colour, or one bit a pixel in a segmentation.
"""

import io
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset, dcmread
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException

from dicom_node.web.dicomweb.asked import accepted_kinds
from dicom_node.web.dicomweb.offered import JPEG, PNG

FORMATS = {JPEG: "JPEG", PNG: "PNG", "image/*": "JPEG", "*/*": "JPEG"}
MOST_FRAMES = 1000
"""In one answer."""
QUALITY = 90
_LIST = re.compile(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*")
_SIZE = re.compile(r"([1-9]\d{0,3}),([1-9]\d{0,3})")


@dataclass(frozen=True)
class Frames:
    """The frames of an object. bits: 1 or 8, of each sample. highest: the value that is shown as white.

    data: the Pixel Data: frames one after the other; those of one bit without gaps between them (PS3.5 8.1.1).
    """

    count: int
    rows: int
    columns: int
    samples: int
    bits: int
    highest: int
    data: bytes

    def octets(self, number: int) -> bytes:
        """A frame as WADO-RS gives it; one of one bit a pixel begins with a byte of its own. number: from 1."""
        if self.bits == 1:
            return np.packbits(self._values(number), bitorder="little").tobytes()
        return self._values(number).tobytes()

    def picture(self, number: int) -> Image.Image:
        """A frame as a person sees it. number: from 1."""
        shape = (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)
        values = self._values(number).reshape(shape)
        shown = values if self.highest == 255 else (values.astype(np.uint16) * 255 // self.highest).astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(shown))

    def _values(self, number: int) -> npt.NDArray[np.uint8]:
        """(rows x columns x samples), uint8."""
        size = self.rows * self.columns * self.samples
        start = (number - 1) * size
        if self.bits == 8:
            return np.frombuffer(self.data, np.uint8, size, start)
        packed = np.frombuffer(self.data, np.uint8)[start // 8 : -(-(start + size) // 8)]
        return np.unpackbits(packed, bitorder="little")[start % 8 : start % 8 + size]


def frames_of(content: bytes) -> Frames:
    """The frames of an own object. Raises HTTPException if it has none."""
    found = dcmread(io.BytesIO(content))
    if "PixelData" not in found:
        raise HTTPException(406, "The object holds no pixels.")
    bits, samples = int(found.BitsAllocated), int(found.SamplesPerPixel)
    shown = (str(found.PhotometricInterpretation), samples, int(found.get("PlanarConfiguration", 0)))
    if bits not in (1, 8) or shown not in (("MONOCHROME2", 1, 0), ("RGB", 3, 0)):
        raise HTTPException(406, "Pixels of this kind are given within their object only.")
    count, data = int(found.get("NumberOfFrames", 1)), bytes(found.PixelData)
    made = Frames(count, int(found.Rows), int(found.Columns), samples, bits, _highest(found), data)
    if len(data) * 8 < count * made.rows * made.columns * samples * bits:
        raise HTTPException(410, "The object's pixels are not whole.")
    return made


def _highest(found: Dataset) -> int:
    if found.BitsAllocated == 1:
        return 1
    return int(found.get("MaximumFractionalValue", 255)) or 255


def numbers_of(text: str, frames: Frames) -> list[int]:
    """The frames that a path names, such as "1,3". Raises HTTPException."""
    if not _LIST.fullmatch(text) or text.count(",") >= MOST_FRAMES:
        raise HTTPException(400, f"Frames are named as 1,2,5: at most {MOST_FRAMES} of them.")
    found = [int(number) for number in text.split(",")]
    # What a list may ask for is bounded by the object's own size.
    if len(set(found)) < len(found):
        raise HTTPException(400, "A frame is named twice.")
    if max(found) > frames.count:
        raise HTTPException(404, f"The object has {frames.count} frames.")
    return found


def rendered(frames: Frames, number: int, headers: Headers, query: QueryParams) -> tuple[bytes, str]:
    """A frame as a picture, and its media type: as asked for, else JPEG. Raises HTTPException."""
    kind = next((kind for kind in accepted_kinds(headers) if kind in FORMATS), None)
    if kind is None:
        raise HTTPException(406, f"Pictures are {JPEG} or {PNG}.")
    picture = frames.picture(number)
    others = set(query) - {"quality", "viewport"}
    if others:
        raise HTTPException(400, "Pictures can be asked for with quality and viewport.")
    if "viewport" in query:
        size = _SIZE.fullmatch(query["viewport"])
        if size is None:
            raise HTTPException(400, "viewport is a width and a height in pixels: 512,512.")
        picture.thumbnail((int(size[1]), int(size[2])))
    buffer = io.BytesIO()
    picture.save(buffer, FORMATS[kind], quality=_quality(query.get("quality", str(QUALITY))))
    return buffer.getvalue(), PNG if FORMATS[kind] == "PNG" else JPEG


def _quality(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d?|100", text):
        raise HTTPException(400, "quality is a number from 1 to 100.")
    return int(text)
