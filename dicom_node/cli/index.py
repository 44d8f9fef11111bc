"""index: does the index belong to the stored files, and what to do if it does not."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer
from rich.progress import Progress
from sqlalchemy import func, inspect, select
from sqlalchemy.engine import make_url

from config.own_equipment import OwnEquipment
from config.settings import Settings
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    err,
    files_of,
    out,
    print_json,
    settings_from,
    utc_text,
)
from dicom_node.errors import NodeError
from dicom_node.runtime.adoption import Adopter, Adoption
from dicom_node.runtime.node_lock import only_node
from dicom_node.runtime.presence import host_name, place
from dicom_node.runtime.scheduler import ORPHAN_AGE_S as AGE_WHILE_RUNNING_S
from storage import audit, hosts, orphans, stores
from storage.database import Database
from storage.errors import StorageError
from storage.files import FileStore
from storage.identity import is_missing, look, open_for_adoption, raise_epoch
from storage.mark import Identity
from storage.models import instances, result_objects
from storage.pseudonyms import Pseudonyms
from storage.reconcile import ORPHAN_AGE_S

group = typer.Typer(no_args_is_help=True, help="Index and stored files: do they belong together?")
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
SHOWN = 20
APART = ("lost_files_found", "quarantined_files", "unreadable_files")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    group.command()(status)
    group.command()(adopt)
    group.command()(sweep)
    app.add_typer(group, name="index")


def status(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Do index and files belong together, what do they hold, which files does the index not know? Status 1 if not."""
    settings = settings_from(config)
    held, found, reason = look(settings.database_url, stores.files_of(settings, make=False))
    facts: dict[str, Any] = {"index": _identity(held), "files": _identity(found), "problem": reason}
    facts |= _counts(settings, is_one=held is not None or reason is None)
    if json:
        print_json(facts)
    else:
        _print_status(facts)
    raise typer.Exit(0 if reason is None else 1)


def _identity(identity: Identity | None) -> dict[str, object] | None:
    return vars(identity) if identity is not None else None


def _counts(settings: Settings, *, is_one: bool) -> dict[str, object]:
    """What rows and files there are; without an index, only files."""
    counts: dict[str, object] = {"instances": None, "result_objects": None, "last_sweep": None, "last_audit_row": None}
    database = _as_it_is(settings) if is_one else None
    if database is not None:
        try:
            with database.read() as tx:
                for table in (instances, result_objects):
                    counts[table.name] = tx.scalar(select(func.count()).select_from(table))
                counts["last_sweep"], counts["last_audit_row"] = orphans.last_sweep(tx), audit.head(tx)[0]
        except StorageError:
            database = None
    files = stores.files_of(settings, make=False)
    found = orphans.survey(database, files, float("inf"))
    return counts | {
        "stored_files": found.files,
        "unknown_files": len(found.unknown),
        "lost_files_found": len(found.lost),
        "quarantined_files": sum(len(paths) for _, paths in files.quarantined()),
        "unreadable_files": len(files.unreadable()),
    }


def _as_it_is(settings: Settings) -> Database | None:
    """The index, without a change to it; None if there is none, or nothing in it.

    Raises NodeError for one of an earlier version: its rows cannot be read before the node brought it up to date.
    """
    database = None if is_missing(settings.database_url) else Database(settings.database_url)
    held, newest = database.schema() if database is not None else (None, None)
    if held is not None and held != newest:
        raise NodeError(f"the index has schema {held}, this program {newest}: `dicom-node run` brings it up to date")
    return database if held is not None else None


def _print_status(facts: dict[str, Any]) -> None:
    if facts["problem"]:
        out.print(f"They do not belong together: {facts['problem']}.", markup=False, soft_wrap=True)
    else:
        out.print("Index and files belong together.")
    for name in ("index", "files"):
        held = facts[name]
        out.print(f"{name}: " + (f"store {held['store']}, epoch {held['epoch']}" if held else "no identity"))
    for name in ("instances", "result_objects", "last_audit_row", "stored_files", "unknown_files",
                 *APART):  # fmt: skip
        out.print(f"{name.replace('_', ' ')}: {'-' if facts[name] is None else facts[name]}")
    last = facts["last_sweep"]
    text = f"{utc_text(last['at'])} UTC, {last['files']} files, {last['outcome']}" if last else "none"
    out.print(f"last sweep: {text}", markup=False)


def adopt(
    dry_run: DryOption = False,
    merge: Annotated[bool, typer.Option(help="Also if index and files belong to different nodes.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Record the stored files that the index does not know, from their own headers; the node must be stopped.

    Afterwards index and files belong together, whatever they were before.
    """
    settings = settings_from(config)
    with stopped(settings):
        files = files_of(settings)
        database = _as_it_is(settings) if dry_run else open_for_adoption(settings.database_url, files, merge=merge)
        done = _adopt(settings, database, files, dry=dry_run, quiet=json)
        if database is not None and not dry_run:
            _bind(database, files, done)
    facts = {"dry_run": dry_run, **vars(done)}
    if json:
        print_json(facts)
    else:
        _print_adoption(done, dry_run)


def _adopt(settings: Settings, database: Database | None, files: FileStore, *, dry: bool, quiet: bool) -> Adoption:
    pseudonyms = Pseudonyms(settings.storage.pseudonym_key.get_secret_value())
    with Progress(console=err, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task("files")

        def report(count: int, of: int) -> None:
            progress.update(task, completed=count, total=of)

        own = OwnEquipment.of(settings.report)
        adopter = Adopter(database, files, own, pseudonyms, settings.completion.quiet_s, report)
        return adopter.run(time.time(), dry=dry)


def _bind(database: Database, files: FileStore, done: Adoption) -> None:
    """From now on they belong together; the audit trail says by whose word."""
    with database.transaction() as tx:
        counts = {name: value if isinstance(value, int) else len(value) for name, value in vars(done).items()}
        audit.append(tx, time.time(), "store.adopted", outcome="ADOPTED", detail=counts)
    raise_epoch(database, files)


def _print_adoption(done: Adoption, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    out.print(f"{done.adopted} instances {would}adopted, {done.conflicts} set aside beside one that came before.")
    for paths, what in (
        (done.spare, f"files {would}moved to the quarantine: the index has their bytes in another file"),
        (done.own, f"files {would}moved to the quarantine: objects of own results, which no row names"),
        (done.canaries, f"files {would}moved to the quarantine: images of canaries, which the node made itself"),
        (done.unreadable, f"files {would}kept apart, where nothing deletes them: they cannot be read"),
    ):
        if paths:
            out.print(f"{len(paths)} {what}:")
            for path in paths[:SHOWN]:
                out.print(f"  {path}", markup=False)
    if not dry_run:
        out.print("Index and files belong together now. Start the node; it closes and analyses what was adopted.")


def sweep(
    yes: Annotated[bool, typer.Option("--yes", help="Set them aside, however many they are.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    r"""The files that the index does not know; with --yes, move them to the quarantine folder.

    There they are deleted after \[storage] quarantine_days. `index adopt` records those that are instances instead.
    """
    settings = settings_from(config)
    database, files = database_of(settings), files_of(settings)
    with _age_s(settings) as age_s:
        if yes:
            done = orphans.sweep(database, files, time.time(), age_s, everything=True)
            paths, folder = list(done.taken), done.folder
        else:
            paths, folder = orphans.survey(database, files, time.time() - age_s).unknown, ""
    if json:
        print_json({"files": paths, "folder": folder})
        return
    if not paths:
        out.print("The index knows all stored files.")
        return
    moved = f"; moved to {files.where}/{folder}:" if yes else ":"
    out.print(f"{len(paths)} files are in no row of the index{moved}")
    for path in paths[:SHOWN]:
        out.print(f"  {path}", markup=False)
    if not yes:
        out.print("'dicom-node index sweep --yes' moves them to the quarantine; 'dicom-node index adopt' records them.")


@contextmanager
def _age_s(settings: Settings) -> Iterator[float]:
    """While a node runs, a file without a row may belong to an instance that is being received."""
    with ExitStack() as held:
        try:
            held.enter_context(stopped(settings))
        except NodeError:
            yield AGE_WHILE_RUNNING_S
        else:
            yield ORPHAN_AGE_S


@contextmanager
def stopped(settings: Settings) -> Iterator[None]:
    """Keep nodes from starting meanwhile on this machine. Raises NodeError if one runs, here or elsewhere."""
    with only_node(settings.data_dir, threading.Event(), patience_s=0):
        elsewhere = _hosts_alive(settings)
        if elsewhere:
            raise NodeError(f"the node runs on {', '.join(elsewhere)}; stop it there first")
        yield


def _hosts_alive(settings: Settings) -> list[str]:
    """The other hosts that work on the index, if several may."""
    if make_url(settings.database_url).get_backend_name() == "sqlite":
        return []
    database = Database(settings.database_url)
    with database.read() as tx:
        if not inspect(tx).has_table("hosts"):
            return []
        return [host.name for host in hosts.others_alive(tx, host_name(), place(settings), database.now())]
