"""Which series a batch has: of the index, of a folder, or of a PACS. A creation that was interrupted goes on.

The cases come in chunks, each with the place that the creation has come to, in one transaction.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from config.settings import Settings
from dicom_node.batch.labels import CaseLabels
from dicom_node.batch.local_files import LocalFile, Suspect, folders_below, read_local
from dicom_node.batch.pacs import days_of, series_matching
from dicom_node.errors import NodeError
from storage import batches
from storage.batches import Batch, NewCase
from storage.database import Database
from storage.models import patients, series, studies
from storage.series_state import SeriesState

AT_ONCE = 500
FOLDERS_AT_ONCE = 100
"""In one transaction."""
STORE_KEYS = ("Modality", "StudyDate", "SeriesDescription", "BodyPartExamined", "CallingAE")
USAGE = (
    '--from is "store [KEY=VALUE ...]", "folder PATH" or "pacs DESTINATION [KEY=VALUE ...]", '
    'such as "store StudyDate=20250101-20251231 SeriesDescription=*chest*"'
)


@dataclass(frozen=True)
class Source:
    """Where the series of a batch come from. kind: "store", "folder" or "pacs". where: path, or name of the PACS."""

    kind: str
    where: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def query(self) -> str:
        """As JSON."""
        return json.dumps({"where": self.where, "keys": dict(self.keys)}, sort_keys=True)


@dataclass
class Created:
    """What a creation found. unlabelled: series that no label names; unreadable: files that look like DICOM."""

    cases: int = 0
    unlabelled: int = 0
    unreadable: int = 0


def read_source(text: str, settings: Settings) -> Source:
    """The source that a person names. Raises NodeError, which says how it is named."""
    kind, _, rest = text.strip().partition(" ")
    if kind == "folder":
        path = Path(rest.strip()).expanduser().resolve()
        if not rest.strip() or not path.is_dir():
            raise NodeError(f"{path if rest.strip() else USAGE}: there is no such folder" if rest.strip() else USAGE)
        return Source("folder", str(path))
    words = shlex.split(rest)
    if kind == "store":
        return Source("store", "", _keys(words, STORE_KEYS))
    if kind != "pacs" or not words:
        raise NodeError(USAGE)
    if settings.dicom_destination(words[0]) is None:
        raise NodeError(f"there is no DICOM destination {words[0]!r}: name the PACS in [[destinations]]")
    keys = _keys(words[1:])
    days_of(keys)
    return Source("pacs", words[0], keys)


def _keys(words: Sequence[str], known: Sequence[str] = ()) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not equals or not name.isidentifier() or (known and name not in known):
            raise NodeError(f"{USAGE}; keys are {', '.join(known) or 'those of DICOM, by keyword'}")
    return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class Creator:
    """Fills a batch that is being created. done: told after each chunk what was found so far."""

    settings: Settings
    database: Database
    labels: CaseLabels
    done: Callable[[Created], None] = lambda so_far: None

    def fill(self, batch: Batch, source: Source) -> Created:
        """Add the cases that are not there yet. Raises NodeError, OSError, StorageError."""
        chunks = {"store": self._of_store, "folder": self._of_folder, "pacs": self._of_pacs}[source.kind]
        found = Created()
        for cases, cursor in chunks(source, batch, found):
            with self.database.transaction() as tx:
                found.cases += batches.add_cases(tx, batch.id, cases, cursor)
            self.done(found)
        return found

    def _case(self, uid: str, names: Sequence[str], place: str = "", pk: int | None = None) -> NewCase:
        line = self.labels.line_of([uid, *names])
        return NewCase(uid, place, line, pk)

    def _wanted(self, found: Created, case: NewCase) -> bool:
        if case.label_line is None and self.labels:
            found.unlabelled += 1
            return False
        return True

    # The index

    def _of_store(self, source: Source, batch: Batch, found: Created) -> Iterator[tuple[list[NewCase], str]]:
        after = int(batch.cursor or 0)
        while True:
            with self.database.read() as tx:
                rows = _stored(tx, after)
            if not rows:
                return
            after = rows[-1].id
            cases = [
                self._case(
                    row.series_instance_uid,
                    (row.study_instance_uid, row.accession_number, row.patient_id),
                    pk=row.id,
                )
                for row in rows
                if _matches(row, source.keys)
            ]
            yield [case for case in cases if self._wanted(found, case)], str(after)

    # A folder

    def _of_folder(self, source: Source, batch: Batch, found: Created) -> Iterator[tuple[list[NewCase], str]]:
        root, pending, relative = Path(source.where), dict[str, NewCase](), ""
        after = json.loads(batch.cursor) if batch.cursor else ""
        for number, (relative, paths) in enumerate(folders_below(root, after), 1):
            for one in self._series_of(paths, found):
                self._add_folder(batch.id, root, relative, one, pending)
            if number % FOLDERS_AT_ONCE == 0:
                yield [case for case in pending.values() if self._wanted(found, case)], json.dumps(relative)
                pending.clear()
        yield [case for case in pending.values() if self._wanted(found, case)], json.dumps(relative or after)

    def _series_of(self, paths: Sequence[Path], found: Created) -> list[LocalFile]:
        """One file of each series that some files belong to."""
        here: dict[str, LocalFile] = {}
        for path in paths:
            one = read_local(path, self.settings.receiver.max_instance_bytes)
            found.unreadable += isinstance(one, Suspect)
            if isinstance(one, LocalFile):
                here.setdefault(one.series_instance_uid, one)
        return list(here.values())

    def _add_folder(
        self, batch_id: int, root: Path, relative: str, one: LocalFile, pending: dict[str, NewCase]
    ) -> None:
        """Note that a series has files in a folder: in a new case, or in the one that it has already."""
        uid = one.series_instance_uid
        held = None
        if uid not in pending:
            with self.database.read() as tx:
                held = batches.place_of(tx, batch_id, uid)
        if held is None and uid not in pending:
            names = (one.study_instance_uid, one.header.accession_number, one.header.patient_id, *Path(relative).parts)
            pending[uid] = self._case(uid, names, json.dumps({"root": str(root), "folders": [relative]}))
            return
        known = json.loads(held if held is not None else pending[uid].place)
        if relative in known["folders"]:
            return
        known["folders"].append(relative)
        if held is None:
            pending[uid] = replace(pending[uid], place=json.dumps(known))
            return
        with self.database.transaction() as tx:
            batches.set_place(tx, batch_id, uid, json.dumps(known))

    # A PACS

    def _of_pacs(self, source: Source, batch: Batch, found: Created) -> Iterator[tuple[list[NewCase], str]]:
        pacs = self.settings.dicom_destination(source.where)
        assert pacs is not None  # noqa: S101 - as `read_source` found
        caller, pause_s = self.settings.sender, self.settings.batch.pacs_pause_s
        for number, keys in enumerate(days_of(source.keys), 1):
            if number <= int(batch.cursor or 0):
                continue
            cases = []
            for one in series_matching(pacs, caller, keys, pause_s):
                place = json.dumps({"pacs": source.where, "study": one["StudyInstanceUID"]})
                names = [one.get(name, "") for name in ("StudyInstanceUID", "AccessionNumber", "PatientID")]
                cases.append(self._case(one["SeriesInstanceUID"], names, place))
            yield [case for case in cases if self._wanted(found, case)], str(number)


def _stored(tx: Connection, after: int) -> Sequence[Any]:
    """The next series of the index, by number."""
    query = (
        select(series, studies.c.study_instance_uid, studies.c.accession_number, studies.c.study_date)
        .add_columns(patients.c.patient_id)
        .select_from(series.join(studies).join(patients))
        .where(series.c.id > after)
        .order_by(series.c.id)
        .limit(AT_ONCE)
    )
    return tx.execute(query).all()


def _matches(row: Any, keys: Mapping[str, str]) -> bool:
    if row.imported or row.canary or row.state != SeriesState.CLOSED or row.emptied_at is not None:
        return False
    first, dash, last = keys.get("StudyDate", "").partition("-")
    if first and not first <= row.study_date.replace("-", "") <= (last or "99999999" if dash else first):
        return False
    said = {
        "Modality": row.modality,
        "SeriesDescription": row.description,
        "BodyPartExamined": row.body_part,
        "CallingAE": row.calling_ae,
    }
    return all(fnmatchcase(text.casefold(), wanted(name, keys).casefold()) for name, text in said.items())


def wanted(name: str, keys: Mapping[str, str]) -> str:
    """The pattern that an attribute of a series must match: CT images unless something else is asked for."""
    return keys.get(name, "CT" if name == "Modality" else "*")
