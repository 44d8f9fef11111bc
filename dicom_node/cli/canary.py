"""canary run, show and expect: the study with a known result that the node sends to itself."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from config.settings import Settings
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    local_text,
    note_operator,
    print_json,
    say,
    settings_from,
    zone,
)
from dicom_node.errors import NodeError
from dicom_node.runtime.index import who
from storage import canaries
from storage.canaries import CanaryState, Run
from storage.database import Database

POLL_S = 0.5
GRACE_S = 60.0
"""The node ends a canary that is overdue at its next step; one that does not run never does."""
group = typer.Typer(no_args_is_help=True, help="A study with a known result, sent to the node itself.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="canary")


@group.command()
def run(
    wait: Annotated[bool, typer.Option(help="Until it is through.")] = True,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Send a canary now, and say what became of it; the exit status is 1 unless it passes."""
    settings = settings_from(config)
    if settings.canary.every_hours is None:
        raise NodeError("canaries are off: set every_hours in [canary], and have the node read it")
    from dicom_node.canary.runner import ask

    database = database_of(settings)
    number = ask(database, settings, who())
    with database.transaction() as tx:
        note_operator(tx, "canary", canary=number)
    found = _ended(database, number) if wait else _of(database, number)
    if json:
        print_json(vars(found))
    else:
        say("\n".join(_lines(found)))
    if wait and found.state != CanaryState.PASSED:
        raise typer.Exit(1)


def _of(database: Database, number: int) -> Run:
    with database.read() as tx:
        return next(one for one in canaries.latest(tx, 100) if one.id == number)


def _ended(database: Database, number: int) -> Run:
    """The canary once it is over. Raises NodeError if the node does nothing about it."""
    found = _of(database, number)
    while found.ended_at is None:
        if database.now() > found.due_at + GRACE_S:
            raise NodeError(f"canary {number} is {found.state.lower()} since long: does the node run?")
        time.sleep(POLL_S)
        found = _of(database, number)
    return found


@group.command()
def show(
    limit: Annotated[int, typer.Option(min=1, help="The latest so many.")] = 10,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """The latest canaries, what became of each, and whether that is an alarm."""
    settings = settings_from(config)
    database = database_of(settings)
    with database.read() as tx:
        shown = standing(tx, settings, database.now())
        shown["canaries"] = [vars(one) for one in canaries.latest(tx, limit)]
    if json:
        print_json(shown)
        return
    say("\n".join(_headline(settings, shown)))
    for one in shown["canaries"]:
        say("\n".join(_lines(Run(**one))))


def standing(tx: Any, settings: Settings, now: float) -> dict[str, Any]:
    """Whether canaries are sent, what is wrong, and when one passed last."""
    patience_s = settings.canary.patience_s
    passed = canaries.last_in(tx, CanaryState.PASSED)
    alarm = None if patience_s is None else canaries.alarm(tx, now, patience_s)
    return {"on": patience_s is not None, "alarm": alarm, "passed_at": passed.ended_at if passed else None}


def _headline(settings: Settings, shown: dict[str, Any]) -> Iterator[str]:
    if not shown["on"]:
        yield "Canaries are off: every_hours is not set in [canary]."
    elif shown["alarm"]:
        yield f"ALARM: the canary is {shown['alarm']}." if shown["alarm"] == "stale" else "ALARM: see the newest one."
    else:
        yield f"All is well. A canary is sent every {settings.canary.every_hours:g} h."
    if shown["passed_at"]:
        yield f"One passed last at {local_text(shown['passed_at'])} {zone()}."


def _lines(one: Run) -> Iterator[str]:
    series = "" if one.series_pk is None else f", series {one.series_pk}"
    yield f"canary {one.id}, {local_text(one.asked_at)}, asked for by {one.asked_by}{series}: {one.state}"
    if one.said:
        yield f"  {one.said}"


@group.command()
def expect(
    number: Annotated[int, typer.Argument(metavar="CANARY", help="Number of a canary, as `canary show` has it.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Expect of later canaries what was found of this one, as after an update that is known to change results."""
    from dicom_node.canary.judging import expect_as_found

    database = database_of(settings_from(config))
    with database.transaction() as tx:
        found = next((one for one in canaries.latest(tx, 1000) if one.id == number), None)
        if found is None or found.series_pk is None:
            raise NodeError(f"there is no canary {number} with a series; `dicom-node canary show` lists them")
        models = expect_as_found(tx, found, who(), database.now())
        if not models:
            raise NodeError(f"canary {number} has no result that stands: nothing can be expected by it")
    if json:
        print_json({"canary": number, "models": models})
    else:
        say(f"What was found of canary {number} is expected from now on, of {', '.join(models)}.")
