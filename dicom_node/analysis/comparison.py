"""How a result differs from an earlier one of the same patient: which one it is compared with, and what is said.

The model words it (`inference.comparing`), and sees days, numbers and how the scans were made. Whose they are, only the
node knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.analysis.analyse import Analysis
from dicom_node.analysis.content import measurements_of
from dicom_node.analysis.open_model import OpenModel
from dicom_node.analysis.study_statement import report_reference
from dicom_node.report.context import ChangeStatement
from dicom_node.report.person import Stated, examined
from inference.comparing import Compares, Examination, Scan
from storage import examinations
from storage.database import Database
from storage.examinations import EarlierResult
from storage.pseudonyms import Pseudonyms


@dataclass(frozen=True)
class Comparison:
    """A result beside those that stand for the latest earlier day.

    stored: what it can be compared by.  found: ids of those results.  earlier: the one that it was compared with; None
    if there is none, or the model compares nothing of them.  said: the model's words.
    """

    series_pk: int
    stored: examinations.Examination
    found: tuple[int, ...] = ()
    earlier: EarlierResult | None = None
    said: tuple[str, ...] = ()

    @property
    def statement(self) -> ChangeStatement | None:
        """What the report says; None if there is nothing to say."""
        earlier = self.earlier
        if earlier is None:
            return None
        report = None if earlier.report is None else report_reference(earlier.study_instance_uid, earlier.report)
        return ChangeStatement(self.said, report)

    def holds(self, tx: Connection) -> bool:
        """Whether the same earlier results still stand. They then stand until the transaction ends."""
        return examinations.earlier_ids(tx, self.series_pk, self.stored, locked=True) == self.found

    def record(self, tx: Connection, now: float, result_id: int) -> None:
        """Note it with the result."""
        earlier_id = None if self.earlier is None else self.earlier.result_id
        examinations.record(tx, now, result_id, self.stored, earlier_id, self.said)


def first_look(
    settings: Settings,
    series_pk: int,
    paths: Sequence[Path],
    analysis: Analysis,
    model: OpenModel,
    stated: Mapping[Path, Stated],
) -> Comparison | None:
    """What a result can be compared by; None if its model compares nothing, or it is not certain whose scan it is.

    stated: whose some of the images say that they are, if they were read before.
    """
    volume = analysis.volume
    if not settings.report.changes or analysis.finding is None or volume is None:
        return None
    if not isinstance(model.loaded, Compares):
        return None
    person = examined(paths, Pseudonyms(settings.storage.pseudonym_key.get_secret_value()), stated)
    if person is None:
        return None
    scan = asdict(Scan.of(volume.header))
    stored = examinations.Examination(person.person, model.identity.name, person.day.isoformat(), scan)
    return Comparison(series_pk, stored)


def compared(look: Comparison, database: Database, analysis: Analysis, model: OpenModel) -> Comparison:
    """The result compared with the one of the latest earlier day whose scan was made most alike."""
    with database.read() as tx:
        found = examinations.earlier_ids(tx, look.series_pk, look.stored)
        earlier = [examinations.earlier_result(tx, result_id) for result_id in found]
    scan = _scan(look.stored.scan)
    alike = sorted(earlier, key=lambda one: -scan.agreement(_scan(one.scan)))
    for one in alike:
        said = words(model, look.stored, analysis, one)
        if said:
            return Comparison(look.series_pk, look.stored, found, one, said)
    return Comparison(look.series_pk, look.stored, found)


def words(
    model: OpenModel, stored: examinations.Examination, analysis: Analysis, earlier: EarlierResult
) -> tuple[str, ...]:
    """What the model says of the change; nothing if it compares none, or if there is no result."""
    if analysis.output is None or not isinstance(model.loaded, Compares):
        return ()
    identity = model.identity
    now = Examination(
        date.fromisoformat(stored.day),
        analysis.output.measurements,
        _scan(stored.scan),
        f"{identity.name} {identity.version} {identity.digest}",
    )
    before = Examination(
        date.fromisoformat(earlier.day),
        measurements_of(earlier.content),
        _scan(earlier.scan),
        f"{earlier.model_name} {earlier.model_version} {earlier.model_digest}",
    )
    return model.loaded.compare(now, before)


def _scan(record: Mapping[str, Any]) -> Scan:
    return Scan(**record)
