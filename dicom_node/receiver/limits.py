"""The limits: how much one peer, one AE title, and all of them may have at once; and the connections they apply to.

One registry serves every port, so that the limits hold for all of them together.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from config.settings import ReceiverSettings
from dicom_node.receiver import access, meters
from dicom_node.receiver.access import AccessPolicy, Address, Rejection, parse_address
from dicom_node.receiver.acse import Request
from dicom_node.receiver.association import Admission, Association
from dicom_node.receiver.journal import Journal
from dicom_node.receiver.resources import Resources


@dataclass(frozen=True)
class Limits:
    """max_associations, max_per_address, max_per_ae: established at once.

    max_waiting, max_waiting_per_address: connections without an association.
    max_pdu_bytes: of one PDU, after its header.
    """

    max_associations: int
    max_per_address: int
    max_per_ae: int
    max_waiting: int
    max_waiting_per_address: int
    max_pdu_bytes: int

    @classmethod
    def of(cls, settings: ReceiverSettings) -> "Limits":
        """The limits in these settings."""
        return cls(
            max_associations=settings.max_associations,
            max_per_address=settings.max_associations_per_address,
            max_per_ae=settings.max_associations_per_ae,
            max_waiting=settings.max_waiting_connections,
            max_waiting_per_address=settings.max_waiting_connections_per_address,
            max_pdu_bytes=settings.max_pdu_bytes,
        )


class Registry:
    """The connections that are open; see association.Gate for what associations ask of it.

    pressure: why no more should be taken in from an AE title just now, as a stable word; None if nothing speaks
        against it.
    """

    def __init__(
        self,
        policy: AccessPolicy,
        limits: Limits,
        resources: Resources,
        journal: Journal,
        pressure: Callable[[str], str | None],
    ) -> None:
        self._policy = policy
        self._pressure = pressure
        self._limits = limits
        self._resources = resources
        self._journal = journal
        self._lock = threading.Lock()
        # In the order of their connections; with what limits count their address by.
        self._open: dict[Association, str] = {}
        self._draining = False

    def may_connect(self, address: Address) -> bool:
        """False if no association would be accepted from this address, which is then written down."""
        if self._policy.may_connect(address):
            return True
        self._journal.record("connection.refused", address=str(address), outcome="REFUSED", reason="address-unknown")
        return False

    def enter(self, association: Association) -> None:
        """Count a new connection, and cut one that waits if there are too many without an association."""
        key = association.network
        with self._lock:
            waiting = [(other, of) for other, of in self._open.items() if not other.counts]
            self._open[association] = key
        meters.CONNECTIONS.inc()
        same = [other for other, of in waiting if of == key]
        if len(same) >= self._limits.max_waiting_per_address:
            self._evict(_least_promising(same))
        elif len(waiting) >= self._limits.max_waiting:
            # One of the address that has most of them: an address that behaves has few.
            worst = Counter(of for _, of in waiting).most_common(1)[0][0]
            self._evict(_least_promising([other for other, of in waiting if of == worst]))

    def _evict(self, association: Association) -> None:
        association.cut()
        self.leave(association)

    def admit(self, association: Association, request: Request) -> Admission | Rejection:
        """See association.Gate."""
        calling_ae = request.calling_ae
        address = parse_address(association.address)
        refused = self._policy.check(request.called_ae, calling_ae, address, association.peer_names)
        refused = refused or self._policy.check_user(request.user, association.over_tls)
        if refused is not None:
            return refused
        if self._draining:
            return Rejection(access.CONGESTION, "shutting-down")
        pressure = self._pressure(calling_ae)
        if pressure is not None and not request.only_verifies:
            return Rejection(access.CONGESTION, pressure)
        if not self._resources.admit_association(calling_ae, association.network):
            return Rejection(access.LIMIT_EXCEEDED, "too-many-associations-in-a-minute")
        with self._lock:
            refused = self._over_limit(association.network, calling_ae)
            association.admitted = refused is None
        if refused is not None:
            return refused
        meters.ASSOCIATIONS.inc()
        return Admission(self._policy.offer(calling_ae), self._policy.label(calling_ae), self._policy.asks_for_users())

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
            called_ae=association.called_ae or None,
            label=self._policy.label(association.calling_ae) or None,
            address=association.address,
            outcome=outcome,
            tls=association.over_tls,
            **detail,
        )

    def leave(self, association: Association) -> None:
        """See association.Gate."""
        with self._lock:
            if self._open.pop(association, None) is None:
                return
        meters.CONNECTIONS.dec()
        if association.admitted:
            meters.ASSOCIATIONS.dec()

    def drain(self) -> None:
        """Stop admitting."""
        self._draining = True

    def associations(self) -> list[Association]:
        """Those whose connection is open."""
        with self._lock:
            return list(self._open)


def _least_promising(waiting: list[Association]) -> Association:
    """The oldest that said nothing; a sender whose request is only not read yet must not be cut for silent ones."""
    return next((one for one in waiting if one.is_silent), waiting[0])
