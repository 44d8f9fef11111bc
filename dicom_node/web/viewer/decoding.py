"""Pixels for pictures: how many images are read at once, and what is said of one that cannot be.

Compressed images are decoded in other processes (`inference/volume/decoder_pool.py`); there are as many as images that
are decoded at once. What waits for them holds a thread of the pages, so it does not wait for long.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dicom_node.errors import NodeError
from dicom_node.web.viewer.planes import HU
from inference.errors import EndsDecoder, InferenceError, UnsuitableSeries
from inference.volume.arrange import decode_shown
from inference.volume.decode import NATIVE
from inference.volume.instances import Frame

DECODERS = 2
"""Compressed images that are decoded at once."""
LONGEST_S = 20.0
"""Nobody waits longer for a decoder, nor for one image's decoding. The slowest image takes a few seconds."""
# Reading holds several times an image while it runs; what more threads ask for at once waits.
_READ_AT_ONCE = 4


class NotShown(NodeError):
    """A picture that cannot be made; the message says why to the person who asked."""


class Undecodable(NotShown):
    """An image that ends its decoder, or takes too long: it is not to be tried again."""


class Decoding:
    """Reads pixels for any number of threads."""

    def __init__(self) -> None:
        self._reading = threading.BoundedSemaphore(_READ_AT_ONCE)
        self._decoders = threading.BoundedSemaphore(DECODERS)

    def hounsfield(self, frame: Frame) -> HU:
        """The HU of an image, (Y, X). Raises NotShown; Undecodable if it is not to be tried again."""
        with self._turn(frame):
            try:
                return decode_shown(frame)
            except UnsuitableSeries as error:
                raise NotShown(error.sentence) from None
            except EndsDecoder as error:
                raise Undecodable(f"This image cannot be shown: {error}") from None
            except InferenceError as error:
                raise NotShown(f"This image cannot be shown: {error}") from None
            except RuntimeError:
                raise NotShown("This image cannot be shown now: its decoder does not start.") from None

    @contextmanager
    def _turn(self, frame: Frame) -> Iterator[None]:
        if frame.instance.pixels.transfer_syntax_uid in NATIVE:
            with self._reading:
                yield
            return
        if not self._decoders.acquire(timeout=LONGEST_S):
            raise NotShown("Too many images are being decoded at the moment. Reload the page to try again.")
        try:
            yield
        finally:
            self._decoders.release()
