"""Who may associate: called and calling AE titles, and the addresses they come from.

An AE title alone authenticates nobody. With TLS, a source can also be bound to its certificate.
"""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from pydantic import SecretStr

from config.settings import ImageClass, Settings
from dicom_node.logs import short
from dicom_node.receiver.acse import USERNAME_AND_PASSCODE, UserIdentity
from dicom_node.receiver.negotiation import OFFERED, Offer, offer

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# A-ASSOCIATE-RJ: result, source, reason; PS3.8 Table 9-21.
CALLING_AE_UNKNOWN = (1, 1, 3)
CALLED_AE_UNKNOWN = (1, 1, 7)
APPLICATION_CONTEXT_UNKNOWN = (1, 1, 2)
PROTOCOL_VERSION_UNKNOWN = (1, 2, 2)
USER_UNKNOWN = (1, 1, 1)
CONGESTION = (2, 3, 1)
LIMIT_EXCEEDED = (2, 3, 2)
REJECTIONS: Mapping[tuple[int, int, int], tuple[str, str]] = {
    USER_UNKNOWN: ("No reason given", "The user identity is missing or wrong, or was sent without TLS."),
    APPLICATION_CONTEXT_UNKNOWN: ("Application context name not supported", "It is not DICOM's."),
    CALLING_AE_UNKNOWN: (
        "Calling AE title not recognized",
        "It is malformed or not that of a source, comes from an address that is not the source's, or was called with a "
        "certificate that is not the source's.",
    ),
    CALLED_AE_UNKNOWN: ("Called AE title not recognized", "It is not the node's."),
    PROTOCOL_VERSION_UNKNOWN: ("Protocol version not supported", "It is not version 1."),
    CONGESTION: (
        "Temporary congestion",
        "The node stops; the disk, the index or the object store is over its mark or away; too many series wait to be "
        "analysed; or a person has paused the source. An association that proposes Verification alone is accepted "
        "all the same, unless the node stops.",
    ),
    LIMIT_EXCEEDED: (
        "Local limit exceeded",
        "Too many associations at once, of all senders, of the address or of the AE title; or too many in a minute.",
    ),
}
"""Each code, with its meaning and when it is answered; the conformance statement prints them."""


@dataclass(frozen=True)
class Rejection:
    """Why an association is refused. code: for the A-ASSOCIATE-RJ. reason: a stable word for log and audit."""

    code: tuple[int, int, int]
    reason: str


def parse_address(host: str) -> Address:
    """The peer's address as the operating system gives it; an IPv4 address inside IPv6 is taken out of it."""
    address = ip_address(host.split("%", 1)[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def address_key(address: Address) -> str:
    """What limits count by: an IPv4 address, or an IPv6 /64 network, which one machine has to itself."""
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address)


class AccessPolicy:
    """The rules of one configuration. With no source configured, only this machine may store."""

    def __init__(
        self,
        called_ae: str,
        check_called_ae: bool,
        sources: Iterable[tuple[str, Sequence[str]]],
        certificates: Mapping[str, Sequence[str]],
        classes: Mapping[str, Iterable[ImageClass]] | None = None,
        users: Mapping[str, SecretStr] | None = None,
    ) -> None:
        self._called_ae = called_ae if check_called_ae else None
        self._certificates = {title: frozenset(names) for title, names in certificates.items()}
        self._sources: dict[str, list[tuple[Network, ...]]] = {}
        for title, addresses in sources:
            networks = tuple(ip_network(address, strict=False) for address in addresses)
            self._sources.setdefault(title, []).append(networks)
        self._offers = {title: offer(names) for title, names in (classes or {}).items()}
        self._users = {name.encode(): secret.get_secret_value().encode() for name, secret in (users or {}).items()}

    @classmethod
    def of(cls, settings: Settings) -> "AccessPolicy":
        """The rules in these settings."""
        receiver = settings.receiver
        sources = [(source.ae_title, source.addresses) for source in settings.sources]
        classes = {source.ae_title: source.classes for source in settings.sources}
        return cls(receiver.ae_title, receiver.check_called_ae, sources, receiver.tls_peers, classes, receiver.users)

    def may_connect(self, address: Address) -> bool:
        """False if no association could be accepted from this address: its connection is not worth a thread."""
        if not self._sources:
            return address.is_loopback
        return any(_within(address, networks) for all_of in self._sources.values() for networks in all_of)

    def check(
        self, called_ae: str, calling_ae: str, address: Address, certificate_names: frozenset[str] = frozenset()
    ) -> Rejection | None:
        """None if this caller may associate.

        certificate_names: of its certificate, see certificates.names_in. An AE title that is bound to a certificate
        may be used only with that one, and so never without TLS.
        """
        if self._certificates and (calling_ae in self._certificates or certificate_names):
            bound = self._certificates.get(calling_ae, frozenset())
            if not bound & certificate_names:
                return Rejection(CALLING_AE_UNKNOWN, "certificate-not-of-this-ae")
        if self._called_ae is not None and called_ae != self._called_ae:
            return Rejection(CALLED_AE_UNKNOWN, "called-ae-unknown")
        if not self._sources:
            return None if address.is_loopback else Rejection(CALLING_AE_UNKNOWN, "no-sources-configured")
        known = self._sources.get(calling_ae)
        if known is None:
            return Rejection(CALLING_AE_UNKNOWN, "calling-ae-unknown")
        if not any(_within(address, networks) for networks in known):
            return Rejection(CALLING_AE_UNKNOWN, "address-not-of-this-ae")
        return None

    def offer(self, calling_ae: str) -> Offer:
        """What this sender may propose."""
        return self._offers.get(calling_ae, OFFERED)

    def check_user(self, user: UserIdentity | None, over_tls: bool) -> Rejection | None:
        """None if no users are configured, or this is one of them with its passcode.

        Without users configured an identity is ignored, as PS3.7 D.3.3.7 allows. A passcode counts over TLS only.
        """
        if not self._users:
            return None
        if not over_tls:
            return Rejection(USER_UNKNOWN, "user-identity-without-tls")
        if user is None or user.kind != USERNAME_AND_PASSCODE:
            return Rejection(USER_UNKNOWN, "no-user-identity")
        expected = self._users.get(user.primary)
        # Compared for an unknown name too, and in constant time: the answer's delay must tell nothing.
        if not hmac.compare_digest(user.secondary, expected or b"") or not expected:
            return Rejection(USER_UNKNOWN, "user-or-passcode-wrong")
        return None

    def asks_for_users(self) -> bool:
        """True if only known users may associate."""
        return bool(self._users)

    def label(self, calling_ae: str) -> str:
        """What logs call a sender: a configured AE title as it is; any other is anybody's text and becomes a hash."""
        return calling_ae if calling_ae in self._sources else f"~{short(calling_ae)}" if calling_ae else ""


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return not networks or any(address.version == network.version and address in network for network in networks)
