"""All that a gateway tells of a result: what the stored report says, and what the index knows of how it was made.

`reading.py` reads it from the report's bytes, so that every gateway tells what the report tells: the same number, code,
name and identifier. A value that the report lacks is an empty text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from config.coding import Code, is_positive
from dicom_node.gateways.sr_content import Number
from storage.object_kinds import ObjectKind


@dataclass(frozen=True)
class Name:
    """A person's name, its alphabetic group by component; text: the value as DICOM writes it, with all groups."""

    text: str = ""
    family: str = ""
    given: str = ""
    middle: str = ""
    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class PatientSaid:
    """The patient. birth_date: YYYYMMDD.  sex: M, F, O or empty."""

    patient_id: str
    issuer: str
    name: Name
    birth_date: str
    sex: str


@dataclass(frozen=True)
class StudySaid:
    """The study. date, time: as DICOM's DA and TM.  placer, filler: numbers of the order, if the report names it."""

    study_uid: str
    study_id: str
    accession_number: str
    accession_issuer: str
    date: str
    time: str
    description: str
    referring: Name
    placer: str
    filler: str


@dataclass(frozen=True)
class FindingSaid:
    """A statement on one disease or sign.

    percent: the certainty as the report writes it, in %; empty if the model has none.  threshold: 0 to 1, or None.
    interpretation: None if it states none.  observation_uid: of its group in the report.
    """

    concept: Code
    label: str
    percent: str
    threshold: float | None
    interpretation: Code | None
    category: Code | None
    site: Code | None
    laterality: Code | None
    observation_uid: str

    @property
    def positive(self) -> bool | None:
        """True if positive, False if negative, None for any other interpretation."""
        return is_positive(self.interpretation)


@dataclass(frozen=True)
class ModelSaid:
    """The model. digest: SHA-256 hex."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class ObjectSaid:
    """One DICOM object of the result that destinations get."""

    kind: ObjectKind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True)
class Former:
    """The result that a later one replaces. result_id: None if the index no longer knows it.

    model_name, reason_code: as in the index; empty if it does not know them.
    findings, numbers, sentences: what it said; empty if its report cannot be read.
    observation_uids: of all groups and measurements of its report, by their place.
    replaces: what it replaced itself.
    """

    result_id: int | None
    report_uid: str
    observation_uids: tuple[str, ...] = ()
    model_name: str = ""
    reason_code: str = ""
    findings: tuple[FindingSaid, ...] = ()
    numbers: tuple[Number, ...] = ()
    replaces: "Former | None" = None
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportedResult:
    """A result as it is told.

    analysed: False if there is a reason instead: reason_code of `config.reasons`, with its sentence.
    series_uid: of the images.  numbers: every measurement that is no certainty of a finding.  sentences: of the report.
    created_at: Unix seconds.  created: the same moment with the offset that the report states.
    """

    result_id: int
    series_uid: str
    analysed: bool
    reason_code: str
    reason_text: str
    patient: PatientSaid
    study: StudySaid
    report_uid: str
    findings: tuple[FindingSaid, ...]
    numbers: tuple[Number, ...]
    sentences: tuple[str, ...]
    model: ModelSaid
    objects: tuple[ObjectSaid, ...]
    replaces: Former | None
    created_at: float
    created: datetime

    @property
    def positive(self) -> bool | None:
        """True if any finding is positive, False if all that say so are negative, None if none says either."""
        said = [one.positive for one in self.findings if one.positive is not None]
        return any(said) if said else None

    @property
    def formers(self) -> Iterator[Former]:
        """The results that it replaces, the latest first."""
        former = self.replaces
        while former is not None:
            yield former
            former = former.replaces

    @property
    def first_model(self) -> str:
        """Name of the model of the first of the results that replaced each other."""
        named = [self.model.name, *(former.model_name for former in self.formers if former.model_name)]
        return named[-1]
