"""What is told of studies, series and objects, as DICOM JSON (PS3.18 annex F), read from the stored objects."""

import io
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from pydicom import DataElement, Dataset, dcmread

from config.headers import UNREADABLE, quiet
from storage.errors import CorruptFile
from storage.files import FileStore
from storage.object_kinds import ObjectKind
from storage.own_objects import OwnObject

Json = dict[str, Any]
STUDY = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription"),
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"),
)
SERIES = ("Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SeriesDate", "SeriesTime")
INSTANCE = ("SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames")
BULK = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
LONGEST_INLINE = 1024
"""Bytes of a binary value that metadata holds; longer ones are left out, as pixels are."""
MOST_HEADERS = 1000
MODALITY = {
    ObjectKind.REPORT: "SR",
    ObjectKind.SEGMENTATION: "SEG",
    ObjectKind.SUMMARY: "OT",
    ObjectKind.DISPLAY_REPORT: "SR",
    ObjectKind.KEY_IMAGES: "KO",
}
"""Of the kinds that are served."""
_CHARACTER_SET = "00080005"


class Headers:
    """The few attributes of objects that a search tells, kept for the next search; one for each web process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Dataset] = OrderedDict()

    def of(self, files: FileStore, one: OwnObject) -> Dataset:
        """The attributes of one object. Raises CorruptFile or StorageError."""
        with self._lock:
            held = self._held.get(one.sha256)
        if held is not None:
            return held
        content = files.read_verified(one.path, one.sha256)
        wanted = ["SpecificCharacterSet", *STUDY, *SERIES, *INSTANCE]
        with quiet():
            read = dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=wanted)
            read.decode()
        with self._lock:
            self._held[one.sha256] = read
            while len(self._held) > MOST_HEADERS:
                self._held.popitem(last=False)
        return read


def study(header: Dataset, objects: Sequence[OwnObject]) -> Json:
    """A study. header: of one of its objects."""
    found = _of(header, STUDY)
    found.ModalitiesInStudy = sorted({MODALITY[one.kind] for one in objects})
    found.NumberOfStudyRelatedSeries = len({one.series_instance_uid for one in objects})
    found.NumberOfStudyRelatedInstances = len(objects)
    return _json(found)


def series(headers: Sequence[Dataset]) -> Json:
    """A series. headers: of its objects, one at least."""
    found = _of(headers[0], ("StudyInstanceUID", *SERIES))
    found.NumberOfSeriesRelatedInstances = len(headers)
    return _json(found)


def instance(header: Dataset) -> Json:
    """An object."""
    return _json(_of(header, ("StudyInstanceUID", "SeriesInstanceUID", "Modality", *INSTANCE)))


def metadata(content: bytes) -> Json:
    """Everything in an object but pixels and other large binary values. content: of its file. Raises CorruptFile."""
    with quiet():
        dataset = dcmread(io.BytesIO(content), stop_before_pixels=True)
        dataset.walk(_leave_out_bulk)
        return _json(dataset)


def _leave_out_bulk(dataset: Dataset, element: DataElement) -> None:
    if element.VR in BULK and len(element.value or b"") > LONGEST_INLINE:
        del dataset[element.tag]


def _of(header: Dataset, names: Iterable[str]) -> Dataset:
    found = Dataset()
    for name in names:
        if name in header:
            found[name] = header[name]
    return found


def _json(dataset: Dataset) -> Json:
    try:
        with quiet():
            told: Json = dataset.to_json_dict()
    except UNREADABLE:
        raise CorruptFile("an object has a value that cannot be told") from None  # nor logged: it may be the patient's
    if _CHARACTER_SET in told:
        told[_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}  # JSON is UTF-8, whatever the file is
    return told
