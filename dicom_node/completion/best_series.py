"""The best series of a study: once the study is quiet, its series are ranked, one is analysed, and the audit says why.

Headers and geometry decide here. The worker judges the pixels; if it refuses, the next series in the ranking is
analysed. If a study's result may be at a destination already, that series stays the chosen one: a late series is passed
over, and after a late instance of the reported series a new report replaces the earlier one.
"""

from collections.abc import Mapping, Sequence

import structlog

from config.reasons import ReasonCode, Refusal
from config.settings import Settings
from dicom_node.logs import short
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.models.cards import read_card
from inference.models.registry import find_model
from inference.suitability.policy import Policy
from inference.suitability.ranking import Candidate, examine, why_better
from storage import selection, series
from storage.database import Database
from storage.errors import CorruptFile, NotDueYet, StorageError
from storage.files import FileStore
from storage.jobs import ModelRef, Models
from storage.results import ResultOutcome
from storage.selection import Choice, Member
from storage.series_state import Selection

log = structlog.get_logger()


class BestSeries:
    """Chooses the series of quiet studies."""

    def __init__(self, settings: Settings, database: Database, files: FileStore) -> None:
        self._settings = settings
        self._database = database
        self._files = files

    def choose(self, models: Models, now: float) -> None:
        """Decide about every study that is ready. models: what the chosen series are queued for."""
        with self._database.read() as tx:
            ready = selection.undecided_studies(tx, now)
        for study_pk in ready:
            with self._database.read() as tx:
                found = selection.members(tx, study_pk)
            choice = self._decide(found, models.reporting)
            self._record(choice, now, models)

    def _record(self, choice: Choice, now: float, models: Models) -> None:
        chosen = next((m for m in choice.members if m.series_pk == choice.chosen), None)
        source = self._settings.source(chosen.calling_ae) if chosen else None
        try:
            with self._database.transaction() as tx:
                mine = models.of(chosen.calling_ae) if chosen else models
                selection.record_choice(tx, choice, now, mine or models, source.priority if source else 0)
        except NotDueYet:
            return  # an instance came in the meantime: the study is looked at again once it is quiet
        log.info(
            "best series chosen",
            study=short(choice.members[0].study_instance_uid),
            series=chosen.series_pk if chosen else None,
        )

    def _decide(self, members: Sequence[Member], model: ModelRef) -> Choice:
        if self._settings.completion.select == "all":
            return take_next(members)
        if _result(members) is not None:
            return decide(members, {})
        card = read_card(find_model(self._settings.models_dir, model.name, model.version))
        policy = Policy.from_table(card.suitability)
        return decide(members, {m.series_pk: self._examine(m, policy) for m in members if _takes_part(m)})

    def _examine(self, member: Member, policy: Policy) -> Candidate | Refusal:
        """The properties of a series, or why it cannot be analysed."""
        if member.refusal is not None and member.refusal.code != ReasonCode.PASSED_OVER:
            return member.refusal
        with self._database.read() as tx:
            held = series.series_instances(tx, member.series_pk)
        try:
            with self._files.at_hand(held, {item.path for item in held}) as paths:  # only their headers are read
                return examine(paths, policy)
        except UnsuitableSeries as error:
            return error.refusal
        except (CorruptInstance, CorruptFile) as error:
            return Refusal(ReasonCode.CORRUPT_INSTANCE, str(error))
        except StorageError:
            raise  # of the store and not of this series: it is decided when the store is back
        except Exception as error:  # noqa: BLE001 - whatever one series holds, the others of the study are decided
            log.error(
                "series could not be examined", series=short(member.series_instance_uid), error=type(error).__name__
            )
            return Refusal(ReasonCode.CORRUPT_INSTANCE, "Its headers cannot be examined.")


def decide(members: Sequence[Member], examined: Mapping[int, Candidate | Refusal]) -> Choice:
    """The rule: which series of a quiet study is analysed now, and what becomes of the others.

    examined: by `series_pk`, the properties of the members that take part, or why they are refused.
    """
    analysed = _result(members)
    if analysed is not None:
        return _passed_over_by(analysed, members)
    others: dict[int, tuple[Selection, Refusal | None]] = {
        m.series_pk: (Selection.UNSUITABLE, m.reason) for m in members if _was_refused(m)
    }
    chosen, why = _best(members, examined)
    refusal = None if chosen is None else _reason(examined[chosen.series_pk])
    notes = []
    for member in (m for m in members if m.series_pk in examined and m is not chosen):
        selection, reason = _beside(member, examined, chosen)
        others[member.series_pk] = selection, reason
        notes.append({"series": member.series_instance_uid, "code": reason.code, "why": reason.sentence})
    detail: dict[str, object] = {"why": why, "passed_over": notes}
    if chosen is not None:
        found = examined[chosen.series_pk]
        detail["what"] = found.in_words() if isinstance(found, Candidate) else found.sentence
    return Choice(members, chosen.series_pk if chosen else None, refusal, others, detail)


def take_next(members: Sequence[Member]) -> Choice:
    """For a site that has every series analysed again: queue what still waits from before, one after the other."""
    waiting = next((m for m in members if m.selection == Selection.WAITING), None)
    others = {m.series_pk: (_done(m), m.reason) for m in members if m.selection == Selection.CHOSEN}
    chosen, refusal = (waiting.series_pk, waiting.refusal) if waiting else (None, None)
    return Choice(members, chosen, refusal, others, {"why": "every series is analysed"})


def _best(members: Sequence[Member], examined: Mapping[int, Candidate | Refusal]) -> tuple[Member | None, str]:
    """The series to analyse now, or to report as not analysed; and why this one."""
    there = [m for m in members if m.series_pk in examined]
    reported = next((m for m in there if m.reported), None)
    if reported is not None:
        return reported, "an earlier report on this series may be at a destination, and must not be contradicted"
    suitable = [m for m in there if isinstance(examined[m.series_pk], Candidate)]
    if suitable:
        merits = {m.series_pk: tuple(_candidate(examined[m.series_pk]).merits().values()) for m in suitable}
        # Of equals, the first by UID: they are sorted that way.
        best = max(suitable, key=lambda m: merits[m.series_pk])
        return best, f"the best of {len(suitable)} series that headers and geometry allow"
    if there and not any(_was_refused(m) or m.selection == Selection.UNSUITABLE for m in members):
        most = max(there, key=lambda m: m.instance_count)
        return most, "no series of the study can be analysed; this one has the most images and is reported as such"
    return None, "no other series of the study can be analysed"


def _beside(
    member: Member, examined: Mapping[int, Candidate | Refusal], chosen: Member | None
) -> tuple[Selection, Refusal]:
    """What becomes of a series that was not chosen, and why."""
    found = examined[member.series_pk]
    if not isinstance(found, Candidate):
        return Selection.UNSUITABLE, found
    better = examined[chosen.series_pk] if chosen else None
    merit = why_better(better, found) if isinstance(better, Candidate) else ""
    why = f"Another series of the study is analysed: {merit or 'equal, or reported before'}."
    return Selection.PASSED_OVER, Refusal(ReasonCode.PASSED_OVER, why)


def _passed_over_by(analysed: Member, members: Sequence[Member]) -> Choice:
    reason = Refusal(ReasonCode.PASSED_OVER, "Another series of the study was analysed already.")
    others: dict[int, tuple[Selection, Refusal | None]] = {
        m.series_pk: (Selection.PASSED_OVER, reason) for m in members if m.selection == Selection.WAITING
    }
    # An operator may have had further series analysed: theirs ends here too.
    others |= {m.series_pk: (_done(m), None) for m in members if m.selection == Selection.CHOSEN and m.outcome}
    late = [m.series_instance_uid for m in members if m.selection == Selection.WAITING]
    detail = {"why": "the study has its result", "analysed": analysed.series_instance_uid, "passed_over": late}
    return Choice(members, None, None, others, detail)


def _result(members: Sequence[Member]) -> Member | None:
    """The series that the study's result is about, if it has one."""
    chosen = (Selection.CHOSEN, Selection.ANALYSED)
    return next((m for m in members if m.selection in chosen and m.outcome == ResultOutcome.ANALYSED), None)


def _was_refused(member: Member) -> bool:
    return (
        member.selection == Selection.CHOSEN and member.outcome is not None and member.outcome != ResultOutcome.ANALYSED
    )


def _takes_part(member: Member) -> bool:
    return member.selection in (Selection.WAITING, Selection.PASSED_OVER) or (
        member.selection == Selection.CHOSEN and member.outcome is None
    )


def _done(member: Member) -> Selection:
    return Selection.ANALYSED if member.outcome == ResultOutcome.ANALYSED else Selection.UNSUITABLE


def _reason(found: Candidate | Refusal) -> Refusal | None:
    return None if isinstance(found, Candidate) else found


def _candidate(found: Candidate | Refusal) -> Candidate:
    if not isinstance(found, Candidate):
        raise TypeError("a refused series has no merits")
    return found
