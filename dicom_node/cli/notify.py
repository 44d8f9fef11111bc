"""notify: the rules by which the node tells people, and whether their messages arrive."""

import time
from typing import Annotated

import typer

from dicom_node.cli.common import (
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
from dicom_node.errors import NodeError, NoIndex
from dicom_node.gateways.notifications.gathering import channels
from dicom_node.gateways.notifications.notifier import send, test_message
from dicom_node.gateways.verdict import AttemptOutcome
from storage import notifications

group = typer.Typer(help="Notifications by mail and webhook.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="notify")


@group.command("list")
def list_notifications(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show the rules, and the latest messages with how they ended."""
    settings = settings_from(config)
    rules = [
        {"name": rule.name, "on": list(rule.on), "to": [*rule.mail_to, *filter(None, [rule.webhook])],
         "patient_data": rule.patient_data}
        for rule in settings.notifications
    ]  # fmt: skip
    try:
        with database_of(settings).read() as tx:
            latest = notifications.latest(tx)
    except NoIndex:
        latest = []  # before the first start
    if json:
        print_json({"rules": rules, "latest": latest})
        return
    named = [
        (rule.name, ", ".join(rule.on), ", ".join((*rule.mail_to, rule.webhook)).strip(", "),
         "yes" if rule.patient_data else "no")
        for rule in settings.notifications
    ]  # fmt: skip
    print_rows("rules", ("name", "on", "to", "patient data"), named)
    told = [(local_text(one["created_at"]), one["rule"], one["channel"], one["kind"], one["state"],
             str(one["attempts"]), one["error"] or "") for one in latest]  # fmt: skip
    print_rows("latest messages", ("made", "rule", "by", "kind", "state", "attempts", "last error"), told)


@group.command()
def test(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a rule in the settings.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Send a test message to everybody whom a rule names, now and once."""
    settings = settings_from(config)
    rule = next((one for one in settings.notifications if one.name == name), None)
    if rule is None:
        known = ", ".join(one.name for one in settings.notifications) or "none"
        raise NodeError(f"there is no rule {name!r} under [[notifications]]; there are: {known}")
    now = time.time()
    said = {channel: send(settings, rule, test_message(rule, channel, now), now) for channel in channels(rule)}
    sent = all(one.outcome == AttemptOutcome.DELIVERED for one in said.values())
    if json:
        print_json({channel: {"outcome": one.outcome, "detail": one.text} for channel, one in said.items()})
    else:
        for channel, one in said.items():
            ok = one.outcome == AttemptOutcome.DELIVERED
            (out if ok else err).print(f"{channel}: {'sent' if ok else one.text}", markup=False)
    raise typer.Exit(0 if sent else 1)
