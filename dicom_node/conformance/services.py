"""The services that the node has, and which of them the settings of a site turn on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydicom.uid import UID

from config.gateways.stow import StowDestination
from config.settings import Destination, Settings
from dicom_node.receiver.access import AccessPolicy
from dicom_node.receiver.acse import VERIFICATION
from dicom_node.receiver.negotiation import IMAGES, KEY_OBJECTS, OFFERED, RESULT_CLASSES, STORAGE_CLASSES, Offer
from dicom_node.scu.contexts import COMMIT, FIND, GET, MOVE, UPS_EVENT, UPS_PULL, UPS_WATCH, VERIFY

ANYBODY = "any AE title on this machine"


@dataclass(frozen=True)
class Service:
    """A SOP Class or web transaction. role: "SCU", "SCP", "user agent" or "origin server".

    on: with these settings.  turned_on_by: what a site sets for that.
    """

    name: str
    uid: str
    role: str
    on: bool
    turned_on_by: str


def offers(settings: Settings) -> Mapping[str, Offer]:
    """What each sender may propose, by what the table of contexts calls the sender."""
    if not settings.sources:
        return {ANYBODY: OFFERED}
    policy = AccessPolicy.of(settings)
    return {source.ae_title: policy.offer(source.ae_title) for source in settings.sources}


def network_services(settings: Settings) -> list[Service]:
    """Every SOP Class of the network, as SCP and as SCU."""
    return [*_as_scp(settings), *_as_scu(settings)]


def _as_scp(settings: Settings) -> Iterable[Service]:
    yield Service(name_of(VERIFICATION), VERIFICATION, "SCP", True, "always")
    accepted = {uid for offer in offers(settings).values() for uid in offer}
    by_class = {uid: f'"{name}" in classes of [[sources]]' for name, uid in IMAGES.items()}
    by_class |= dict.fromkeys(RESULT_CLASSES, '"results" in classes of [[sources]]')
    by_class[KEY_OBJECTS] = '"results" or "rejections" in classes of [[sources]]'
    for uid in sorted(STORAGE_CLASSES, key=name_of):
        yield Service(name_of(uid), uid, "SCP", uid in accepted, by_class[uid])


def _as_scu(settings: Settings) -> Iterable[Service]:
    pacs = settings.dicom_destinations
    sends = any(one.send_results for one in pacs)
    for uid in VERIFY.classes:
        yield Service(name_of(uid), uid, "SCU", bool(pacs), "[[destinations]], or by hand: dicom-node echo")
    for uid in sorted(RESULT_CLASSES, key=name_of):
        yield Service(name_of(uid), uid, "SCU", sends, "[[destinations]] with send_results, and [report]")
    commits = any(one.commitment == "request" for one in pacs)
    yield from _each(COMMIT.classes, commits, 'commitment = "request" in [[destinations]]')
    asks = isinstance(settings.queried_destination, Destination)
    confirms = any(one.commitment != "none" for one in pacs)
    yield from _each(FIND.classes, asks or confirms, "query_destination in [completion], or commitment")
    worklists = bool(settings.worklists) or any(one.fetch_from for one in settings.rs_worklists)
    way = settings.completion.retrieve
    gets = (asks and way == "get") or (worklists and way != "move")
    fetched = "query_destination in [completion], or [[worklists]]"
    yield from _each(GET.classes, gets, f'retrieve = "get" in [completion], with {fetched}')
    moves = (asks or worklists) and way == "move"
    yield from _each(MOVE.classes, moves, f'retrieve = "move" in [completion], with {fetched}')
    yield from _each(UPS_PULL.classes, bool(settings.worklists), "[[worklists]]")
    listens = any(one.event_port for one in settings.worklists)
    yield from _each((*UPS_WATCH.classes, *UPS_EVENT.classes), listens, "event_port in [[worklists]]")


def _each(classes: Sequence[str], on: bool, how: str) -> Iterable[Service]:
    return (Service(name_of(uid), uid, "SCU", on, how) for uid in classes)


def web_services(settings: Settings) -> list[Service]:
    """Every DICOMweb transaction."""
    archives = [one for one in settings.destinations if isinstance(one, StowDestination)]
    stores = any(one.send_results for one in archives)
    asks = isinstance(settings.queried_destination, StowDestination)
    serves = bool(settings.web.port) and settings.web.dicomweb.enabled
    ups = bool(settings.rs_worklists)
    stow = '[[destinations]] of kind "stow"'
    query = f"query_destination in [completion] that names one of {stow}"
    web = "port in [web] and enabled in [web.dicomweb]"
    rows = (
        ("Store (STOW-RS)", "user agent", stores, stow),
        ("Search (QIDO-RS)", "user agent", asks, query),
        ("Retrieve (WADO-RS)", "user agent", asks or ups, f"{query}, or [[rs_worklists]]"),
        ("Worklist (UPS-RS)", "user agent", ups, "[[rs_worklists]]"),
        ("Search (QIDO-RS)", "origin server", serves, web),
        ("Retrieve (WADO-RS)", "origin server", serves, web),
    )
    return [Service(name, "", role, on, how) for name, role, on, how in rows]


def name_of(uid: str) -> str:
    """What the standard calls a UID."""
    return str(UID(uid).name)
