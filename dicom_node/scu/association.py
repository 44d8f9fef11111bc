"""Associations that the node opens, and the deadlines that every operation on them has.

A deadline is absolute, not only a timeout between bytes: a peer that drips one byte at a time, or stops reading in
the middle of an instance, is cut off. pynetdicom's own thread waits without limit for such a peer and would keep
the process from ending.
"""

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Protocol

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from config.settings import SenderSettings
from dicom_node.errors import NodeError
from dicom_node.scu.contexts import application_entity
from dicom_node.scu.tls import DICOM_CIPHERS, client_context

SMALLEST_PDU = 1024
"""Bytes. A peer that takes less would have an object sent in millions of pieces; DCMTK's own limit is 4096."""
MAX_PDU_BYTES = 131072
"""Largest PDU that the node takes on an association that it opens."""


class PeerUnavailable(NodeError):
    """No usable answer: refused, rejected, aborted, timed out or cut off. Trying later may help."""


class NoContext(NodeError):
    """The peer accepts none of the presentation contexts proposed.

    permanent: it knows none of the classes, or none of their transfer syntaxes; else it gave no reason.
    """

    def __init__(self, message: str, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


class Peer(Protocol):
    """Where an application entity listens; `config.settings.Destination` is one."""

    @property
    def ae_title(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def tls(self) -> bool: ...
    @property
    def tls_authorities(self) -> Path | None: ...
    @property
    def tls_certificate(self) -> Path | None: ...
    @property
    def tls_key(self) -> Path | None: ...
    @property
    def tls_check_host(self) -> bool: ...


@dataclass(frozen=True)
class Address:
    """A peer given on the command line."""

    ae_title: str
    host: str
    port: int
    tls: bool = False
    tls_authorities: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_check_host: bool = True


class Line:
    """The TCP connection under an association, which can be cut from outside."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._socket: socket.socket | None = None
        self._association: Association | None = None
        self.overran = False

    @property
    def opened(self) -> bool:
        """True once the TCP connection stood."""
        return self._socket is not None

    def on_open(self, event: evt.Event) -> None:
        """EVT_CONN_OPEN: pynetdicom has just removed the socket's timeout; without one its thread may block forever."""
        transport = event.assoc.dul.socket
        if transport is None or transport.socket is None:
            return
        self._association = event.assoc
        self._socket = transport.socket
        self._socket.settimeout(self._idle_s)
        # Nagle's algorithm waits for the acknowledgement of each small command: 40 ms an instance.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def cut(self) -> None:
        """Shut the connection down; whoever reads or writes on it wakes up, and whoever waits for the association."""
        self.overran = True
        if self._association is not None:
            # pynetdicom's requests wait without limit for its own thread to pause, although that may have ended: seen
            # when a commitment's answer came while the association was released.
            self._association._is_paused = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Cut the connection if the body takes longer."""
        timer = Timer(seconds, self.cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@dataclass(frozen=True)
class Link:
    """An established association with its connection."""

    association: Association
    line: Line
    response_s: float

    def accepted(self, sop_class_uid: str, transfer_syntax_uid: str | None = None) -> bool:
        """True when the peer accepted this class, in this transfer syntax if one is named."""
        return any(
            context.abstract_syntax == sop_class_uid and transfer_syntax_uid in (None, context.transfer_syntax[0])
            for context in self.association.accepted_contexts
        )

    @contextmanager
    def exchange(self, seconds: float) -> Iterator[None]:
        """A request and its responses: the connection is cut after so many seconds.

        Raises PeerUnavailable for whatever the peer's bytes raise in pynetdicom and pydicom, which may be anything.
        """
        with self.line.deadline(seconds), peer_at_fault():
            try:
                yield
            except (
                RuntimeError
            ) as error:  # pynetdicom's, for a request on an association that has ended in the meantime
                raise PeerUnavailable("the association ended before the request") from error

    def why_lost(self, started: float) -> str:
        """A sentence on why no response came. started: `time.monotonic()` when it was asked for."""
        if self.line.overran or time.monotonic() - started >= (self.association.dimse_timeout or self.response_s):
            return "no response in time"
        return "the association was aborted or the connection cut before the response"


@contextmanager
def peer_at_fault() -> Iterator[None]:
    """The body handles what a peer sent: an error that is not ours (NodeError, OSError) is the peer's."""
    try:
        yield
    except (NodeError, OSError):
        raise
    except Exception as error:  # a peer's bytes raise what they like; the text may quote them
        raise PeerUnavailable(f"what the peer sent cannot be used ({type(error).__name__})") from error


@contextmanager
def associate(
    peer: Peer,
    caller: SenderSettings,
    contexts: Sequence[PresentationContext],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[evt.EventHandlerType] = (),
) -> Iterator[Link]:
    """Open an association; release it at the end, abort it after an exception.

    Raises PeerUnavailable, or NoContext if the peer accepts none of the contexts.
    """
    line = Line(caller.response_timeout_s)
    association = _request(peer, caller, contexts, roles, handlers, line)
    link = Link(association, line, caller.response_timeout_s)
    try:
        _check_acceptance(association)
        yield link
    except BaseException:
        with line.deadline(caller.response_timeout_s):
            association.abort()
        raise
    with line.deadline(caller.response_timeout_s):
        association.release()


def _request(
    peer: Peer,
    caller: SenderSettings,
    contexts: Sequence[PresentationContext],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation],
    handlers: Sequence[evt.EventHandlerType],
    line: Line,
) -> Association:
    entity = application_entity(caller.calling_ae_title)
    entity.connection_timeout = caller.connect_timeout_s
    entity.acse_timeout = caller.response_timeout_s
    entity.dimse_timeout = caller.response_timeout_s
    entity.network_timeout = caller.response_timeout_s
    try:
        with line.deadline(caller.connect_timeout_s + caller.response_timeout_s):
            association = entity.associate(
                peer.host,
                peer.port,
                contexts=list(contexts),
                ae_title=peer.ae_title,
                max_pdu=MAX_PDU_BYTES,
                tls_args=(tls_context(peer), peer.host) if peer.tls else None,
                ext_neg=list(roles),
                evt_handlers=[(evt.EVT_CONN_OPEN, line.on_open), *handlers],
            )
    except socket.gaierror as error:
        raise PeerUnavailable("the host name cannot be resolved") from error
    except OSError as error:
        raise PeerUnavailable(f"the TLS files cannot be used ({type(error).__name__})") from error
    if not association.is_established:
        raise _why_not(association, line, peer.tls)
    return association


def _check_acceptance(association: Association) -> None:
    """Raises PeerUnavailable for an acceptance with which nothing can be sent."""
    length = association.acceptor.maximum_length  # 0: any
    if length is None:
        raise PeerUnavailable("the association was accepted without a maximum PDU length")
    if 0 < length < SMALLEST_PDU:
        raise PeerUnavailable(f"the peer takes PDUs of {length} bytes at most; {SMALLEST_PDU} are needed")


def tls_context(peer: Peer) -> ssl.SSLContext:
    """DICOM's BCP 195 profile (PS3.15 B.12), from the files as they are now.

    Raises OSError (ssl.SSLError is one) if they cannot be read or do not fit.
    """
    files = peer.tls_authorities, peer.tls_certificate, peer.tls_key
    return client_context(*files, check_host=peer.tls_check_host, ciphers=DICOM_CIPHERS)


def _why_not(association: Association, line: Line, tls: bool) -> NodeError:
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        return PeerUnavailable(f"association rejected ({answer.result_str}): {answer.reason_str}")
    if not line.opened:
        return PeerUnavailable(f"no connection: refused, unreachable{', TLS not agreed' if tls else ''} or timed out")
    if association.rejected_contexts:
        # 3: abstract syntax not supported, 4: transfer syntaxes not supported; 1 and 2 give no reason (PS3.8 9.3.3.2).
        permanent = all(context.result in (3, 4) for context in association.rejected_contexts)
        return NoContext("none of the proposed classes and transfer syntaxes is accepted", permanent)
    if line.overran:
        return PeerUnavailable("no answer to the association request in time")
    return PeerUnavailable("the association request was aborted or not answered")
