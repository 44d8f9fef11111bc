"""worklist: the steps of worklists that this node performs."""

from dataclasses import asdict
from typing import Annotated

import typer

from config.gateways.worklist import RsWorklistEntry, WorklistEntry
from dicom_node.cli.common import (
    PEER_UNREACHABLE,
    ConfigOption,
    JsonOption,
    database_of,
    err,
    local_text,
    out,
    print_json,
    print_rows,
    settings_from,
)
from dicom_node.errors import NodeError
from storage import workitems
from storage.workitems import Step

app = typer.Typer(no_args_is_help=True, help="Steps of a worklist (Unified Procedure Steps) that this node performs.")


def register(parent: typer.Typer) -> None:
    """Add this group's commands."""
    parent.add_typer(app, name="worklist")


@app.command()
def show(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Show so many steps at most.")] = 50,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """The steps that this node claimed and their states: first those in hand, then those that ended, latest first."""
    with database_of(settings_from(config)).read() as tx:
        found = workitems.latest(tx, limit)
    if json:
        # Whoever knows the Transaction UID can change the step.
        print_json([{name: value for name, value in asdict(one).items() if name != "transaction_uid"} for one in found])
        return
    columns = ["step", "worklist", "workitem", "state", "claimed", "ended", "results", "why"]
    print_rows("", columns, (_row(one) for one in found))


@app.command()
def test(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Name of the worklist; all if none is given.")] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Ask worklists whether they answer, and how many steps wait for this node. None is claimed."""
    from dicom_node.performer import opening  # takes seconds, as it loads what reports need

    settings = settings_from(config)
    every: tuple[WorklistEntry | RsWorklistEntry, ...] = (*settings.worklists, *settings.rs_worklists)
    entries = [one for one in every if name in ("", one.name)]
    if not entries:
        raise NodeError(f"there is no worklist {name!r}" if name else "no worklist is configured")
    answers = [(one.name, opening.ask(settings, one)) for one in entries]
    if json:
        print_json([{"worklist": one, "reachable": answer.ok, "detail": answer.detail} for one, answer in answers])
    for one, answer in () if json else answers:
        (out if answer.ok else err).print(f"{one}: {answer.detail}", markup=False)
    if not all(answer.ok for _, answer in answers):
        raise typer.Exit(PEER_UNREACHABLE)


def _row(one: Step) -> list[object]:
    times = [local_text(at) if at else "" for at in (one.claimed_at, one.ended_at)]
    reason = ": ".join(filter(None, (one.reason_code, one.reason_text))) or one.error or ""
    return [one.id, one.worklist, one.workitem_uid, one.state, *times, " ".join(map(str, one.results)), reason]
