"""The part of `status` about the hosts that share an index: which were seen lately, what they run, what differs."""

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.cli.common import duration_text
from dicom_node.runtime.presence import differing, in_common
from dicom_node.runtime.supervisor import PARTS
from storage import hosts
from storage.leader import leader_of
from storage.server_time import BOUND_S

SHOWN_S = 86_400.0
NEEDED = ("receive", "schedule", "deliver", "work")
WORTH_SAYING_S = 2.0


def hosts_shown(tx: Connection, settings: Settings, now: float) -> dict[str, Any]:
    """The hosts of the last day, what no live one runs, and who leads. Settings are compared with this command's."""
    own = json.dumps(in_common(settings), ensure_ascii=False)
    known = [host for host in hosts.all_of(tx) if host.seen_at > now - SHOWN_S]
    run = {part for host in known if host.lives(now) for part in host.parts}
    return {
        "leader": leader_of(tx),
        "nobody_runs": [part for part in _needed(settings) if part not in run],
        "seen": [
            {
                "host": host.name,
                "lives": host.lives(now),
                "stopped": host.stopped_at is not None,
                "parts": list(host.parts),
                "version": host.version,
                "schema": host.schema_version,
                "seen_s_ago": max(0.0, now - host.seen_at),
                "clock_ahead_s": round(host.ahead_s, 1),
                "differs_in": differing(own, host.configuration),
            }
            for host in known
        ],
    }


def host_lines(found: dict[str, Any] | None) -> Iterator[str]:
    """The same in words; nothing for an index that one host has."""
    if not found or not found["seen"]:
        return
    yield ""
    schemas = {host["schema"] for host in found["seen"] if host["lives"]}
    for host in found["seen"]:
        yield f"host {host['host']}: {_state(host)}; {', '.join(_parts(host['parts']))}{_version(host, schemas)}"
        yield from _oddities(host)
    if found["leader"]:
        yield f"leader      {found['leader']}"
    if found["nobody_runs"]:
        yield f"MISSING     no host runs {', '.join(found['nobody_runs'])}"


def _needed(settings: Settings) -> list[str]:
    """The processes that some host must run, by these settings."""
    asked_for = {"forward-audit": settings.audit.syslog.host, "cluster": settings.cluster.address}
    return [*NEEDED, *(part for part, wanted in asked_for.items() if wanted)]


def _state(host: dict[str, Any]) -> str:
    if host["lives"]:
        return "runs"
    since = f"{duration_text(host['seen_s_ago'])} ago"
    return f"stopped {since}" if host["stopped"] else f"GONE, last seen {since}"


def _parts(parts: list[str]) -> list[str]:
    return ["all processes"] if set(NEEDED) <= set(parts) else [part for part in PARTS if part in parts]


def _version(host: dict[str, Any], schemas: set[str]) -> str:
    schema = f", schema {host['schema']}" if len(schemas) > 1 else ""
    return f"; version {host['version']}{schema}"


def _oddities(host: dict[str, Any]) -> Iterator[str]:
    ahead_s = host["clock_ahead_s"]
    if abs(ahead_s) > WORTH_SAYING_S:
        level = "WRONG" if abs(ahead_s) > BOUND_S else "off"
        yield f"    its clock is {level}: {abs(ahead_s):.0f} s {'ahead' if ahead_s > 0 else 'behind'}"
    if host["differs_in"]:
        yield f"    has other settings than this command: {', '.join(host['differs_in'])}"
