"""What to do if a sender that was overtaken told a result late.

A sender that stood still (a frozen machine) for longer than its lease may send what it had begun to send after another
sender has told the result's successor. No look at the index can prevent that: the machine may freeze after any look. So
the sender that notices it has the successor told once more, by whichever sender comes to it, and the receiver ends with
what stands.
"""

from collections.abc import Callable

from sqlalchemy import Connection, select

from storage.deliveries import ClaimedDelivery, DeliveryState, not_stored, note, revive
from storage.models import deliveries, results

REASON = "a result that it replaces may have been told after it, by a sender that stood still"


def set_right(tx: Connection, late: ClaimedDelivery, now: float, anew: Callable[[int], None]) -> None:
    """Have the results that replaced this one told once more at its destination, if they were told there already.

    late: what was sent without a lease.  anew: changes the message of a delivery so that the receiver takes it for a
    new one. One that another sender is telling at this moment is taken from it: that telling may come first.
    """
    later = _told_later(tx, late)
    if later:
        note(tx, late.delivery_id, now, "delivery.late", None, {"reason": "told without a lease, after its successor"})
    for delivery_id, state in later.items():
        anew(delivery_id)
        if state == DeliveryState.SENDING:
            not_stored(tx, delivery_id, state, DeliveryState.PENDING, now, now, REASON)
        elif state in (DeliveryState.SENT, DeliveryState.COMMITTED):
            revive(tx, delivery_id, state, now, REASON)


def _told_later(tx: Connection, late: ClaimedDelivery) -> dict[int, DeliveryState]:
    """Deliveries of the later results that stand, which the destination may have: states by number.

    None if the result itself stands: then what was sent late is what is to be told.
    """
    former = results.alias("former")
    rows = tx.execute(
        select(deliveries.c.id, deliveries.c.state)
        .select_from(deliveries.join(results).join(former, former.c.series_pk == results.c.series_pk))
        .where(former.c.id == late.result_id, former.c.superseded_at.is_not(None))
        .where(results.c.id > late.result_id, results.c.superseded_at.is_(None))
        .where(deliveries.c.destination == late.destination, deliveries.c.fence > 0)
        .order_by(deliveries.c.id)
        .with_for_update(of=deliveries)
    )
    return {row.id: DeliveryState(row.state) for row in rows}
