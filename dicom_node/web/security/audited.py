"""Audit rows of the pages: who looked at whose data, who did what, and from where."""

import time

from sqlalchemy import Connection
from starlette.requests import Request

from dicom_node.web.context import context_of
from dicom_node.web.security.guard import address_of, current_user
from storage import audit


def audited(
    request: Request,
    event: str,
    about: audit.Subject = audit.NOTHING,
    *,
    outcome: str = "DONE",
    tx: Connection | None = None,
    **detail: object,
) -> None:
    """An audit row about a look at patient data or an act.

    event: "web.read" for a look, "web." and a verb for an act, such as "web.retry". tx: the transaction of the act;
    without one, the row is written at once. Raises StorageError if it cannot be: then nobody gets to see anything.
    """
    given = {name: value for name, value in detail.items() if value is not None}
    whole = {"user": current_user(request).name, **given}
    peer = audit.Peer(address=address_of(request))
    if tx is not None:
        audit.append(tx, time.time(), event, about, peer=peer, outcome=outcome, detail=whole)
        return
    with context_of(request).database.transaction() as own:
        audit.append(own, time.time(), event, about, peer=peer, outcome=outcome, detail=whole)
