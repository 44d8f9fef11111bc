"""Several results of one study: which series their common statement rests on.

It is the series that `select = "best"` would have chosen: the best by headers and geometry. If the images of an earlier
one can no longer be compared, the first that was reported stands.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pydicom import Dataset

from dicom_node.analysis.analyse import Analysis
from dicom_node.report.context import EarlierResult, StudyStatement
from dicom_node.report.sources import read_headers
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.models.cards import Card
from inference.models.registry import is_demonstration
from inference.suitability.policy import Policy
from inference.suitability.ranking import Candidate, examine, why_better
from storage import series
from storage.database import Database
from storage.errors import CorruptFile
from storage.files import FileStore
from storage.jobs import ClaimedJob, ModelRef
from storage.results import StoredObject
from storage.series import StoredInstance
from storage.study_results import StandingResult

REPORTED_FIRST = "none ranks above it, and it was reported first"
NOT_COMPARABLE = "it was reported first, and the images of another one are no longer here to compare"


def of_stored(
    database: Database,
    files: FileStore,
    models_dir: Path,
    job: ClaimedJob,
    own: Sequence[Path],
    card: Card,
    others: Sequence[StandingResult],
    analysis: Analysis,
) -> StudyStatement | None:
    """What the result of a job says together with those that stand for other series of its study; None without any.

    own: the files of the job's series.  others: see `study_results.others`.
    A demonstration model's results are named only by its own: they are no statement about a patient.
    """
    # Results on something else contradict nothing, and neither does a measurement. A refusal names all of them.
    if analysis.output is not None:
        said = next((one.concept for one in analysis.output.findings if one.certainty is not None), None)
        others = [one for one in others if said is not None and one.concept.is_same(said)]
    if not card.demonstration:
        others = [one for one in others if not is_demonstration(models_dir, one.model_name, one.model_digest)]
    earlier = []
    with ExitStack() as at_hand:
        for one in others:
            with database.read() as tx:
                held = series.series_instances(tx, one.series_pk)
            earlier.append((earlier_result(one, job.model), _paths(at_hand, files, held)))
        return study_statement(job.series_instance_uid, own, earlier, card)


class Studies:
    """The results of series that are analysed one after the other without an index: no study is left contradicted."""

    def __init__(self) -> None:
        self._earlier: dict[str, list[tuple[EarlierResult, Sequence[Path]]]] = {}

    def statement(self, uid: str, paths: Sequence[Path], analysis: Analysis, card: Card) -> StudyStatement | None:
        """What a series' result says together with those before it, and note it for those after it."""
        output, volume = analysis.output, analysis.volume
        said = next((one for one in output.findings if one.certainty is not None), None) if output else None
        if said is None or volume is None:
            return None
        earlier = self._earlier.setdefault(volume.study_instance_uid, [])
        statement = study_statement(uid, paths, earlier, card)
        number = read_headers(paths[:1])[0].get("SeriesNumber")
        description = volume.header.series_description
        named = EarlierResult(uid, str(number or ""), description, said.certainty or 0.0, said.threshold or 0.0)
        earlier.append((named, paths))
        return statement


def earlier_result(standing: StandingResult, model: ModelRef) -> EarlierResult:
    """A stored result as a report names it. model: the one that reports now."""
    same = standing.model_digest == model.digest
    return EarlierResult(
        standing.series_instance_uid,
        standing.series_number,
        standing.description,
        standing.probability,
        standing.threshold,
        "" if same else f"{standing.model_name} {standing.model_version}",
        None if standing.report is None else report_reference(standing.study_instance_uid, standing.report),
    )


def study_statement(
    own_uid: str, own: Sequence[Path], earlier: Sequence[tuple[EarlierResult, Sequence[Path]]], card: Card
) -> StudyStatement | None:
    """What a series' result says together with earlier ones of its study, the oldest first; None without any.

    own: the series' files.  earlier: each result with its series' files, none if they are no longer here.
    """
    if not earlier:
        return None
    policy = Policy.from_table(card.suitability)
    results = tuple(result for result, _ in earlier)
    uids = [*(result.series_instance_uid for result in results), own_uid]
    candidates = [_candidate(paths, policy) for paths in (*(paths for _, paths in earlier), own)]
    rests_on, why = _best(uids, candidates)
    return StudyStatement(results, rests_on, why)


def _paths(at_hand: ExitStack, files: FileStore, instances: Sequence[StoredInstance]) -> list[Path]:
    """The files of a series, for as long as `at_hand` is open; none if any of them is gone."""
    if any(instance.gone is not None for instance in instances):
        return []
    try:
        # Only their headers are compared.
        return at_hand.enter_context(files.at_hand(instances, {instance.path for instance in instances}))
    except CorruptFile:
        return []


def _best(uids: Sequence[str], candidates: Sequence[Candidate | None]) -> tuple[str, str]:
    """The Series Instance UID of the best candidate, the first of equals, and why it is the best."""
    ranked = [candidate for candidate in candidates if candidate is not None]
    if len(ranked) < len(candidates):
        return uids[0], NOT_COMPARABLE
    merits = [tuple(candidate.merits().values()) for candidate in ranked]
    best = merits.index(max(merits))
    second = max((n for n in range(len(merits)) if n != best), key=merits.__getitem__)
    return uids[best], why_better(ranked[best], ranked[second]) or REPORTED_FIRST


def _candidate(paths: Sequence[Path], policy: Policy) -> Candidate | None:
    try:
        return examine(paths, policy) if paths else None
    except (UnsuitableSeries, CorruptInstance):
        return None


def report_reference(study_uid: str, report: StoredObject) -> Dataset:
    """The four UIDs by which a report is named."""
    reference = Dataset()
    reference.StudyInstanceUID = study_uid
    reference.SeriesInstanceUID = report.series_instance_uid
    reference.SOPClassUID = report.sop_class_uid
    reference.SOPInstanceUID = report.sop_instance_uid
    return reference
