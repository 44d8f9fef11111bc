"""All connections of the receiver: who may be one, how many there may be, and what is written down about them.

One registry serves every port, so that the limits hold for all of them together.
"""

import threading
from collections import Counter

from dicom_node.receiver import access
from dicom_node.receiver.access import AccessPolicy, Address, Rejection, address_key, parse_address
from dicom_node.receiver.association import Association
from dicom_node.receiver.journal import Journal
from dicom_node.receiver.limits import Limits
from dicom_node.receiver.negotiation import Request
from dicom_node.receiver.resources import Resources


class Registry:
    """The connections that are open; see association.Gate for what associations ask of it."""

    def __init__(self, policy: AccessPolicy, limits: Limits, resources: Resources, journal: Journal) -> None:
        self._policy = policy
        self._limits = limits
        self._resources = resources
        self._journal = journal
        self._lock = threading.Lock()
        # In the order of their connections; with what limits count their address by.
        self._open: dict[Association, str] = {}
        self._draining = False

    def may_connect(self, address: Address) -> bool:
        """False, and written down, for an address that no association would be accepted from."""
        if self._policy.may_connect(address):
            return True
        self._journal.record("connection.refused", address=str(address), outcome="REFUSED", reason="address-unknown")
        return False

    def enter(self, association: Association, address: Address) -> None:
        """Count a new connection, and cut the oldest that waits where there are too many without an association."""
        key = address_key(address)
        with self._lock:
            waiting = [(other, of) for other, of in self._open.items() if not other.counts]
            self._open[association] = key
        same = [other for other, of in waiting if of == key]
        if len(same) >= self._limits.max_waiting_per_address:
            self._evict(same[0])
        elif len(waiting) >= self._limits.max_waiting:
            # One of the address that has most of them: an address that behaves has few.
            worst = Counter(of for _, of in waiting).most_common(1)[0][0]
            self._evict(next(other for other, of in waiting if of == worst))

    def _evict(self, association: Association) -> None:
        association.cut()
        self.leave(association)

    def admit(self, association: Association, request: Request) -> Rejection | None:
        """See association.Gate."""
        address = parse_address(association.address)
        refused = self._policy.check(request.called_ae, request.calling_ae, address, association.peer_names)
        if refused is not None:
            return refused
        if self._draining:
            return Rejection(access.CONGESTION, "shutting-down")
        if self._resources.is_low():
            return Rejection(access.CONGESTION, "low-disk")
        with self._lock:
            refused = self._over_limit(address_key(address), request.calling_ae)
            association.admitted = refused is None
        return refused

    def _over_limit(self, key: str, calling_ae: str) -> Rejection | None:
        counted = [(other, of) for other, of in self._open.items() if other.counts]
        if len(counted) >= self._limits.max_associations:
            return Rejection(access.LIMIT_EXCEEDED, "too-many-associations")
        if sum(of == key for _, of in counted) >= self._limits.max_per_address:
            return Rejection(access.LIMIT_EXCEEDED, "too-many-associations-of-address")
        if sum(other.calling_ae == calling_ae for other, _ in counted) >= self._limits.max_per_ae:
            return Rejection(access.LIMIT_EXCEEDED, "too-many-associations-of-ae")
        return None

    def record(self, association: Association, event: str, outcome: str, **detail: object) -> None:
        """See association.Gate."""
        self._journal.record(
            event,
            peer_ae=association.calling_ae or None,
            address=association.address,
            outcome=outcome,
            called_ae=association.called_ae,
            tls=association.over_tls,
            **detail,
        )

    def leave(self, association: Association) -> None:
        """See association.Gate."""
        with self._lock:
            self._open.pop(association, None)

    def drain(self) -> None:
        """Admit no more."""
        self._draining = True

    def associations(self) -> list[Association]:
        """Those whose connection is open."""
        with self._lock:
            return list(self._open)
