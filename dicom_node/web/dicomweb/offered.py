"""What the DICOMweb server offers: its paths, the keys that can be matched, its limits; without the server itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

STUDY_KEYS = {
    "0020000D": "StudyInstanceUID",
    "00100020": "PatientID",
    "00080050": "AccessionNumber",
    "00080020": "StudyDate",
}
SERIES_KEYS = {"0020000E": "SeriesInstanceUID", "00080060": "Modality"}
INSTANCE_KEYS = {**SERIES_KEYS, "00080018": "SOPInstanceUID", "00080016": "SOPClassUID"}
MOST, MOST_OFFSET, MOST_KEYS, LONGEST = 200, 1000, 40, 1024
"""Answers at once; where they may begin; keys in one request; characters of a value."""
JSON, DICOM = "application/dicom+json", "application/dicom"
OCTETS, JPEG, PNG = "application/octet-stream", "image/jpeg", "image/png"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
"""The transfer syntax of every object that the node writes."""

STATUSES = {
    200: "Found, or nothing found by a search.",
    204: "To OPTIONS, by which a browser asks whether a script may ask.",
    400: "A key or a value that cannot be matched, or too much for one request.",
    401: "Neither a login nor the bearer token.",
    404: "There is no result of that name, or it does not stand.",
    406: "Another media type or transfer syntax is wanted, or an object has no pixels to show.",
    410: "The object's file is missing or altered.",
    413: "Too many objects, or too large, for one answer.",
    503: "The index or the files are not available.",
}
"""HTTP statuses of the answers, and when."""
Answered = Literal["studies", "series", "instances", "metadata", "frames", "pictures", "objects"]
Keys = Mapping[str, str]


@dataclass(frozen=True)
class Offered:
    """A resource. answered: what a GET of it gives.  keys: that can be matched, by tag, if it is a search."""

    path: str
    answered: Answered
    keys: Keys | None = None


_STUDIES = "/dicomweb/studies"
_STUDY = f"{_STUDIES}/{{study}}"
_SERIES = f"{_STUDY}/series/{{series}}"
_INSTANCE = f"{_SERIES}/instances/{{instance}}"
RESOURCES = (
    Offered(_STUDIES, "studies", STUDY_KEYS),
    Offered(f"{_STUDY}/series", "series", SERIES_KEYS),
    Offered(f"{_STUDY}/instances", "instances", INSTANCE_KEYS),
    Offered(f"{_SERIES}/instances", "instances", INSTANCE_KEYS),
    *(Offered(f"{path}/metadata", "metadata") for path in (_STUDY, _SERIES, _INSTANCE)),
    Offered(f"{_INSTANCE}/frames/{{frames}}", "frames"),
    *(Offered(f"{path}/rendered", "pictures") for path in (_INSTANCE, f"{_INSTANCE}/frames/{{frames}}")),
    *(Offered(path, "objects") for path in (_STUDY, _SERIES, _INSTANCE)),
)
