"""forget: delete on request everything that names a patient."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    err,
    files_of,
    note_reading,
    plural,
    print_json,
    say,
    settings_from,
)
from dicom_node.errors import NodeError
from dicom_node.runtime.forgetting import Forgetter, compact, copies_of_index, stored_text
from dicom_node.runtime.index import who
from dicom_node.runtime.node_lock import only_node
from storage import forgetting, hosts, known_of_patient
from storage.database import Database
from storage.files import FileStore
from storage.forgetting import Forgetting
from storage.known_of_patient import KnownSeries
from storage.pseudonyms import Pseudonyms

ASK = "-"
NOT_REACHED = (
    "backups of the index and of the files, and an index that was moved elsewhere",
    "the PACS and whatever else got images or results, with their logs",
    "the repository of audit messages, and heads or logs that were noted outside",
    "what was exported: CSV, verdicts, data sets for training, reports of batches",
    "copies of files on other hosts (object store only), until their room is needed",
    "former versions of objects, if the bucket keeps them (versioning, object lock)",
    "blocks that the disk or the file system keeps; with PostgreSQL also its log, standbys and backups",
)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(forget)


def forget(
    patient: Annotated[
        str,
        typer.Argument(metavar="[PATIENT]", help='Patient ID; "-" asks for it, so that no list of processes has it.'),
    ] = "",
    issuer: Annotated[
        str | None, typer.Option(help="Only series with this Issuer of Patient ID; empty: only those without one.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit trail; without patient data.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    even_undelivered: Annotated[
        bool, typer.Option("--even-undelivered", help="Also what is received, analysed or delivered at present.")
    ] = False,
    archives: Annotated[Path | None, typer.Option(help="Where archives of the audit trail were moved.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Delete on request everything that names a patient: images, results, rows, messages, and their traces in the audit
    trail, which stays verifiable.

    Without PATIENT, go on with a request that was interrupted. The node may run; stop it to have the index's file
    written anew as well.
    """
    settings = settings_from(config)
    database, files = database_of(settings), files_of(settings)
    forgetter = Forgetter(settings, database, files, archives, lambda what: err.print(f"... {what}"))
    with _stopped(settings) as stopped:
        forgetter.find_out_whose()
        if not patient:
            requests = _carry_out(forgetter)
            _compact(database, stopped)
            say(f"{plural(requests, 'request')} carried out to the end.")
            return
        given = typer.prompt("Patient ID", hide_input=True) if patient == ASK else patient
        request = _Request(settings, database, files, given.strip(), issuer, reason.strip())
        if not json or dry_run:
            request.show(json)
        if dry_run:
            return
        request.refuse_unless_it_may(forgetter.missing_archives(), even_undelivered=even_undelivered)
        if not yes:
            typer.confirm("Delete all this? It cannot be undone", abort=True)
        number = request.begin()
        _carry_out(forgetter)
        with database.read() as tx:
            done, left = forgetting.get(tx, number), request.left(tx)
        _compact(database, stopped)  # afterwards `database` is no longer the file that it opened
    if left:
        raise NodeError(
            f"not everything of the patient is gone: {', '.join(left)}; if it came in meanwhile, call again"
        )
    _tell(done, request, json=json, compacted=stopped or database.is_server)


def _carry_out(forgetter: Forgetter) -> int:
    """Carry out what was asked for. Returns how many requests there were. Raises NodeError if the disk fails."""
    try:
        return forgetter.go_on()
    except OSError as error:  # such as a full disk
        what = "not everything is deleted yet; call `dicom-node forget` again, without a patient, to go on"
        raise NodeError(f"{error.strerror or type(error).__name__}: {what}") from error


@contextmanager
def _stopped(settings: Settings) -> Iterator[bool]:
    """Whether no node runs on this machine; none starts meanwhile then."""
    lock = only_node(settings.data_dir, threading.Event(), patience_s=0)
    try:
        lock.__enter__()
    except NodeError:
        yield False
        return
    try:
        yield True
    finally:
        lock.__exit__(None, None, None)


def _compact(database: Database, stopped: bool) -> None:
    if stopped or database.is_server:
        err.print("... writing the index anew")
        compact(database)


class _Request:
    """What a person asked for, and what the index has of it."""

    def __init__(
        self, settings: Settings, database: Database, files: FileStore, patient: str, issuer: str | None, reason: str
    ) -> None:
        self._database, self._files, self._given, self._reason = database, files, patient, reason
        self._patient_id = Pseudonyms(settings.storage.pseudonym_key.get_secret_value()).of(patient)
        if not patient:
            raise NodeError("a Patient ID is wanted")
        with database.read() as tx:
            everything = known_of_patient.known_series(tx, self._patient_id, database.now())
            if not everything and not forgetting.is_named(tx, self._patient_id):
                raise NodeError("the index has nothing of this patient; spell the Patient ID as the scanner sends it")
            self.series, self.unknown = self._of_issuer(tx, everything, issuer)
            self._whole = len(self.series) == len(everything)
            self._about = forgetting.about(tx, self._patient_id, self.series, whole=self._whole)
            self.told = known_of_patient.told(tx, self.series)
            self._names = known_of_patient.names(tx, self._patient_id)
        if not self.series and not self._whole:
            raise NodeError("no series of this patient has this issuer")

    def _of_issuer(
        self, tx: Connection, everything: list[KnownSeries], issuer: str | None
    ) -> tuple[list[KnownSeries], list[KnownSeries]]:
        """The series of an issuer, and those of which it is not known, because no file is left."""
        if issuer is None:
            return everything, []
        paths = known_of_patient.file_of_each(tx, everything)
        said = {pk: path and stored_text(self._files, path, "IssuerOfPatientID") for pk, path in paths.items()}
        mine = [one for one in everything if said[one.series_pk] == issuer.strip()]
        return mine, [one for one in everything if said[one.series_pk] is None]

    def show(self, as_json: bool) -> None:
        """What would be deleted."""
        note_reading(self._database, "forget", series=len(self.series))
        copies = [str(path) for path in copies_of_index(self._database)]
        if as_json:
            print_json({
                "series": [vars(one) for one in self.series],
                "issuer_unknown": [one.series_pk for one in self.unknown],
                "copies_of_index": copies,
                "destinations": self.told,
                "not_reached": NOT_REACHED,
            })  # fmt: skip
            return
        for one in self.series:
            files, results = plural(one.files, "file"), plural(one.results, "result")
            say(f"series {one.series_pk}  {one.modality} {one.description}  {files}, {results}")
            for what in (*one.open, *one.busy):
                say(f"    {what}")
        say(f"{plural(len(self.series), 'series', 'series')}, {plural(sum(one.files for one in self.series), 'file')}.")
        if self.unknown:
            numbers = ", ".join(str(one.series_pk) for one in self.unknown)
            say(f"Not deleted, because no file is left that says who issued the ID: series {numbers}.")
        for path in copies:
            say(f"Also a copy of the index from before an upgrade, with all its patients: {path}")

    def refuse_unless_it_may(self, missing: Sequence[str], *, even_undelivered: bool) -> None:
        """Raises NodeError."""
        if missing:
            raise NodeError(
                f"archives of the audit trail are not where they were: {', '.join(missing)}; see --archives"
            )
        busy = [f"series {one.series_pk} {what}" for one in self.series for what in one.busy]
        if busy:
            raise NodeError(f"{'; '.join(busy)} at this moment: try again in a minute")
        unfinished = [f"series {one.series_pk}: {what}" for one in self.series for what in one.open]
        if unfinished and not even_undelivered:
            raise NodeError(f"{'; '.join(unfinished)}. Wait, or give --even-undelivered")
        words = {self._given, *(part for name in self._names for part in name.replace("^", " ").split())}
        if any(len(word) > 2 and word.casefold() in self._reason.casefold() for word in words):
            raise NodeError("--reason names the patient; it stays in the audit trail")
        self._refuse_under_former_versions()

    def _refuse_under_former_versions(self) -> None:
        """They would call the audit trail altered."""
        if not self._database.is_server:
            return
        with self._database.read() as tx:
            alive = [host for host in hosts.all_of(tx) if host.lives(self._database.now())]
        held, _ = self._database.schema()
        former = [host.name for host in alive if host.schema_version != held]
        if former:
            raise NodeError(f"hosts of a former version are at work: {', '.join(former)}; bring them up to date first")

    def begin(self) -> int:
        """From now on it is carried out, whatever happens. Returns the number of the request."""
        with self._database.transaction() as tx:
            return forgetting.begin(tx, self._about, who(), self._reason, self._database.now())

    def left(self, tx: Connection) -> list[str]:
        """What the index still has of the patient, in words."""
        return forgetting.left_of(tx, self._about, self._database.now())


def _tell(done: Forgetting, request: _Request, *, json: bool, compacted: bool) -> None:
    if json:
        counts = {name: getattr(done, name) for name in ("series", "files", "audit_rows")}
        print_json({
            "number": done.id, **counts, "written_anew": compacted, "destinations": request.told,
            "not_reached": NOT_REACHED,
        })  # fmt: skip
        return
    rows = f"the patient was taken out of {plural(done.audit_rows, 'row')} of the audit trail"
    say(f"Forgotten: {plural(done.series, 'series', 'series')}, {plural(done.files, 'file')}; {rows}.")
    if not compacted:
        say("The node runs, so remains may be in free pages of the index until its file is written anew:")
        say("at the next maintenance, stop the node and call `dicom-node forget`.")
    if request.told:
        say(f"Results were sent to {', '.join(request.told)}: delete them there.")
    say("Not reached:")
    for what in NOT_REACHED:
        say(f"  - {what}")
