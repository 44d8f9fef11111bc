"""models suspend and resume: a model that must not report for a while."""

import time
from typing import Annotated

import typer

from config.reasons import ReasonCode
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    note_operator,
    plural,
    print_json,
    say,
    settings_from,
)
from dicom_node.errors import NodeError
from dicom_node.runtime import acts
from dicom_node.runtime.index import who
from inference.models.registry import list_models
from storage import model_outcomes, suspensions
from storage.errors import CorruptFile, IllegalMove

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a model, in all its versions.")]


def suspend(
    name: NameArgument,
    reason: Annotated[str, typer.Option(help="Why, for reports and the audit trail. No patient data.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Stop a model's reports. Its series are kept, and reported as not analysed because the model is suspended.

    Results that stand already stay as they are. It holds until `models resume`, also when the node is started again.
    """
    settings = settings_from(config)
    if name not in {card.name for card in list_models(settings.models_dir)}:
        raise NodeError(f"there is no model {name}; `dicom-node models list` names them")
    if not reason.strip():
        raise NodeError("say why, with --reason: reports and the audit trail state it")
    with database_of(settings, create=True).transaction() as tx:
        suspensions.suspend(tx, name, who(), reason.strip(), time.time())
    if json:
        print_json({"name": name, "suspended": True})
    else:
        say(f"{name} reports nothing until it is resumed; its series are kept.")


def resume(
    name: NameArgument,
    analyse: Annotated[
        bool, typer.Option("--analyse", help="Also analyse the series that it was not to report on.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Let a suspended model report again, from the next series on."""
    settings = settings_from(config)
    database = database_of(settings)
    with database.transaction() as tx:
        # With --analyse also once it reports again: what an earlier run of this command did not come to.
        if not analyse or suspensions.of_model(tx, name) is not None:
            suspensions.resume(tx, name, who(), time.time())
    queued, left = 0, list[str]()
    if analyse:
        with database.read() as tx:
            kept = model_outcomes.not_analysed(tx, name, ReasonCode.MODEL_SUSPENDED)
        for series_pk in kept:
            # One transaction for each: a thousand series must not hold up receiving.
            try:
                with database.transaction() as tx:
                    done = acts.reanalyse(tx, settings, series_pk, None, time.time())
                    note_operator(tx, "reanalyse", done.about, model=done.detail["model"])
            except (IllegalMove, CorruptFile, NodeError) as error:
                left.append(f"series {series_pk} is left as it is: {error}")
            else:
                queued += 1
    if json:
        print_json({"name": name, "suspended": False, "queued": queued, "left": left})
    else:
        say(f"{name} reports again." + (f" {plural(queued, 'series', 'series')} queued." if analyse else ""))
        for sentence in left:
            say(sentence)
