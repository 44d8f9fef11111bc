"""Section 4.2.3: DICOMweb, as a user agent and as an origin server."""

from config.settings import Settings
from dicom_node.conformance.document import Section, section, table
from dicom_node.conformance.services import Service, web_services
from dicom_node.gateways.dicomweb_tables import AWAY, INSTANCE, OF_ONE, ONE_BY_ONE, PAGE, STEPS
from dicom_node.web.dicomweb.offered import (
    DICOM,
    EXPLICIT_LE,
    JPEG,
    JSON,
    MOST,
    MOST_OFFSET,
    OCTETS,
    PNG,
    RESOURCES,
    STATUSES,
)
from dicom_node.web.dicomweb.told import INSTANCE as INSTANCE_TOLD
from dicom_node.web.dicomweb.told import SERIES, STUDY

_TOLD = {
    "studies": (*STUDY, "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    "series": ("StudyInstanceUID", *SERIES, "NumberOfSeriesRelatedInstances"),
    "instances": ("StudyInstanceUID", "SeriesInstanceUID", "Modality", *INSTANCE_TOLD),
    "metadata": ("all, without pixel data and other large binary values",),
    "frames": ("frames, uncompressed",),
    "pictures": ("a frame as a picture",),
    "objects": ("the objects as they are stored",),
}
_SERVICE = {
    "studies": "Search",
    "series": "Search",
    "instances": "Search",
    "metadata": "Retrieve metadata",
    "frames": "Retrieve frames",
    "pictures": "Retrieve rendered",
}


def _here(one: Service) -> str:
    return "on" if one.on else "off"


def web_ae(settings: Settings) -> Section:
    """The whole section."""
    return section(
        "DICOMweb",
        section(
            "Transactions",
            table("Transaction|Role|Here", [(one.name, one.role, _here(one)) for one in web_services(settings)]),
        ),
        section(
            "Connection Policies",
            "HTTP 1.1. To another machine over TLS, unless the settings say plain; with a client certificate, a "
            "password, a bearer token or OAuth2 (client credentials) as each server wants. Redirects are not followed. "
            f"Time for an answer: {settings.sender.response_timeout_s:g} s.",
        ),
        _store(),
        _search(),
        _retrieve(),
        _worklist(),
        _server(settings),
    )


def _store() -> Section:
    alone = ", ".join(map(str, sorted(ONE_BY_ONE)))
    reasons = [(status, f"0x{reason:04X}") for status, reason in OF_ONE.items()]
    return section(
        "User agent: store (STOW-RS)",
        "POST SERVICE/studies, multipart/related with parts of application/dicom: the same files, byte for byte, as by "
        f"C-STORE. An answer of {JSON} is asked for; XML is read as well. What it says of each instance decides, as "
        f"the statuses of C-STORE do. If an answer of {alone} says nothing of each, every instance is sent by itself.",
        table("HTTP status to one instance|Counts as", [*reasons, ("other 4xx", "0xC000")]),
        f"{', '.join(map(str, sorted(AWAY)))}, any other 5xx, and no answer are tried again.",
    )


def _search() -> Section:
    return section(
        "User agent: search (QIDO-RS)",
        "GET SERVICE/studies/UID/series and SERVICE/studies/UID/series/UID/instances, for the same questions as by "
        f"C-FIND: keys SeriesInstanceUID and Modality, includefield, limit {PAGE} and offset. The answer is {JSON}.",
    )


def _retrieve() -> Section:
    return section(
        "User agent: retrieve (WADO-RS)",
        f"GET SERVICE/studies/UID/series/UID and single instances below it, with Accept: {INSTANCE}. What arrives is "
        "kept under the same rules as an instance that comes by C-GET.",
    )


def _worklist() -> Section:
    rows = [(status, str(answer)) for status, answer in sorted(STEPS.items())]
    return section(
        "User agent: worklist (UPS-RS)",
        "GET SERVICE/workitems, PUT SERVICE/workitems/UID/state, GET SERVICE/workitems/UID and POST "
        "SERVICE/workitems/UID, as JSON, for the same steps as by DIMSE. Subscriptions and events are not used.",
        table("HTTP status|What it means for the step", [("2xx", "DONE"), *rows, ("any other", "LATER")]),
    )


def _server(settings: Settings) -> Section:
    rows = [
        (
            _SERVICE.get(one.answered, "Retrieve"),
            f"GET {one.path}",
            ", ".join((one.keys or {}).values()) or "none",
            ", ".join(_TOLD[one.answered]),
        )
        for one in RESOURCES
    ]
    origins = ", ".join(settings.web.dicomweb.origins) or "none"
    return section(
        "Origin server: search and retrieve",
        "Only the objects of the node's own results, as far as they stand. Nothing can be stored or changed. Whoever "
        "asks "
        "has a login to the node's pages, or the bearer token of the settings. Each look at a study is audited.",
        table("Service|Resource|Keys that are matched|Attributes that are told", rows),
        f"A search and metadata are {JSON}. Objects are multipart/related of {DICOM}, or {DICOM} for a single one, in "
        f"transfer syntax {EXPLICIT_LE}. Frames are {OCTETS}, pictures {JPEG} or {PNG}. Most answers at once: {MOST}; "
        f"offset up to {MOST_OFFSET}. Matching is "
        "literal, "
        "or by a range for Study Date, or by a list of UIDs; a key that is not listed is refused. "
        f"Web viewers at other addresses that may read the answers: {origins}.",
        table("HTTP status|When", list(STATUSES.items())),
    )
