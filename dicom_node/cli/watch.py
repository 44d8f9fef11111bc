"""watch show, reference and ack: has what a model is given, or what it says, changed since it began to be used here?"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.analysis.current_model import reporting_models
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    local_text,
    plural,
    print_json,
    print_rows,
    say,
    seconds_of,
    settings_from,
    zone,
)
from dicom_node.errors import NodeError
from dicom_node.runtime import watching
from dicom_node.runtime.index import who
from dicom_node.watch.assessment import Level
from dicom_node.watch.reference import Reference
from dicom_node.watch.studies import Study
from dicom_node.watch.watches import assess
from storage import watch_alarms, watch_state
from storage.jobs import ModelRef

group = typer.Typer(no_args_is_help=True, help="Watch the models in use for drift.")
LATEST_ALARMS = 50
LEVELS = {"too_few": "too few studies", "ok": "as it was", "warn": "WARNING", "alarm": "ALARM"}
ReasonOption = Annotated[str, typer.Option(help="Why, for the audit trail. No patient data.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="watch")


@group.command()
def show(
    model: Annotated[str, typer.Argument(help="Name of a model that reports; without one, all of them.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Also draw each watch into this folder.", file_okay=False)] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """How the watches of each model stand, and which alarms there are."""
    settings = settings_from(config)
    database = database_of(settings)
    with database.read() as tx:
        shown = [_of_model(tx, one) for one in _models(settings, model)]
        digests = {one["digest"] for one in shown}
        alarms = [asdict(one) for one in watch_alarms.latest(tx, LATEST_ALARMS) if one.model_digest in digests]
    drawn = [] if plot is None else [str(path) for path in _draw(settings, model, plot)]
    if json:
        print_json({"enabled": settings.watch.enabled, "models": shown, "alarms": alarms, "figures": drawn})
    else:
        _print(settings, shown, alarms)
        for path in drawn:
            say(path)


def _models(settings: Settings, name: str) -> list[ModelRef]:
    """The models that report, or the one of a name. Raises NodeError if there is none of that name."""
    found = [one for one in reporting_models(settings) if name in ("", one.name)]
    if not found:
        raise NodeError(f"no model {name} reports here; `dicom-node models list` names those in use")
    return found


def _of_model(tx: Connection, model: ModelRef) -> dict[str, Any]:
    frozen = watch_state.reference(tx, model.digest)
    at, assessed = watch_state.latest(tx, model.digest)
    return {
        "name": model.name,
        "version": model.version,
        "digest": model.digest,
        "reference": None if frozen is None else {k: v for k, v in vars(frozen).items() if k != "content"},
        "looked_at": at,
        "watches": [asdict(one) for one in assessed],
    }


def _print(settings: Settings, shown: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]]) -> None:
    if not settings.watch.enabled:
        say("Nothing is watched: [watch] enabled is false.")
    for one in shown:
        say(f"{one['name']} {one['version']}")
        say(f"  {_reference_line(one['reference'])}")
        if one["looked_at"] is None:
            say("  it has not been looked at yet")
            continue
        title = f"looked at {local_text(one['looked_at'])} {zone()}"
        columns = ["", "watch", "fact", "scanner", "value", "threshold", "in words"]
        print_rows(title, columns, (_cells(watch) for watch in one["watches"]))
    standing = [one for one in alarms if one["ended_at"] is None]
    if not standing:
        say("No alarm.")
    for one in standing:
        say(f"ALARM {one['id']} since {local_text(one['raised_at'])} {zone()}, {one['model_name']}: {one['sentence']}")
        if one["acknowledged_at"] is None:
            say(f"  to answer: dicom-node watch ack {one['id']} --reason TEXT")
        else:
            say(f"  acknowledged by {one['acknowledged_by']}: {one['acknowledged_why']}")


def _reference_line(found: dict[str, Any] | None) -> str:
    if found is None:
        return "no reference yet: its first studies are being gathered"
    by = f" by {found['frozen_by']}: {found['reason']}" if found["frozen_by"] else ""
    frozen = f"frozen {local_text(found['frozen_at'])} {zone()}{by}"
    return f"reference of {plural(found['studies'], 'analysed study', 'analysed studies')}, {frozen}; {found['digest']}"


def _cells(watch: dict[str, Any]) -> list[object]:
    numbers = ["" if watch[name] is None else f"{watch[name]:.4g}" for name in ("value", "threshold")]
    return [LEVELS[watch["level"]], watch["watch"], watch["fact"], watch["scanner"], *numbers, watch["sentence"]]


def _draw(settings: Settings, name: str, folder: Path) -> Iterator[Path]:
    """Draw what the watches compare now. Headers name no file: they are strangers' words."""
    database = database_of(settings)
    now = database.now()
    folder.mkdir(parents=True, exist_ok=True)
    for model in _models(settings, name):
        with database.read() as tx:
            found = watching.reference_of(tx, model.digest)
            studies = watching.recent(tx, model.digest, now, settings.watch.most_studies)
        for number, (watch, svg) in enumerate(_figures(found, studies, now) if found else (), start=1):
            path = folder / f"{model.name}-{number:02}-{watch.replace(' ', '-')}.svg"
            path.write_bytes(svg)
            yield path


def _figures(reference: Reference, studies: list[Study], seconds: float) -> Iterator[tuple[str, bytes]]:
    """The figure of each watch that has one, with a name."""
    from dicom_node.watch.plots import draw_chart, draw_distribution, draw_rate

    now = watching.moment(seconds)
    for one in assess(reference, studies, now):
        if one.level == Level.TOO_FEW:
            continue
        about = reference, studies, now
        if one.watch in ("distribution", "mix"):
            yield f"{one.watch}-{one.fact}", draw_distribution(*about, one.fact, one.scanner)["svg"]
        elif one.watch == "control chart":
            yield f"{one.watch}-{one.fact}", draw_chart(*about, one.fact, one.scanner)["svg"]
        elif one.watch == "positive rate" and one.scanner == "":
            yield one.watch, draw_rate(*about)["svg"]


@group.command()
def reference(
    model: Annotated[str, typer.Argument(help="Name of a model that reports.")],
    renew: Annotated[
        bool, typer.Option("--renew", help="Freeze it anew, from the studies of the last 28 days.")
    ] = False,
    since: Annotated[str | None, typer.Option(help="With --renew: from the studies since this date or time.")] = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """What a model's studies are compared with; with --renew it is frozen anew, and the model's alarms end."""
    settings = settings_from(config)
    database = database_of(settings)
    (found,) = _models(settings, model)
    if renew:
        if not reason.strip():
            raise NodeError("say why, with --reason: the audit trail states it")
        with database.transaction() as tx:
            watching.renew(tx, settings, found, who(), reason.strip(), database.now(), seconds_of(since))
    with database.read() as tx:
        frozen = watch_state.reference(tx, found.digest)
    shown = None if frozen is None else vars(frozen)
    if json:
        print_json(shown)
    else:
        say(f"{found.name} {found.version}: {_reference_line(shown)}")


@group.command()
def ack(
    alarm: Annotated[int, typer.Argument(help="Number of an alarm, see `watch show`.")],
    reason: ReasonOption,
    by: Annotated[str, typer.Option(help="Who answers for it; without it, the user of this machine.")] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Acknowledge an alarm: it no longer asks for attention, and stays until the watch finds nothing more."""
    if not reason.strip():
        raise NodeError("say why, with --reason: the audit trail states it")
    settings = settings_from(config)
    answers = by.strip() or who()
    with database_of(settings).transaction() as tx:
        watch_alarms.acknowledge(tx, alarm, answers, reason.strip(), time.time())
    if json:
        print_json({"alarm": alarm, "acknowledged_by": answers})
    else:
        say(f"Alarm {alarm} is acknowledged.")
