"""replay: does a stored result still come out of its files and its model?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    files_of,
    out,
    print_json,
    print_rows,
    settings_from,
)

# torch takes seconds to import: only this command pays for it.
if TYPE_CHECKING:
    from dicom_node.analysis.recorded import Replay


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(replay)


def replay(
    result: Annotated[
        str, typer.Argument(help="Number of a result, or a series' UID (or its beginning) for its latest result.")
    ],
    device: Annotated[str, typer.Option(help='"cpu", "cuda", ...; without it, as the result was computed.')] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Recompute a result from the stored files with the model that it names; exit 1 if another one comes out."""
    settings = settings_from(config)
    from dicom_node.analysis.replay import replay as replay_result

    done = replay_result(settings, database_of(settings), files_of(settings), result, device)
    if json:
        record = {"result_id": done.result_id, "series_instance_uid": done.series_instance_uid, "agrees": done.agrees}
        print_json({**record, "differences": done.differences, "recorded": done.recorded, "found": done.found})
    else:
        _print(done)
    if not done.agrees:
        raise typer.Exit(1)


def _print(done: Replay) -> None:
    rows = []
    for name, recorded in done.recorded.items():
        found, same = done.found.get(name), name not in done.differences
        if name == "versions" and isinstance(recorded, dict) and isinstance(found, dict):
            packages = sorted({*recorded, *found})
            rows += [(p, recorded.get(p), found.get(p), _same(recorded.get(p) == found.get(p))) for p in packages]
        else:
            rows.append((name, recorded, found, _same(same)))
    print_rows(f"Result {done.result_id}", ["what", "recorded", "recomputed", "same"], rows)
    out.print("the result agrees" if done.agrees else "the result DIFFERS", markup=False)


def _same(same: bool) -> str:
    return "yes" if same else "NO"
