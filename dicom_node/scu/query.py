"""Questions to a PACS about one series: how many instances it holds, which, and what else of its study (C-FIND)."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom import Dataset

from config.settings import SenderSettings, Settings
from dicom_node.errors import NodeError
from dicom_node.scu.association import Link, Peer, PeerUnavailable, associate, peer_at_fault
from dicom_node.scu.contexts import FIND
from dicom_node.statuses import SUCCESS

STUDY_ROOT, PATIENT_ROOT = FIND.classes
STUDY_KEYS = ("StudyInstanceUID", "StudyDate", "AccessionNumber", "PatientID")
SERIES_KEYS = ("SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription", "BodyPartExamined")


@dataclass(frozen=True)
class Question:
    """What a query asks. level: Query/Retrieve Level.  matched, returned: keywords of its keys."""

    level: str
    matched: tuple[str, ...]
    returned: tuple[str, ...]


_SERIES = ("StudyInstanceUID", "SeriesInstanceUID")
COUNT = Question("SERIES", _SERIES, ("NumberOfSeriesRelatedInstances",))
INSTANCES = Question("IMAGE", _SERIES, ("SOPInstanceUID",))
CT_SERIES = Question("SERIES", _SERIES[:1], ("SeriesInstanceUID", "Modality"))
STUDIES = Question("STUDY", (), STUDY_KEYS)
SERIES_OF = Question("SERIES", _SERIES[:1], SERIES_KEYS)
QUESTIONS = {
    "How many instances a series has": COUNT,
    "Which instances a series has": INSTANCES,
    "Which CT series a study has": CT_SERIES,
    "Which studies match; whose a study is": STUDIES,
    "Which series a study has": SERIES_OF,
}
"""All that a PACS is asked. The keys of `STUDIES` are matched as far as they are given."""
MAX_ANSWERS = 50_000
"""More answers than any series has instances: a peer that answers without end is cut off."""


class QueryFailed(NodeError):
    """The peer answered a query with a failure, or in a way that cannot be used."""


class NotKnown(QueryFailed):
    """The peer does not know what it was asked about. It can be asked about something else."""


@dataclass(frozen=True)
class SeriesKey:
    """What identifies a series at each level of the information models."""

    patient_id: str
    study_instance_uid: str
    series_instance_uid: str


class Query:
    """Questions over one open association."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._models = [model for model in (STUDY_ROOT, PATIENT_ROOT) if link.accepted(model)]

    def count(self, series: SeriesKey) -> int:
        """How many instances of the series the PACS holds; 0 if it does not know the series.

        Takes NumberOfSeriesRelatedInstances, or counts instances if the PACS leaves that out.
        Raises QueryFailed or PeerUnavailable.
        """
        answers = self._ask(_identifier(COUNT, series), series)
        with peer_at_fault():
            about = [a for a in answers if a.get("SeriesInstanceUID") == series.series_instance_uid]
            stated = [_whole_number(answer.get("NumberOfSeriesRelatedInstances")) for answer in about]
        if not stated:
            return 0
        if len(stated) == 1 and stated[0] is not None:
            return stated[0]
        return len(self.instances(series))

    def instances(self, series: SeriesKey) -> set[str]:
        """SOP Instance UIDs of the series that the PACS holds. Raises QueryFailed or PeerUnavailable."""
        answers = self._ask(_identifier(INSTANCES, series), series)
        with peer_at_fault():
            # A PACS that ignores the series key answers for the whole study.
            same = [
                answer
                for answer in answers
                if answer.get("SeriesInstanceUID", series.series_instance_uid) == series.series_instance_uid
            ]
            return {str(answer.SOPInstanceUID) for answer in same if answer.get("SOPInstanceUID")}

    def ct_series(self, series: SeriesKey) -> set[str]:
        """Series Instance UIDs of the CT series, and of those without a modality, that the PACS holds of the study.

        Raises QueryFailed or PeerUnavailable.
        """
        answers = self._ask(_identifier(CT_SERIES, series), series)
        with peer_at_fault():
            kept = [answer for answer in answers if (answer.get("Modality") or "CT") == "CT"]
            return {str(answer.SeriesInstanceUID) for answer in kept if answer.get("SeriesInstanceUID")}

    def studies(self, keys: Mapping[str, str]) -> list[dict[str, str]]:
        """The studies that match these keys (by keyword, as C-FIND takes them): what STUDY_KEYS names of each.

        Raises QueryFailed or PeerUnavailable.
        """
        return self._records(STUDIES, keys)

    def series_of(self, study_instance_uid: str) -> list[dict[str, str]]:
        """The series of a study: what SERIES_KEYS names of each. Raises QueryFailed or PeerUnavailable."""
        found = self._records(SERIES_OF, {"StudyInstanceUID": study_instance_uid})
        return [one for one in found if one["StudyInstanceUID"] in ("", study_instance_uid)]

    def _records(self, question: Question, keys: Mapping[str, str]) -> list[dict[str, str]]:
        columns = question.returned
        identifier = _keys(question.level, {**dict.fromkeys(columns, ""), **keys})
        answers: list[Dataset] = []
        with peer_at_fault():
            model = next((model for model in self._models if model == STUDY_ROOT), None)
            if model is None:
                raise QueryFailed("the PACS does not offer the Study Root model, which this needs")
            answers = self._find(identifier, model)
            return [{name: str(answer.get(name) or "").strip() for name in columns} for answer in answers]

    def _ask(self, identifier: Dataset, series: SeriesKey) -> list[Dataset]:
        """Answers of the first information model that gives any: Study Root, else Patient Root."""
        failure: QueryFailed | None = None
        answers: list[Dataset] = []
        for model in self._models:
            identifier.PatientID = series.patient_id if model == PATIENT_ROOT else ""
            try:
                answers = self._find(identifier, model)
            except QueryFailed as error:
                failure = error
                continue
            if answers:
                return answers
        if failure is not None:
            raise failure
        return answers

    def _find(self, identifier: Dataset, model: str) -> list[Dataset]:
        started = time.monotonic()
        answers: list[Dataset] = []
        status = -1
        with self._link.exchange(self._link.response_s):
            for response, answer in self._link.association.send_c_find(identifier, model):
                status = int(response.get("Status", -1))
                if answer is not None:
                    answers.append(answer)
                if len(answers) > MAX_ANSWERS:
                    raise QueryFailed("the query was answered without end")
        if status == -1:
            raise PeerUnavailable(f"query: {self._link.why_lost(started)}")
        if status != SUCCESS:
            raise QueryFailed(f"query answered with status 0x{status:04X}")
        return answers


def quick_caller(settings: Settings) -> SenderSettings:
    """For questions: one that could take as long as a transfer would delay the other series."""
    return settings.sender.model_copy(update={"response_timeout_s": settings.completion.query_timeout_s})


@contextmanager
def querying(peer: Peer, caller: SenderSettings) -> Iterator[Query]:
    """An association for questions. Raises PeerUnavailable, or NoContext if the peer answers none."""
    with associate(peer, caller, FIND.contexts()) as link:
        yield Query(link)


def _identifier(question: Question, series: SeriesKey) -> Dataset:
    known = {"StudyInstanceUID": series.study_instance_uid, "SeriesInstanceUID": series.series_instance_uid}
    matched = {keyword: known[keyword] for keyword in question.matched}
    return _keys(question.level, {**dict.fromkeys(question.returned, ""), **matched})


def _keys(level: str, keys: Mapping[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def _whole_number(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None
