"""The pictures of stored series: made for the asked window, kept for a while, within a fixed amount of memory."""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dicom_node.errors import NodeError
from dicom_node.web.viewer.cache import ByteCache
from dicom_node.web.viewer.decoding import Decoding, NotShown, Undecodable
from dicom_node.web.viewer.encode import colour_png, grey_png
from dicom_node.web.viewer.opened import OpenedSeries, token_of
from dicom_node.web.viewer.planes import HU, Plane, cut, windowed
from dicom_node.web.viewer.segments import HeatMap, Segmentation, read_segmentation
from inference.volume.arrange import Arrangement, arrange
from storage import series, shown
from storage.database import Database
from storage.errors import CorruptFile, NotFound, StorageError
from storage.files import FileStore
from storage.object_kinds import ObjectKind
from storage.series import StoredInstance
from storage.shown import ShownObject

T = TypeVar("T")
# Headers of a series being read are in no cache yet, so few are read before anybody asks for them.
_OPENED_AHEAD = 2
_SENTENCE_BYTES = 1000
_VANISHED = "The file of this image is no longer there."
_CHANGED = "Images of the series came or went meanwhile."


class SeriesChanged(NodeError):
    """Images came or went since the browser opened the series: it must open it again."""


@dataclass(frozen=True)
class Place:
    """One picture: which series in which state of its files, which plane, which image of it."""

    series_pk: int
    token: str
    plane: Plane
    index: int


class Viewer:
    """Makes pictures for any number of requests at once. most_bytes: of memory for everything that is kept."""

    def __init__(self, database: Database, files: FileStore, most_bytes: int) -> None:
        self._database = database
        self._files = files
        self.cache = ByteCache(most_bytes)
        self._ahead = threading.BoundedSemaphore(_OPENED_AHEAD)
        self._decoding = Decoding()

    def open(self, series_pk: int) -> OpenedSeries:
        """The series as its files are now. Raises NotFound."""
        with self._database.read() as tx:
            series.get_series(tx, series_pk)
            instances = series.series_instances(tx, series_pk)
        key = ("series", series_pk, token_of(instances))
        return self._keep(key, lambda: self._arranged(series_pk, instances), lambda opened: opened.size)

    def open_soon(self, series_pk: int) -> str:
        """Begin to open a series, because its pictures will be asked for, unless others are being opened.

        Returns its token. Raises NotFound.
        """
        with self._database.read() as tx:
            series.get_series(tx, series_pk)
            token = token_of(series.series_instances(tx, series_pk))

        def begin() -> None:
            try:
                with suppress(StorageError):  # whoever asks for a picture is told
                    self.open(series_pk)
            finally:
                self._ahead.release()

        if self._ahead.acquire(blocking=False):
            threading.Thread(target=begin, name="open series", daemon=True).start()
        return token

    def first_look(self, series_pk: int, token: str, centre: float, width: float) -> bytes:
        """The middle image by instance number, before all headers are read: usually that which the viewer begins with.

        Raises as `picture` does.
        """

        def make() -> bytes:
            with self._database.read() as tx:
                instances = series.series_instances(tx, series_pk)
            if token_of(instances) != token:
                raise SeriesChanged(_CHANGED)
            kept = sorted((item for item in instances if item.gone is None), key=_number)
            middle = [item for item in kept[len(kept) // 2 :][:1] if self._is_there(item)]  # counted from the head down
            with self._files.at_hand(middle, trusted={item.path for item in middle}) as paths:
                frames = arrange(paths).frames
                if not frames:
                    raise NotShown("There is no image.")
                return grey_png(windowed(self._decoding.hounsfield(frames[(len(frames) - 1) // 2]), centre, width))

        return self._keep(("first", series_pk, token, centre, width), make, len)

    def _arranged(self, series_pk: int, instances: Sequence[StoredInstance]) -> OpenedSeries:
        kept = [item for item in instances if item.gone is None]
        gone = Counter(item.gone for item in instances if item.gone is not None)
        missing: frozenset[str] = frozenset()
        try:
            arrangement, stored = self._arrange(kept)
        except CorruptFile:
            missing = frozenset(item.path for item in kept if not self._is_there(item))
            gone["missing"] += len(missing)
            arrangement, stored = self._arrange([item for item in kept if item.path not in missing])
        tokens = token_of(instances, missing), token_of(instances)
        return OpenedSeries(series_pk, *tokens, arrangement, gone, stored)

    def _arrange(self, kept: Sequence[StoredInstance]) -> tuple[Arrangement, dict[Path, StoredInstance]]:
        """Raises CorruptFile if a file is not there. Reading a whole series for its digests would take too long."""
        with self._files.at_hand(kept, trusted={item.path for item in kept}) as paths:
            return arrange(paths), dict(zip(paths, kept, strict=True))

    def _is_there(self, item: StoredInstance) -> bool:
        try:
            with self._files.at_hand([item], trusted={item.path}):
                return True
        except CorruptFile:
            return False

    def _opened(self, place: Place) -> OpenedSeries:
        """The series that a picture is of: from memory without a look into the index, as long as it is there."""

        def make() -> OpenedSeries:
            opened = self.open(place.series_pk)
            if opened.token != place.token:
                raise SeriesChanged(_CHANGED)
            return opened

        return self._keep(("opened", place.series_pk, place.token), make, lambda opened: opened.size)

    def has_planes(self, opened: OpenedSeries) -> bool:
        """Whether coronal and sagittal pictures can be made: of a volume that fits into half of the memory."""
        return bool(opened.shapes) and opened.volume_bytes <= self.cache.most_bytes // 2

    def picture(self, place: Place, centre: float, width: float) -> bytes:
        """An 8-bit PNG for a window in HU. Raises NotShown, SeriesChanged, NotFound."""

        def make() -> bytes:
            return grey_png(windowed(self.hounsfield(place), centre, width))

        return self._keep(("picture", place, centre, width), make, len)

    def hounsfield(self, place: Place) -> HU:
        """The HU of one image of a plane, (Y, X). Raises as `picture` does."""
        opened = self._opened(place)
        self._require(opened, place)
        if place.plane is Plane.AXIAL:
            return self._slice(opened, place.index)
        return np.asarray(cut(place.plane, place.index, len(opened.frames), lambda z: self._slice(opened, z)))

    def overlay(self, place: Place, object_id: int, segment: int) -> bytes:
        """A segment as a transparent PNG. Raises NotShown, SeriesChanged, NotFound."""

        def make() -> bytes:
            opened = self._opened(place)
            self._require(opened, place)
            found = self.segmentation(place.series_pk, object_id)
            if segment not in [one.number for one in found.segments]:
                raise NotShown("There is no such segment.")
            pixels = opened.frames[place.index if place.plane is Plane.AXIAL else 0].instance.pixels
            if not found.fits(pixels.rows, pixels.columns):
                raise NotShown("The segmentation does not fit these images.")
            return found.png(segment, place.plane, place.index, opened.images)

        return self._keep(("overlay", place, object_id, segment), make, len)

    def segmentation(self, series_pk: int, object_id: int) -> Segmentation | HeatMap:
        """A stored segmentation of a series. Raises NotFound; NotShown if it cannot be read."""

        def make() -> Segmentation | HeatMap:
            with self._database.read() as tx:
                stored = shown.object_of_series(tx, series_pk, object_id)
            return _read_as(read_segmentation, self._files, stored)

        return self._keep(("segmentation", series_pk, object_id), make, lambda found: found.size)

    def overlays(self, series_pk: int) -> list[dict[str, Any]]:
        """What can be laid over the images: the segments of each standing result, JSON types only. Raises NotFound."""
        opened = self.open(series_pk)
        with self._database.read() as tx:
            stored = shown.objects_of_series(tx, series_pk)
        layers = [item for item in stored if item.kind in (ObjectKind.SEGMENTATION, ObjectKind.HEAT)]
        return [one for item in layers for one in self._segments(item, opened)]

    def summary(self, series_pk: int, object_id: int) -> bytes:
        """A summary image of a result as PNG. Raises NotFound; NotShown if it cannot be read."""

        def make() -> bytes:
            with self._database.read() as tx:
                stored = shown.object_of_series(tx, series_pk, object_id)
            if stored.kind is not ObjectKind.SUMMARY:
                raise NotFound("the series has no such summary image")
            return _read_as(colour_png, self._files, stored)

        return self._keep(("summary", series_pk, object_id), make, len)

    def _segments(self, stored: ShownObject, opened: OpenedSeries) -> list[dict[str, Any]]:
        try:
            found = self.segmentation(opened.series_pk, stored.object_id)
        except NotShown:
            return []
        return [
            {
                "object": stored.object_id,
                "segment": one.number,
                "label": one.label,
                "colour": "#{:02x}{:02x}{:02x}".format(*one.colour),
                "model": f"{stored.model_name} {stored.model_version}",
                "largest": found.largest(one.number, opened.images),
            }
            for one in found.segments
        ]

    def _require(self, opened: OpenedSeries, place: Place) -> None:
        if place.plane is Plane.AXIAL:
            count = len(opened.frames)
        elif self.has_planes(opened):
            count = opened.shapes[place.plane].count
        else:
            raise NotShown(opened.arrangement.why_not or "The series is too large for this view.")
        if not 0 <= place.index < count:
            raise NotShown("There is no such image.")

    def _slice(self, opened: OpenedSeries, z: int) -> HU:
        key = ("slice", opened.series_pk, opened.token, z)
        return self._keep(key, lambda: self._read_slice(opened, z), lambda hu: hu.nbytes)

    def _read_slice(self, opened: OpenedSeries, z: int) -> HU:
        """The file is brought anew: a store that is not a folder keeps no local copy of what was only looked at."""
        frame = opened.frames[z]
        item = opened.stored[frame.instance.path]
        try:
            with self._files.at_hand([item], trusted={item.path}) as (path,):
                return self._decoding.hounsfield(replace(frame, instance=replace(frame.instance, path=path)))
        except CorruptFile:
            # Deleted by somebody else: what was kept of the series says that it is there.
            self.cache.forget(("series", opened.series_pk, opened.listed))
            self.cache.forget(("opened", opened.series_pk, opened.token))
            raise (NotShown(_VANISHED) if self._is_there(item) else SeriesChanged(_CHANGED)) from None

    def _keep(self, key: Hashable, make: Callable[[], T], size_of: Callable[[T], int]) -> T:
        """From memory, or made. That an image ends its decoder is kept too: each try may cost two processes."""

        def tried() -> T | Undecodable:
            try:
                return make()
            except Undecodable as error:
                return Undecodable(str(error))

        kept = self.cache.get(key, tried, lambda it: _SENTENCE_BYTES if isinstance(it, Undecodable) else size_of(it))
        if isinstance(kept, Undecodable):
            raise Undecodable(str(kept))  # a new one: an exception grows each time it is raised
        return kept


def _number(item: StoredInstance) -> tuple[int, str]:
    text = item.instance_number
    return (int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0), item.sop_instance_uid


def _read_as(read: Callable[[bytes], T], files: FileStore, stored: ShownObject) -> T:
    """What a stored object of this node holds. Raises NotShown."""
    try:
        return read(files.read_verified(stored.path, stored.sha256))
    except (CorruptFile, ValueError, AttributeError) as error:
        raise NotShown("The stored object cannot be read.") from error
