"""From a row of the trail to its message: who took part, and what it is about."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, select

from config.settings import Settings
from dicom_node.gateways.audit_messages import codes
from dicom_node.gateways.audit_messages.codes import Code
from dicom_node.gateways.audit_messages.folding import Transfer
from dicom_node.gateways.audit_messages.message import (
    Message,
    Object,
    Participant,
    node_object,
    patient_object,
    render,
    rows_object,
    study_object,
)
from dicom_node.gateways.audit_messages.syslog import is_ip
from dicom_node.gateways.audit_messages.table import BROKEN, HEAD, TABLE, Counterpart, Who
from storage.forwarding import Row
from storage.models import instances, result_objects, series, studies

WORDS = (
    *("reason", "status", "settings", "mistakes", "name", "account", "roles", "path", "why", "command", "page"),
    *("point", "from", "to"),
)
"""What an alert says of a row's detail."""


class Teller:
    """Makes messages. host: of this machine, as a network knows it. tx: for what the index adds to a row."""

    def __init__(self, settings: Settings, host: str, tx: Connection) -> None:
        self._settings = settings
        self._host = host
        self._tx = tx
        self._source_id = settings.audit.syslog.source_id or settings.receiver.ae_title

    def row(self, row: Row, detail: Mapping[str, Any], kind: Counterpart) -> bytes:
        """The message of one row."""
        about = self._about(row, self._classes(row)) + self._more(row, detail, kind)
        return self._render(kind, row["at"], self._who(row, detail, kind.who), about, rows_of(row))

    def transfer(self, one: Transfer) -> bytes:
        """The message of many instances. Its first row's counterpart has their outcome."""
        row: Row = {**vars(one), "series_uid": None, "sop_uid": None, "result_id": None}
        kind = TABLE[one.event]
        said = rows_object(one.last, one.hash, one.first, one.instances)
        about = self._about(row, dict(one.classes))
        return self._render(kind, one.ended, self._who(row, {}, kind.who), about, said)

    def head(self, number: int, digest: str, at: float) -> bytes:
        """The end of the trail."""
        return self._render(HEAD, at, [self._node(requestor=True)], [], rows_object(number, digest, number))

    def broken(self, row: Row, reason: str) -> bytes:
        """An alert: the trail does not hold at this row."""
        return self._alert(row["at"], f"row {row['id']} of the audit trail: {reason}", rows_of(row))

    def cut(self, number: int, digest: str, at: float) -> bytes:
        """An alert: a row that was told is no longer there."""
        said = f"row {number} of the audit trail, which was told, is not there: it was cut, written anew or restored"
        return self._alert(at, said, rows_object(number, digest, number))

    def class_of(self, sop_uid: str) -> str | None:
        """The SOP class of a stored instance."""
        found: str | None = self._tx.scalar(
            select(instances.c.sop_class_uid).where(instances.c.sop_instance_uid == sop_uid)
        )
        return found

    def _alert(self, at: float, said: str, rows: Object) -> bytes:
        return self._render(BROKEN, at, [self._node(requestor=True)], [node_object(self._source_id, said)], rows)

    def _render(self, kind: Counterpart, at: float, who: list[Participant], about: list[Object], rows: Object) -> bytes:
        site = self._settings.audit.syslog.site_id
        objects = [*about, rows]
        return render(
            Message(kind.event, kind.action, at, kind.outcome, kind.types, who, objects, self._source_id, site)
        )

    def _about(self, row: Row, classes: Mapping[str, int | None]) -> list[Object]:
        """Study and patient, if the row names them."""
        found = []
        if row["study_uid"]:
            accession = self._tx.scalar(
                select(studies.c.accession_number).where(studies.c.study_instance_uid == row["study_uid"])
            )
            found.append(study_object(row["study_uid"], accession or "", classes))
        if row["patient_id"]:
            found.append(patient_object(row["patient_id"]))
        return found

    def _more(self, row: Row, detail: Mapping[str, Any], kind: Counterpart) -> list[Object]:
        """What an alert says, or which log was used."""
        if kind.event == codes.SECURITY_ALERT:
            said = [f"{name} {_text(detail[name])}" for name in WORDS if detail.get(name)]
            return [node_object(self._source_id, ", ".join([row["event"], *said]))]
        if kind.log:
            return [Object("audit", codes.URI_ID, "2", "13", "Security Audit Log")]
        return []

    def _classes(self, row: Row) -> dict[str, int | None]:
        """SOP classes of what a row is about: the objects of its result, or the images of its series."""
        if row["result_id"] is not None:
            counted = select(result_objects.c.sop_class_uid, func.count()).group_by(result_objects.c.sop_class_uid)
            of_result = counted.where(result_objects.c.result_id == row["result_id"])
            return {str(uid): int(number) for uid, number in self._tx.execute(of_result).all()}
        if not row["series_uid"]:
            return {}
        one = select(instances.c.sop_class_uid).select_from(instances.join(series))
        uid = self._tx.scalar(one.where(series.c.series_instance_uid == row["series_uid"]).limit(1))
        return {uid: None} if uid else {}

    def _who(self, row: Row, detail: Mapping[str, Any], who: Who) -> list[Participant]:
        if who == Who.PERSON:
            return [self._person(row, detail), self._node()]
        if who == Who.INCOMING:
            return [_peer(row, codes.SOURCE, requestor=True), self._node(codes.DESTINATION)]
        if who == Who.OUTGOING:
            name = str(detail.get("destination") or detail.get("rule") or "")
            return [self._node(codes.SOURCE, requestor=True), self._destination(name)]
        if who == Who.FETCHED:
            return [_peer(row, codes.SOURCE), self._node(codes.DESTINATION, requestor=True)]
        if who == Who.DOWNLOAD:
            copy = Participant(str(detail.get("to") or "browser"), False, codes.DESTINATION_MEDIA, media=codes.URI)
            return [self._person(row, detail), self._node(codes.SOURCE), copy]
        if who == Who.IMPORTED:
            return [self._node(codes.DESTINATION, requestor=True), _peer(row, codes.SOURCE_MEDIA)]
        if who == Who.REPORTED:
            return [self._node(requestor=True), *self._reported(row, detail)]
        return [self._node(codes.APPLICATION)]

    def _reported(self, row: Row, detail: Mapping[str, Any]) -> list[Participant]:
        """Whom an alert is about."""
        if detail.get("user"):
            return [self._person(row, detail, requestor=False)]
        return [_peer(row, None)] if row["peer_ae"] or row["address"] else []

    def _person(self, row: Row, detail: Mapping[str, Any], *, requestor: bool = True) -> Participant:
        address = row["address"] or ""
        return Participant(str(detail.get("user") or "unknown"), requestor, address=address, is_ip=is_ip(address))

    def _node(self, role: Code | None = None, *, requestor: bool = False) -> Participant:
        ours = self._settings.receiver.ae_title
        return Participant(self._source_id, requestor, role, ours, self._host, is_ip(self._host))

    def _destination(self, name: str) -> Participant:
        """A destination as the settings have it; one that they no longer have, by its name."""
        found = self._settings.destination(name)
        host = str(getattr(found, "peer_host", "") or getattr(found, "host", ""))
        title = str(getattr(found, "ae_title", ""))
        return Participant(name or "unknown", False, codes.DESTINATION, title, host, is_ip(host))


def rows_of(row: Row) -> Object:
    """The object that names one row."""
    return rows_object(row["id"], row["hash"], row["id"])


def detail_of(row: Row) -> dict[str, Any]:
    """A row's detail, decoded."""
    found = json.loads(row["detail"]) if row["detail"] else {}
    return found if isinstance(found, dict) else {}


def _peer(row: Row, role: Code | None, *, requestor: bool = False) -> Participant:
    title, address = row["peer_ae"] or "", row["address"] or ""
    return Participant(title or address or "unknown", requestor, role, title, address, is_ip(address))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
