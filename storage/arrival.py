"""What the receiver hands over for one instance, and what it gets back."""

from dataclasses import dataclass, field, fields
from enum import StrEnum

from storage.files import StoredFile

MAX_TEXT = 64  # characters of VR LO, the longest of the fields below except PN and image type
LONG_TEXTS = frozenset({"patient_name", "image_type"})
MAX_LONG_TEXT = 324  # five component groups of a person's name


def clean(value: str, limit: int = MAX_TEXT) -> str:
    """Header text as the index keeps it: stripped, without NUL and unpaired surrogates, clipped."""
    if not (value.isascii() and value.isprintable()):
        value = value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    return value.strip()[:limit]


@dataclass(frozen=True)
class IndexedHeader:
    """The header fields that the index keeps, as text; cleaned and clipped when built, never refused."""

    patient_id: str = ""
    patient_name: str = ""
    birth_date: str = ""
    sex: str = ""
    study_date: str = ""
    study_time: str = ""
    accession_number: str = ""
    study_description: str = ""
    modality: str = ""
    series_number: str = ""
    series_description: str = ""
    body_part: str = ""
    instance_number: str = ""
    image_type: str = ""
    manufacturer: str = ""
    station_name: str = ""

    def __post_init__(self) -> None:
        """Clean every field: the header comes from the sender and may hold anything."""
        for name in FIELD_NAMES:
            value = getattr(self, name)
            cleaned = clean(value, MAX_LONG_TEXT if name in LONG_TEXTS else MAX_TEXT)
            if cleaned != value:
                object.__setattr__(self, name, cleaned)


FIELD_NAMES = tuple(item.name for item in fields(IndexedHeader))


def patient_key(patient_id: str, study_instance_uid: str) -> str:
    """What tells patients apart: the Patient ID as the index keeps it, or the study if that is empty."""
    return f"id:{patient_id}" if patient_id else f"study:{study_instance_uid}"


@dataclass(frozen=True)
class Arrival:
    """One instance as received: its UIDs (validated by the receiver), where it came from, its file."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    address: str
    file: StoredFile
    header: IndexedHeader = field(default_factory=IndexedHeader)

    @property
    def patient_key(self) -> str:
        """What tells patients apart: the Patient ID, or the study if the header has none."""
        return patient_key(self.header.patient_id, self.study_instance_uid)


class Outcome(StrEnum):
    """What became of an arrival.

    NEW: its file is now the instance's; keep it. CANARY: the same, of a series that the node sent to itself.
    DUPLICATE: the index holds the same bytes already, or the same image. SECOND_COPY: other bytes for an instance of
    this person, study and series, set aside to be compared. CONFLICT: set aside because it contradicts the index. After
    all but the first two, `held_file` says which file the index names.
    """

    NEW = "NEW"
    CANARY = "CANARY"
    DUPLICATE = "DUPLICATE"
    SECOND_COPY = "SECOND_COPY"
    CONFLICT = "CONFLICT"
