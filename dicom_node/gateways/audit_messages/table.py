"""Which audit message an event of the trail becomes. A test holds this table to every event that the program writes.

An event that has no counterpart in PS3.15 A.5 is in NO_COUNTERPART, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from dicom_node.gateways.audit_messages import codes
from dicom_node.gateways.audit_messages.codes import Code


class Who(StrEnum):
    """Who takes part."""

    NODE = "the node alone"
    PERSON = "a person, and the node"
    INCOMING = "a peer that sends to the node"
    OUTGOING = "the node, which sends to a destination"
    FETCHED = "the node, which fetches from a peer"
    DOWNLOAD = "a person who gets a copy"
    IMPORTED = "the node, which reads from a peer or a folder"
    REPORTED = "the node, which reports a peer or a person"


SUCCESS, MINOR, SERIOUS = "0", "4", "8"


@dataclass(frozen=True)
class Counterpart:
    """A message. event, types: EventID and EventTypeCode. action: EventActionCode. outcome: EventOutcomeIndicator.

    folded: many rows of one study are one message. log: its object is the audit trail itself.
    """

    event: Code
    action: str
    who: Who
    types: tuple[Code, ...] = ()
    outcome: str = SUCCESS
    folded: bool = False
    log: bool = False


def _alert(kind: Code, who: Who = Who.REPORTED, outcome: str = SUCCESS) -> Counterpart:
    return Counterpart(codes.SECURITY_ALERT, "E", who, (kind,), outcome)


_RECEIVED = Counterpart(codes.INSTANCES_TRANSFERRED, "C", Who.INCOMING, folded=True)
_HELD_ALREADY = replace(_RECEIVED, action="R")
_REFUSED = replace(_RECEIVED, outcome=MINOR)
_BEGIN = Counterpart(codes.BEGIN_TRANSFERRING, "E", Who.OUTGOING)
_SENT = Counterpart(codes.INSTANCES_TRANSFERRED, "C", Who.OUTGOING)
_READ = Counterpart(codes.INSTANCES_ACCESSED, "R", Who.PERSON)
_LOG_USED = Counterpart(codes.AUDIT_LOG_USED, "R", Who.PERSON, log=True)
HEAD = Counterpart(codes.AUDIT_LOG_USED, "R", Who.NODE, log=True)
"""The end of the trail, told now and then."""
BROKEN = _alert(codes.OBJECT_CHANGED, Who.NODE, SERIOUS)
"""The trail was altered where it was being told."""

TABLE: Mapping[str, Counterpart] = {
    "node.started": Counterpart(codes.APPLICATION_ACTIVITY, "E", Who.NODE, (codes.APPLICATION_START,)),
    "node.stopped": Counterpart(codes.APPLICATION_ACTIVITY, "E", Who.NODE, (codes.APPLICATION_STOP,)),
    "node.configuration-changed": _alert(codes.SOFTWARE_CONFIGURATION),
    "node.configuration-refused": _alert(codes.SOFTWARE_CONFIGURATION, outcome=MINOR),
    "model.imported": _alert(codes.SOFTWARE_CONFIGURATION),
    "model.published": _alert(codes.SOFTWARE_CONFIGURATION),
    "model.evaluation-adopted": _alert(codes.SOFTWARE_CONFIGURATION),
    "model.calibrated": _alert(codes.SOFTWARE_CONFIGURATION),
    "model.suspended": _alert(codes.SOFTWARE_CONFIGURATION),
    "model.resumed": _alert(codes.SOFTWARE_CONFIGURATION),
    "source.paused": _alert(codes.NETWORK_CONFIGURATION),
    "source.resumed": _alert(codes.NETWORK_CONFIGURATION),
    "destination.paused": _alert(codes.NETWORK_CONFIGURATION),
    "destination.resumed": _alert(codes.NETWORK_CONFIGURATION),
    "association.rejected": _alert(codes.NODE_AUTHENTICATION, outcome=MINOR),
    "connection.refused": _alert(codes.NODE_AUTHENTICATION, outcome=MINOR),
    "commitment.refused": _alert(codes.NODE_AUTHENTICATION, outcome=MINOR),
    "instance.received": _RECEIVED,
    "instance.restored": _RECEIVED,
    "instance.duplicate": _HELD_ALREADY,
    "instance.same-image": _HELD_ALREADY,
    "instance.second-copy": _HELD_ALREADY,
    "instance.conflict": _REFUSED,
    "instance.refused": _REFUSED,
    "instance.lost": _alert(codes.OBJECT_CHANGED, Who.NODE, SERIOUS),
    "result.lost": _alert(codes.OBJECT_CHANGED, Who.NODE, SERIOUS),
    "series.fetch": Counterpart(codes.BEGIN_TRANSFERRING, "E", Who.FETCHED),
    "series.images-deleted": Counterpart(codes.INSTANCES_ACCESSED, "D", Who.NODE),
    "batch.imported": Counterpart(codes.DATA_IMPORT, "C", Who.IMPORTED),
    "result.recorded": Counterpart(codes.INSTANCES_ACCESSED, "C", Who.NODE),
    "result.replayed": Counterpart(codes.INSTANCES_ACCESSED, "R", Who.NODE),
    "delivery.sending": _BEGIN,
    "delivery.sent": _SENT,
    "delivery.pending": replace(_SENT, outcome=MINOR),
    "delivery.failed": replace(_SENT, outcome=SERIOUS),
    "delivery.late": _SENT,
    "web.login": Counterpart(codes.USER_AUTHENTICATION, "E", Who.PERSON, (codes.LOGIN,)),
    "web.login-refused": Counterpart(codes.USER_AUTHENTICATION, "E", Who.PERSON, (codes.LOGIN,), MINOR),
    "web.logout": Counterpart(codes.USER_AUTHENTICATION, "E", Who.PERSON, (codes.LOGOUT,)),
    "web.logged-out-everywhere": Counterpart(codes.USER_AUTHENTICATION, "E", Who.PERSON, (codes.LOGOUT,)),
    "web.password-changed": _alert(codes.USER_CHANGED),
    "web.read": _READ,
    "web.question": _READ,
    "web.download": Counterpart(codes.DATA_EXPORT, "R", Who.DOWNLOAD),
    "backup.created": Counterpart(codes.DATA_EXPORT, "R", Who.DOWNLOAD),
    "index.restored": _alert(codes.SOFTWARE_CONFIGURATION),
    "index.moved": _alert(codes.SOFTWARE_CONFIGURATION),
    "notification.sent": Counterpart(codes.DATA_EXPORT, "R", Who.OUTGOING),
    "operator.read": _READ,
    "operator.cluster-down": _alert(codes.NETWORK_CONFIGURATION),
    "operator.cluster-up": _alert(codes.NETWORK_CONFIGURATION),
    "operator.web-user-added": _alert(codes.USER_CHANGED),
    "operator.web-user-password": _alert(codes.USER_CHANGED),
    "operator.web-user-removed": _alert(codes.USER_CHANGED),
    "operator.web-user-roles": _alert(codes.ROLES_CHANGED),
    "patient.forgetting": replace(_READ, action="D"),
    "patient.forgotten": Counterpart(codes.INSTANCES_ACCESSED, "D", Who.NODE),
    "audit.forgotten": replace(_LOG_USED, action="U", who=Who.NODE),
    "audit.archived": _LOG_USED,
    "audit.verified": _LOG_USED,
}

_STEP = "a step inside the node: no instance is moved, read or made"
_LEADS = "what it leads to has messages of its own"
NO_COUNTERPART: Mapping[str, str] = {
    "association.accepted": "instances that it brings are told as transferred",
    "association.released": "likewise",
    "association.aborted": "likewise",
    "connection.aborted": "nobody has said who he is",
    "connection.closed": "nobody has said who he is",
    "series.open": _STEP,
    "series.closed": _STEP,
    "series.count-unknown": _STEP,
    "series.count-contradicted": _STEP,
    "series.quiet-times-restarted": _STEP,
    "series.withdrawn": _LEADS,
    "rejection.noted": "the note was told when it was received",
    "rejection.unreadable": "the note was told when it was received",
    "study.decided": _STEP,
    "study.series-chosen": _STEP,
    "job.queued": _STEP,
    "job.running": _STEP,
    "job.reported": _STEP,
    "job.failed": _STEP,
    "job.superseded": _STEP,
    "result.header_repaired": "said by the result's own message",
    "result.compared": "said by the result's own message",
    "delivery.committed": "the transfer was told when it was done",
    "delivery.commitment-requested": "the transfer was told when it was done",
    "delivery.commitment-not-answered": "the transfer was told when it was done",
    "delivery.unconfirmed": "the transfer was told when it was done",
    "delivery.hurried": _STEP,
    "delivery.withheld": "nothing leaves the node",
    "delivery.superseded": "nothing leaves the node",
    "verdict.given": "a reader's opinion: no instance is moved, read or made",
    "instance.adopted": "told when it was received, by an index that is gone",
    "store.adopted": _STEP,
    "files.swept": _STEP,
    "files.not-swept": _STEP,
    "quarantine.deleted": "files that were never stored instances",
    "batch.created": _STEP,
    "batch.running": _STEP,
    "batch.paused": _STEP,
    "batch.done": _STEP,
    "batch.cancelled": _STEP,
    "batch.creating": _STEP,
    "batch.case-ended": _STEP,
    "batch.reported": "figures without patients",
    "workitem.claiming": _STEP,
    "workitem.claimed": _STEP,
    "workitem.input": "images that are fetched for it are told as transferred",
    "workitem.fetching": "images that are fetched for it are told as transferred",
    "workitem.analysing": _STEP,
    "workitem.decided": _STEP,
    "workitem.ending": _STEP,
    "workitem.completed": _STEP,
    "workitem.canceled": _STEP,
    "workitem.taken": _STEP,
    "workitem.lost": _STEP,
    "workitem.cancel-requested": _STEP,
    "watch.reference-frozen": "figures of many scans, without patients",
    "watch.alarm-raised": "figures of many scans, without patients",
    "watch.alarm-acknowledged": "figures of many scans, without patients",
    "watch.alarm-ended": "figures of many scans, without patients",
    "notification.failed": "nothing was sent",
    "canary.asked": _STEP,
    "canary.sending": "its images are told when they are received",
    "canary.waiting": _STEP,
    "canary.passed": _STEP,
    "canary.abandoned": _STEP,
    "operator.canary": _STEP,
    "canary.differs": "a study of the node's own: no patient is concerned",
    "canary.failed": "a study of the node's own: no patient is concerned",
    "canary.stale": "a study of the node's own: no patient is concerned",
    "canary.expected": "a study of the node's own: no patient is concerned",
    "operator.retry": _LEADS,
    "operator.resend": _LEADS,
    "operator.reanalyse": _LEADS,
    "operator.accept": _LEADS,
    "web.retry": _LEADS,
    "web.resend": _LEADS,
    "web.reanalyse": _LEADS,
    "web.echo": "a verification moves no instance",
}


def counterpart(row: Mapping[str, Any], detail: Mapping[str, Any]) -> Counterpart | None:
    """The message of a row; None if it has none. detail: of the row, decoded."""
    event = row["event"]
    if event == "delivery.pending" and detail.get("from") != "SENDING":
        return None  # born, or to be sent again: nothing was transferred
    if event == "result.recorded" and row["outcome"] != "ANALYSED":
        return None  # what it tells is sent as a delivery, if at all
    if event == "notification.sent" and not detail.get("patient_data"):
        return None  # it names no patient
    if event in ("web.read", "operator.read") and "audit" in (detail.get("page"), detail.get("command")):
        return _LOG_USED
    return TABLE.get(event)
