"""How much one peer, one AE title, and all of them may have of this node at the same time."""

from dataclasses import dataclass

from config.settings import ReceiverSettings


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
