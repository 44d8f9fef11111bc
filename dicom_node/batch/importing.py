"""Bring one series from local files into the store, for a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config.reasons import ReasonCode, Refusal
from dicom_node.batch.local_files import Digests, LocalFile, Suspect, digests, read_local, stored_bytes
from dicom_node.errors import NodeError
from dicom_node.receiver.negotiation import IMAGE_CLASSES
from storage import imported
from storage.arrival import Arrival
from storage.audit import NOBODY, Peer
from storage.database import Database
from storage.files import FileStore, StoredFile
from storage.imported import ImportedSeries, content_digest
from storage.pseudonyms import Pseudonyms


class CannotImport(NodeError):
    """A series cannot be imported; trying again will not help. Its message is the reason's sentence."""

    def __init__(self, code: ReasonCode, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal = Refusal(code, sentence)


class Changed(NodeError):
    """Files changed while they were copied: try again."""


@dataclass(frozen=True)
class Importer:
    """database, files: where to. max_bytes: of one file."""

    database: Database
    files: FileStore
    pseudonyms: Pseudonyms
    max_bytes: int

    def run(
        self,
        series_uid: str,
        paths: Sequence[Path],
        now: float,
        *,
        source: str,
        peer: Peer = NOBODY,
        expected: frozenset[str] | None = None,
    ) -> tuple[int, list[str]]:
        """Import the files of a series. Returns its number in the index, and stored files that are not needed.

        paths: files among which those of the series are. expected: SOP Instance UIDs that must be there.
        What the index holds already, received or imported, is not copied.
        Raises CannotImport, Changed, OSError, StorageError.
        """
        found = self._of_series(series_uid, paths)
        missing = len(expected - found.keys()) if expected is not None else 0
        if missing:
            raise CannotImport(ReasonCode.MISSING_SLICES, f"{missing} of {len(expected or ())} instances did not come.")
        known = {uid: digests(one) for uid, one in found.items()}
        as_received = content_digest({uid: one.received for uid, one in known.items()})
        as_imported = content_digest({uid: one.imported for uid, one in known.items()})
        with self.database.read() as tx:
            held = imported.held_series(tx, series_uid, as_received, as_imported)
        if held is not None:
            return held, []
        source_digest = content_digest({uid: one.found for uid, one in known.items()})
        new = ImportedSeries(self._copied(found, known, peer), source, peer, source_digest)
        with self.database.transaction() as tx:
            return imported.record(tx, new, now)

    def _of_series(self, series_uid: str, paths: Sequence[Path]) -> dict[str, LocalFile]:
        """The files of a series by SOP Instance UID. Raises CannotImport if they do not make one series."""
        read = [read_local(path, self.max_bytes) for path in paths]
        mine = [one for one in read if isinstance(one, LocalFile) and one.series_instance_uid == series_uid]
        if not mine:
            raise CannotImport(ReasonCode.NO_LONGER_STORED, "No file of the series is where it was.")
        _refuse_suspects(series_uid, mine, [one for one in read if isinstance(one, Suspect)])
        if not any(one.sop_class_uid in IMAGE_CLASSES for one in mine):
            raise CannotImport(ReasonCode.NOT_CT, "The series holds no CT images.")
        if len({(one.study_instance_uid) for one in mine}) > 1:
            raise CannotImport(ReasonCode.MIXED_SERIES, "Files of the series name several studies.")
        if len({one.header.patient_id for one in mine}) > 1:
            raise CannotImport(ReasonCode.MIXED_PATIENTS, "Files of the series name several patients.")
        return _by_uid(mine)

    def _copied(self, found: dict[str, LocalFile], known: dict[str, Digests], peer: Peer) -> list[Arrival]:
        made: list[Arrival] = []
        try:
            for uid, one in found.items():
                file = self.files.write_durably(stored_bytes(one))
                made.append(self._arrival(one, file, peer))
                if file.sha256 != known[uid].imported:
                    raise Changed("a file changed while it was copied")
        except (Changed, OSError):
            for arrival in made:
                self.files.remove(arrival.file.path)
            raise
        return made

    def _arrival(self, one: LocalFile, file: StoredFile, peer: Peer) -> Arrival:
        return Arrival(
            sop_instance_uid=one.sop_instance_uid,
            sop_class_uid=one.sop_class_uid,
            series_instance_uid=one.series_instance_uid,
            study_instance_uid=one.study_instance_uid,
            transfer_syntax_uid=one.transfer_syntax_uid,
            calling_ae=peer.ae_title or imported.FOLDER,
            called_ae="",
            address=peer.address or "",
            file=file,
            header=self.pseudonyms.header(one.header),
        )


def _refuse_suspects(series_uid: str, mine: Sequence[LocalFile], suspects: Sequence[Suspect]) -> None:
    """A file that cannot be read, and names this series or lies beside it and names none, may be one of its slices."""
    folders = {one.path.parent for one in mine}
    count = sum(one.series_uid == series_uid or (not one.series_uid and one.path.parent in folders) for one in suspects)
    if count:
        said = "1 file" if count == 1 else f"{count} files"
        raise CannotImport(ReasonCode.CORRUPT_INSTANCE, f"{said} of the series, or beside it, cannot be read.")


def _by_uid(mine: Sequence[LocalFile]) -> dict[str, LocalFile]:
    """One file for each instance. The same instance twice is one; with other bytes it contradicts itself."""
    found: dict[str, LocalFile] = {}
    for one in mine:
        first = found.setdefault(one.sop_instance_uid, one)
        if first is not one and digests(first).imported != digests(one).imported:
            raise CannotImport(ReasonCode.CONFLICTING_SLICES, "Two files of one instance have different contents.")
    return found
