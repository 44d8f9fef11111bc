"""One audit message as XML, of the grammar of PS3.15 A.5.1.

The grammar asks for ParticipantObjectDescription in every object, and in it for ParticipantObjectContainsStudy: where
there is nothing to describe, they are empty. Each message names the rows of the trail that it tells, as one more
object: number and hash of the last. So a receiver tells a message that came twice, and every message is a witness of
the trail (`dicom-node audit --verify --anchor`).
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from xml.sax.saxutils import escape, quoteattr

from dicom_node.gateways.audit_messages import codes
from dicom_node.gateways.audit_messages.codes import Code

LONGEST = 32_768
"""Octets that a receiver has to take, RFC 5425 4.3.1 and RFC 5424 6.1 leave more to its goodwill."""
MOST_CHARACTERS = 256
MOST_DETAIL = 1024
ALTERED = "\ufffd"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINES = re.compile(r"[\t\n\r]+")
_OID = re.compile(r"[0-2]((\.0)|(\.[1-9][0-9]*))*")
ROW = Code("rows", "Rows of the audit trail", "99DICOMNODE")


@dataclass(frozen=True)
class Participant:
    """An ActiveParticipant. address: with `is_ip`, an IP address, else a name. media: where a copy goes."""

    user_id: str
    requestor: bool
    role: Code | None = None
    ae_title: str = ""
    address: str = ""
    is_ip: bool = False
    media: Code | None = None


@dataclass(frozen=True)
class Object:
    """A ParticipantObjectIdentification. classes: instances by SOP class; None if their number is not known."""

    id: str
    kind: Code
    type_code: str
    role: str
    name: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    accession: str = ""
    classes: Mapping[str, int | None] = field(default_factory=dict)
    study_uid: str = ""


@dataclass(frozen=True)
class Message:
    """What a message tells. at: Unix seconds. types: EventTypeCode."""

    event: Code
    action: str
    at: float
    outcome: str
    types: Sequence[Code]
    participants: Sequence[Participant]
    objects: Sequence[Object]
    source_id: str
    site_id: str = ""


def rows_object(number: int, digest: str, first: int, instances: int = 0) -> Object:
    """Which rows of the trail a message tells: `first` to `number`; digest: the last one's hash."""
    details = {"rows": f"{first}-{number}"} if first != number else {}
    if instances:
        details["instances"] = str(instances)
    return Object(f"{number}:{digest}", ROW, "2", "13", "Security Audit Log", details)


def study_object(uid: str, accession: str, classes: Mapping[str, int | None]) -> Object:
    """A study, with what was moved or read of it."""
    return Object(uid, codes.STUDY_UID, "2", "3", accession=accession, classes=classes, study_uid=uid)


def patient_object(patient_id: str) -> Object:
    """A patient."""
    return Object(patient_id, codes.PATIENT_NUMBER, "1", "1")


def node_object(node: str, description: str) -> Object:
    """The node that an alert is about, with the alert in words."""
    return Object(node, codes.NODE_ID, "2", "13", details={"Alert Description": description})


def render(message: Message) -> bytes:
    """The message, UTF-8, on one line; at most LONGEST less the syslog header, because every part is clipped."""
    return "".join(
        (
            '<?xml version="1.0" encoding="UTF-8"?><AuditMessage>',
            f"<EventIdentification EventActionCode={_attribute(message.action)}"
            f" EventDateTime={_attribute(utc(message.at))} EventOutcomeIndicator={_attribute(message.outcome)}>",
            _coded("EventID", message.event),
            *(_coded("EventTypeCode", one) for one in message.types),
            "</EventIdentification>",
            *map(_participant, message.participants),
            f"<AuditSourceIdentification{_optional('AuditEnterpriseSiteID', message.site_id)}"
            f" AuditSourceID={_attribute(message.source_id)}>",
            '<AuditSourceTypeCode csd-code="4"/></AuditSourceIdentification>',
            *map(_object, message.objects),
            "</AuditMessage>",
        )
    ).encode()


def utc(at: float) -> str:
    """Unix seconds as XML Schema and RFC 5424 have it: milliseconds, and the zone."""
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError, OSError):
        moment = datetime.fromtimestamp(0, UTC)  # a clock beyond all calendars
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _participant(one: Participant) -> str:
    address = one.address.strip()
    return "".join(
        (
            f"<ActiveParticipant UserID={_attribute(one.user_id or 'unknown')}",
            _optional("AlternativeUserID", f"AETITLES={one.ae_title}" if one.ae_title else ""),
            f' UserIsRequestor="{str(one.requestor).lower()}"',
            _optional("NetworkAccessPointID", address),
            f' NetworkAccessPointTypeCode="{2 if one.is_ip else 1}"' if address else "",
            ">",
            _coded("RoleIDCode", one.role) if one.role else "",
            f"<MediaType {_code(one.media)}/>" if one.media else "",
            "</ActiveParticipant>",
        )
    )


def _object(one: Object) -> str:
    name = f"<ParticipantObjectName>{escape(_clean(one.name))}</ParticipantObjectName>" if one.name else ""
    return "".join(
        (
            f"<ParticipantObjectIdentification ParticipantObjectID={_attribute(one.id)}"
            f' ParticipantObjectTypeCode="{one.type_code}" ParticipantObjectTypeCodeRole="{one.role}">',
            _coded("ParticipantObjectIDTypeCode", one.kind),
            name,
            *(_detail(name, value) for name, value in one.details.items()),
            "<ParticipantObjectDescription>",
            f"<Accession Number={_attribute(one.accession)}/>" if one.accession else "",
            *_classes(one.classes.items()),
            "<ParticipantObjectContainsStudy>",
            f"<StudyIDs UID={_attribute(one.study_uid)}/>" if _is_oid(one.study_uid) else "",
            "</ParticipantObjectContainsStudy></ParticipantObjectDescription></ParticipantObjectIdentification>",
        )
    )


def _classes(classes: Iterable[tuple[str, int | None]]) -> Iterable[str]:
    for uid, number in classes:
        if _is_oid(uid):
            count = "" if number is None else f' NumberOfInstances="{number}"'
            yield f"<SOPClass UID={_attribute(uid)}{count}/>"


def _is_oid(uid: str) -> bool:
    return len(uid) <= 64 and _OID.fullmatch(uid) is not None


def _detail(name: str, value: str) -> str:
    packed = base64.b64encode(_clean(value, MOST_DETAIL).encode()).decode()
    return f'<ParticipantObjectDetail type={_attribute(name)} value="{packed}"/>'


def _coded(element: str, code: Code) -> str:
    return f"<{element} {_code(code)}/>"


def _code(code: Code) -> str:
    return f'csd-code="{code.value}" originalText="{escape(code.meaning)}" codeSystemName="{code.scheme}"'


def _optional(name: str, value: str) -> str:
    return f" {name}={_attribute(value)}" if value else ""


def _attribute(value: str) -> str:
    return quoteattr(_clean(value))


def _clean(value: str, most: int = MOST_CHARACTERS) -> str:
    """Text that XML can hold, on one line, not longer than a message can bear. What is not is replaced, to be seen."""
    return _LINES.sub(" ", _NOT_XML.sub(ALTERED, value))[:most]
