"""cluster: workers on the hosts of a Ray cluster."""

import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import typer

from config.settings import Settings
from dicom_node.cli.common import (
    PEER_UNREACHABLE,
    ConfigOption,
    JsonOption,
    database_of,
    err,
    files_of,
    local_text,
    note_operator,
    out,
    plural,
    print_json,
    print_rows,
    settings_from,
)
from dicom_node.cluster import access
from dicom_node.errors import NodeError
from dicom_node.runtime.signals import die_with_parent, is_child, stop_on_signals
from dicom_node.runtime.store_watch import watched
from storage.database import Database
from storage.identity import open_store

# It imports Ray, which takes a while and is an extra.
if TYPE_CHECKING:
    from dicom_node.cluster.actor import WorkerState
    from dicom_node.cluster.pools import Place

FIRST_ANSWER_S = 30.0
"""Actors that were only just placed import their program first."""
LOOK_EVERY_S = 1.0
group = typer.Typer(no_args_is_help=True, help="Workers on the hosts of a Ray cluster.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="cluster")


@group.command()
def up(config: ConfigOption = None, json: JsonOption = False) -> None:
    r"""Put the workers of \[cluster] on the cluster; from now on, the node brings back those that are gone."""
    settings = _settings(config)
    from dicom_node.cluster.engine import ClusterAway
    from dicom_node.cluster.pools import places
    from dicom_node.cluster.reconciler import connected, reconcile, want

    database = database_of(settings)
    with database.transaction() as tx:
        want(tx, up=True)
        note_operator(tx, "cluster-up")
    try:
        with connected(settings, database) as engine:
            found = reconcile(engine, places(settings.cluster), FIRST_ANSWER_S)
    except ClusterAway as error:
        _is_away(error)
    _show(found.workers, json)


@group.command()
def status(config: ConfigOption = None, json: JsonOption = False) -> None:
    r"""List the workers of \[cluster], and where each runs."""
    settings = _settings(config)
    from dicom_node.cluster.engine import ClusterAway
    from dicom_node.cluster.pools import places
    from dicom_node.cluster.reconciler import are_wanted, connected

    database = database_of(settings)
    with database.read() as tx:
        wanted = places(settings.cluster) if are_wanted(tx) else []
    try:
        with connected(settings, database) as engine:
            names = {place.name for place in wanted}
            states = engine.look([name for name in names if name in engine.placed()])
            ending = len(engine.placed() - names)
    except ClusterAway as error:
        _is_away(error)
    _show({place: states.get(place.name) for place in wanted}, json)
    if not json and (ending or not wanted):
        out.print(
            f"{plural(ending, 'worker')} still ending" if ending else "no workers are wanted: dicom-node cluster up"
        )


@group.command()
def down(config: ConfigOption = None) -> None:
    """Take all workers off the cluster; each finishes its job or hands it back."""
    settings = _settings(config)
    from dicom_node.cluster.actor import DRAIN_S
    from dicom_node.cluster.engine import ClusterAway
    from dicom_node.cluster.reconciler import connected, reconcile, want

    database = database_of(settings)
    with database.transaction() as tx:
        want(tx, up=False)
        note_operator(tx, "cluster-down")
    try:
        with connected(settings, database) as engine:
            deadline = time.monotonic() + DRAIN_S + 2 * FIRST_ANSWER_S
            while left := reconcile(engine, []).ending:
                if time.monotonic() > deadline:
                    raise NodeError(f"{plural(left, 'worker')} did not end in time; the node goes on asking")
                time.sleep(LOOK_EVERY_S)
    except ClusterAway as error:
        _is_away(error)
    out.print("no workers are on the cluster")


@group.command(hidden=True)
def keep(config: ConfigOption = None) -> None:
    """Bring back workers that are gone, until told to stop; `dicom-node run` does so by itself."""
    die_with_parent()
    stop = stop_on_signals()
    settings = _settings(config)
    from dicom_node.cluster.reconciler import keep as keep_workers

    database = _opened(settings)
    with watched(database, stop):
        keep_workers(settings, database, stop)


def _settings(config: ConfigOption) -> Settings:
    settings = settings_from(config)
    if not settings.cluster.address:
        raise NodeError("[cluster] names no address: see docs/cluster.md")
    if find_spec("ray") is None:
        raise NodeError("the cluster needs ray, which is not installed: pip install 'dicom-node[ray]'")
    access.prepare(settings.cluster)
    return settings


def _opened(settings: Settings) -> Database:
    if is_child():
        return open_store(settings.database_url, files_of(settings), create=False)
    return database_of(settings)


def _show(workers: "dict[Place, WorkerState | None]", json: bool) -> None:
    if json:
        print_json([_row(place, state) for place, state in workers.items()])
        return
    rows = [
        [*list(_row(place, state).values())[:5], local_text(state.since) if state and state.pid else "", *_past(state)]
        for place, state in workers.items()
    ]
    print_rows("", ("pool", "number", "device", "host", "pid", "since", "starts", "last exit"), rows)
    for place, state in workers.items():
        if state is None:
            needs = f"a host that offers {place.resource}" if place.resource else "a host with room"
            out.print(f"{place.pool} {place.number} does not answer: it waits for {needs}, or is being started again")


def _row(place: "Place", state: "WorkerState | None") -> dict[str, object]:
    return {
        "pool": place.pool,
        "number": place.number,
        "device": place.device,
        "host": state.host if state else None,
        "pid": (state.pid or None) if state else None,
        "since": state.since if state and state.pid else None,
        "starts": state.starts if state else None,
        "status": state.status if state else None,
    }


def _past(state: "WorkerState | None") -> tuple[int | None, int | None]:
    return (state.starts, state.status) if state else (None, None)


def _is_away(error: NodeError) -> None:
    err.print(str(error), markup=False)
    raise typer.Exit(PEER_UNREACHABLE)
