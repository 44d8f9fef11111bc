"""What a report needs to know besides the finding: who made it, when, and what came before."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from pydicom.dataset import Dataset

from inference.models.cards import OperatingPoint

_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")


@dataclass(frozen=True)
class EarlierResult:
    """The result that stands for another series of the study.

    series_number, description: as the series has them, perhaps empty.  probability, threshold: 0 to 1.
    model: name and version, if it is not the one that reports now.
    report: its four UIDs; None if it has no report.
    """

    series_instance_uid: str
    series_number: str
    description: str
    probability: float
    threshold: float
    model: str = ""
    report: Dataset | None = None

    @property
    def positive(self) -> bool:
        """True at or above the threshold."""
        return self.probability >= self.threshold


@dataclass(frozen=True)
class StudyStatement:
    """What the results of one study say together: this one and the earlier ones.

    earlier: at least one, the oldest first.
    rests_on: Series Instance UID of the series that the statement of the study rests on.
    why: that series rather than the others, as the end of a sentence with "because".
    """

    earlier: tuple[EarlierResult, ...]
    rests_on: str
    why: str


@dataclass(frozen=True)
class ChangeStatement:
    """How a result differs from an earlier one of the same patient, in the model's words.

    said: the change in one sentence, then what may explain it apart from the patient, one sentence each.
    report: the four UIDs of the earlier result's report; None if it has none.
    """

    said: tuple[str, ...]
    report: Dataset | None = None


@dataclass(frozen=True)
class ReportContext:
    """Who reports, and when.

    created_at: aware; an object states its times in the source's zone if the source names one, else in this one.
    manufacturer, device_name, device_serial, software_version: of the node.
    institution: where the node stands; if empty, it is left out.
    predecessor: the earlier report that this one replaces; its four UIDs are used.
    revision: 1 for the first report of a series, one more for each that replaces it.
    instances_digest: digest of the instances that came in, for the UIDs; if empty, computed from the sources.
    operating_points: what the model card publishes about its thresholds.
    study: what other series of the study were reported as; None if this is its only result.
    change: how the result differs from an earlier one of the same patient; None if it was not compared.
    prevalence: share of patients with the disease at this site, 0 to 1, if configured.
    series_numbers: the objects' series are numbered from one above it; each model has numbers of its own.
    """

    created_at: datetime
    manufacturer: str = "DICOM AI node"
    device_name: str = "DICOM AI node"
    device_serial: str = "0"
    software_version: str = "0"
    institution: str = ""
    predecessor: Dataset | None = None
    revision: int = 1
    instances_digest: str = ""
    operating_points: tuple[OperatingPoint, ...] = ()
    prevalence: float | None = None
    study: StudyStatement | None = None
    change: ChangeStatement | None = None
    series_numbers: int = 9000

    def __post_init__(self) -> None:
        if self.created_at.tzinfo is None:
            raise ValueError("created_at: needs a time zone")
        if self.revision < 1:
            raise ValueError("revision: starts at 1")

    def created_in_zone_of(self, source: Dataset) -> datetime:
        """`created_at` in the source's time zone, or as it is if the source names none."""
        offset = timezone_of(source)
        return self.created_at if offset is None else self.created_at.astimezone(offset)


def timezone_of(source: Dataset) -> timezone | None:
    """The zone in Timezone Offset From UTC, or None if it is absent or malformed."""
    match = _OFFSET.fullmatch(str(source.get("TimezoneOffsetFromUTC") or "").strip())
    if match is None:
        return None
    sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    # PS3.3 C.12.1.1.8: from -1200 to +1400.
    if int(minutes) > 59 or offset > timedelta(hours=12 if sign == "-" else 14):
        return None
    return timezone(-offset if sign == "-" else offset)
