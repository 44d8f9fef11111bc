"""backup: copies of the whole node that are made while it runs, checked, and brought back elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TimeRemainingColumn

from dicom_node.backup import verifying
from dicom_node.backup.creating import Creator, Made
from dicom_node.backup.manifest import Manifest, read_manifest
from dicom_node.backup.restoring import Restored, Restorer
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    err,
    files_of,
    out,
    plural,
    print_json,
    settings_from,
    utc_text,
)
from dicom_node.runtime.index import who
from storage import stores

group = typer.Typer(no_args_is_help=True, help="Back up the node while it runs, check a backup, restore one elsewhere.")
SHOWN = 20
Report = Callable[[str, int, int], None]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    for command in (create, verify, restore):
        group.command()(command)
    app.add_typer(group, name="backup")


def create(
    target: Annotated[Path, typer.Argument(help="Folder of backups, best on another disk; each has its own in it.")],
    previous: Annotated[
        Path | None, typer.Option(help="The backup whose files are linked; by default the last one in TARGET.")
    ] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="Then remove all but this node's newest so many.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Copy index, files, models and configuration to a new folder in TARGET, while the node runs.

    Secrets are left out and named. Status 1 also if files were lost before: the backup holds all others.
    """
    settings = settings_from(config)
    database, files = database_of(settings), files_of(settings)
    with _progress(quiet=json) as report:
        made = Creator(settings, database, files, config, who(), report).create(target, previous, keep)
    if json:
        removed = [str(folder) for folder in made.removed]
        facts = {"folder": str(made.folder), "seal": made.seal, "counts": made.counts, "removed": removed}
        print_json({**facts, **vars(made.manifest)})
    else:
        _print_made(made)
    raise typer.Exit(1 if made.manifest.lost else 0)


def _print_made(made: Made) -> None:
    manifest = made.manifest
    say = partial(out.print, markup=False, soft_wrap=True)
    say(f"{made.folder}: {plural(manifest.files, 'stored file')}, {manifest.size / 1e9:.1f} GB")
    say(", ".join(f"{count} {how}" for how, count in sorted(made.counts.items())) + " (of all files)")
    say(f"It holds everything up to row {manifest.point} of the audit trail.")
    for folder in made.removed:
        say(f"{folder} was removed.")
    if manifest.bucket:
        say(f"The stored files are in {manifest.bucket} and only listed here.")
    if manifest.secrets:
        say(f"Left out, keep them elsewhere: {', '.join(manifest.secrets)}")
    if manifest.outside:
        say(f"Not in it, the settings name them: {', '.join(manifest.outside)}")
    for path in manifest.lost[:SHOWN]:
        say(f"missing or damaged before the backup: {path}")
    if manifest.lost:
        say(f"{plural(len(manifest.lost), 'file')} of the index could not be backed up; the node asks for them again.")


def verify(
    backup: Annotated[Path, typer.Argument(help="A backup: a folder that `create` made.")], json: JsonOption = False
) -> None:
    """Read a whole backup back: every digest, the index, its audit trail. Status 1 names what is wrong."""
    manifest, seal = read_manifest(backup)
    with _progress(quiet=json) as report:
        found = list(verifying.problems(backup, report))
    if json:
        print_json({"problems": found, "seal": seal, **vars(manifest)})
    else:
        _print_verified(found, manifest)
    raise typer.Exit(1 if found else 0)


def _print_verified(found: list[str], manifest: Manifest) -> None:
    for problem in found[:SHOWN]:
        out.print(problem, markup=False, soft_wrap=True)
    if len(found) > SHOWN:
        out.print(f"and {len(found) - SHOWN} more")
    if found:
        return
    out.print(f"The backup is whole: made {utc_text(manifest.made_at)} UTC, {plural(manifest.files, 'stored file')}.")
    out.print(f"Audit trail to row {manifest.point}", soft_wrap=True)
    if manifest.engine != "sqlite":
        out.print("pg_restore can read the dump; whether the index in it holds together shows in a restore.")
    elif not verifying.is_of_this_schema(manifest):
        out.print(f"The index has schema {manifest.schema}, of another version: its rows are checked after a restore.")


def restore(
    backup: Annotated[Path, typer.Argument(help="A backup: a folder that `create` made.")],
    to: Annotated[Path, typer.Option("--to", help="The new data folder: new, or empty.")],
    hold: Annotated[
        bool, typer.Option("--hold/--send-at-once", help="Pause the destinations until `resume --destination`.")
    ] = True,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Make a node's data folder and index from a backup. Nothing that is there is overwritten.

    Stored files that are damaged in the backup are left out and named: status 1, and the rest is restored.
    The settings (--config) name the new database or bucket, if it is not SQLite in the new folder.
    """
    settings = settings_from(config).model_copy(update={"data_dir": to.absolute()})
    with _progress(quiet=json) as report:
        restorer = Restorer(
            settings.data_dir, settings.database_url, lambda: stores.files_of(settings), who(), hold, report
        )
        done = restorer.restore(backup)
    if json:
        print_json({"held": done.held, "missing": done.lost, "damaged": done.damaged, **vars(done.manifest)})
    else:
        _print_restored(done, to, backup)
    raise typer.Exit(1 if done.damaged else 0)


def _print_restored(done: Restored, to: Path, backup: Path) -> None:
    manifest = done.manifest
    say = partial(out.print, markup=False, soft_wrap=True)
    say(f"Restored to {to}: everything up to {utc_text(manifest.made_at)} UTC, audit row {manifest.head[0]}.")
    for path in done.damaged[:SHOWN]:
        say(f"damaged in the backup, left out: {path}")
    if done.damaged:
        say(f"{plural(len(done.damaged), 'stored file')} left out: other backups may hold the same damaged file.")
    if done.lost:
        say(f"{plural(done.lost, 'file')} that the index names are not there; they are taken when they are sent again.")
    say("Then:")
    say(f'  1. data_dir = "{to.absolute()}" in the configuration; the former one is in {backup / "configuration"}')
    if manifest.secrets:
        say(f"     fill in {', '.join(manifest.secrets)}")
    say("  2. dicom-node run")
    say("  3. have the PACS send again what it sent since then")
    for name in (one for one in done.held if one in manifest.destinations):
        say(f"  4. dicom-node resume --destination {name}: its results wait until then")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Report]:
    """A bar on a terminal, with the time that is left."""
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def report(what: str, done: int, of: int) -> None:
            progress.update(task, description=what, completed=done, total=of or None)

        yield report
