"""Does everything answer that the node talks to: PACS, gateways, worklists, and its own receiver?"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from config.settings import Destination, Settings
from dicom_node.errors import NodeError
from dicom_node.gateways.kinds import gateway
from dicom_node.runtime.installation.found import Found, good, look, wrong
from dicom_node.runtime.liveness import Liveness
from dicom_node.scu import own_receiver
from dicom_node.scu.store import EchoAnswer, echo

PATIENCE_S = 8.0
AT_ONCE = 8
REACH = "see that it runs, that a firewall lets this machine through, and that it knows the AE title"
Asking = Callable[[], EchoAnswer]


def peers(settings: Settings, alive: Liveness) -> Iterator[Found]:
    """Each is asked once, and gets no result. All are asked at the same time."""
    asked = list(_questions(settings, alive))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(lambda one: _answer(*one), asked)
    named = {destination.ae_title for destination in settings.dicom_destinations}
    silent = [source.ae_title for source in settings.sources if source.ae_title not in named]
    if silent:
        yield good("sources", f"cannot be asked, as no port of theirs is known: {', '.join(silent)}")
    if not settings.sources:
        do = "name the senders in [[sources]], and set [receiver] host: then other machines may send"
        yield look("sources", "none is named: only this machine may send images", do)
    if not any(destination.send_results for destination in settings.destinations):
        yield look(
            "destinations", "none takes results: they stay on this machine", "name your PACS in [[destinations]]"
        )


def _questions(settings: Settings, alive: Liveness) -> Iterator[tuple[str, Asking]]:
    patience = {"connect_timeout_s": PATIENCE_S, "response_timeout_s": PATIENCE_S}
    caller = settings.sender.model_copy(update=patience)
    if alive.accepts:
        yield "own receiver", partial(_ask_own_receiver, settings)
    for destination in settings.destinations:
        name = f"destination {destination.name}"
        if isinstance(destination, Destination):
            yield name, partial(echo, destination, caller)
        else:
            quick = settings.model_copy(update={"sender": caller})
            yield name, lambda one=destination, with_=quick: gateway(one, with_).test()  # type: ignore[misc]
    for worklist in settings.worklists:
        yield f"worklist {worklist.name}", partial(echo, worklist, caller)


def _ask_own_receiver(settings: Settings) -> EchoAnswer:
    update = {"calling_ae_title": own_receiver.calling_ae(settings)}
    return echo(own_receiver.address(settings), settings.sender.model_copy(update=update))


def _answer(part: str, ask: Asking) -> Found:
    try:
        answer = ask()
    except NodeError as error:
        return look(part, str(error), "see the message")
    return good(part, answer.detail) if answer.ok else wrong(part, answer.detail, REACH)
