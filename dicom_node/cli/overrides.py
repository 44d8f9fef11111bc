"""Settings of one command, from a TOML file and from --set: how data sets and trainings are told what to do."""

from pathlib import Path
from typing import Annotated

import typer

SettingsFileOption = Annotated[
    Path | None, typer.Option("--settings", exists=True, dir_okay=False, help="TOML file of settings; --set wins.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, in TOML; may be given repeatedly.")
]


def settings_of(file: Path | None, changes: list[str] | None) -> dict[str, object]:
    """Nested tables of the file, with the changes laid over them."""
    from inference.models.toml_fields import read_toml
    from inference.training.settings import merged, parse_change

    table: dict[str, object] = read_toml(file) if file else {}
    for change in changes or []:
        table = merged(table, parse_change(change))
    return table
