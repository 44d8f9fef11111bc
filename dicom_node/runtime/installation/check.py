"""All looks at an installation, in the order of the table. They change nothing, and the node may run meanwhile."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from config.load import Mistake
from config.settings import Settings
from dicom_node.runtime.installation.certificates import certificates
from dicom_node.runtime.installation.clock import clock, kernel_clock
from dicom_node.runtime.installation.disk import disk
from dicom_node.runtime.installation.found import Found, good, wrong
from dicom_node.runtime.installation.index import index
from dicom_node.runtime.installation.models import models
from dicom_node.runtime.installation.peers import peers
from dicom_node.runtime.installation.permissions import permissions
from dicom_node.runtime.installation.ports import ports
from dicom_node.runtime.installation.program import program
from dicom_node.runtime.liveness import Liveness, look


def check(
    settings: Settings | None, mistakes: Sequence[Mistake], config: Path | None, *, ask_peers: bool = True
) -> Iterator[Found]:
    """settings: None if the mistakes leave none; then only the machine is looked at. config: the site's file.

    ask_peers: also connect to the peers of the settings.
    """
    yield from _configuration(mistakes, config)
    yield from program(settings)
    yield from clock(kernel_clock())
    if settings is None:
        return
    yield from disk(settings)
    yield from permissions(settings, config)
    yield from index(settings)
    yield from models(settings)
    yield from certificates(settings)
    alive = look(settings)
    yield _node(alive)
    yield from ports(settings, alive)
    if ask_peers:
        yield from peers(settings, alive)


def _configuration(mistakes: Sequence[Mistake], config: Path | None) -> Iterator[Found]:
    for mistake in mistakes:
        yield wrong("configuration", str(mistake), f"correct {config or 'the environment'}")
    if not mistakes:
        yield good("configuration", f"{config or 'defaults and environment'}: no mistakes")


def _node(alive: Liveness) -> Found:
    if alive.accepts or not alive.runs:
        return good("node", "runs and takes images" if alive.accepts else "does not run")
    return wrong("node", f"runs but does not take images: {alive.why_not}", "see dicom-node status and its log")
