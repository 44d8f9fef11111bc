"""Syslog to one receiver: RFC 5424's header, RFC 5425's framing, and a connection that says whether all was read.

Neither syslog nor TLS acknowledges a message. So a batch has a connection of its own, and its end is the
acknowledgement: we end it (close_notify, then FIN) and wait for the receiver's end. A receiver ends it in order only
once it has read everything before our end (RFC 5425 4.4 asks for that); one that dies with something unread resets the
connection. Whatever is not ended in order is sent again.
"""

import contextlib
import fcntl
import ipaddress
import re
import socket
import ssl
import struct
import termios
import time
from collections.abc import Iterable

from config.gateways.audit_messages import SyslogSettings
from dicom_node.errors import NodeError
from dicom_node.gateways.audit_messages.message import LONGEST, utc
from dicom_node.scu.tls import DICOM_CIPHERS, client_context, connect

PRIORITY = 85
"""Facility 10, security and authorization; severity 5, notice."""
TICK_S = 0.005
TCP_CLOSE = 7
"""A state in Linux's tcp_states.h."""
_PRINTABLE = re.compile(r"[^!-~]")


class NotTaken(NodeError):
    """The receiver is away, or did not say that it read everything. The message holds nothing about patients."""


def framed(settings: SyslogSettings, host: str, at: float, content: bytes) -> bytes:
    """A message as it goes over the line. host: of this node. at: when it happened, Unix seconds.

    Raises ValueError if it is longer than a receiver has to take; `render` clips every part, so that none is.
    """
    name = _PRINTABLE.sub("", host)[:255] or "-"
    header = f"<{PRIORITY}>1 {utc(at)} {name} {settings.app_name} - {settings.message_id} - "
    message = header.encode() + (b"\xef\xbb\xbf" if settings.byte_order_mark else b"") + content
    if len(message) > LONGEST:
        raise ValueError(f"an audit message of {len(message)} octets")
    return b"%d %s" % (len(message), message)


def deliver(settings: SyslogSettings, messages: Iterable[bytes], timeout_s: float | None = None) -> None:
    """Send framed messages over one connection, and return once the receiver has read them all. Raises NotTaken."""
    limit_s = min(timeout_s or settings.timeout_s, settings.timeout_s)
    try:
        with contextlib.closing(_connect(settings, limit_s)) as line:
            for message in messages:
                line.sendall(message)
            _end(line, limit_s)
    except TimeoutError:
        raise NotTaken("the repository did not answer in time") from None
    except ssl.SSLCertVerificationError as error:
        raise NotTaken(f"the repository's certificate is not trusted: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise NotTaken(f"TLS: {(error.reason or 'the connection broke').lower().replace('_', ' ')}") from None
    except FileNotFoundError:
        raise NotTaken("TLS: a file that [audit.syslog] names is not there") from None
    except OSError as error:
        raise NotTaken(f"the repository is away: {error.strerror or type(error).__name__}") from None


def _connect(settings: SyslogSettings, limit_s: float) -> socket.socket:
    files = settings.tls_authorities, settings.tls_certificate, settings.tls_key
    check_host = settings.tls_check_host
    context = client_context(*files, check_host=check_host, ciphers=DICOM_CIPHERS) if settings.tls else None
    return connect(settings.host, settings.port, context, limit_s)


def _end(line: socket.socket, limit_s: float) -> None:
    """End the connection, and wait until the other side has ended it in order. Raises OSError if it does not."""
    deadline = time.monotonic() + limit_s
    bare = line
    if isinstance(line, ssl.SSLSocket):
        # Some receivers (rsyslog) end the connection without a close_notify of their own.
        with contextlib.suppress(ssl.SSLEOFError):
            bare = line.unwrap()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(bare, socket.SHUT_WR)
    bare.settimeout(limit_s)
    while not isinstance(bare, ssl.SSLSocket) and bare.recv(4096):
        if time.monotonic() > deadline:
            raise TimeoutError
    # An end that was on its way before the receiver had everything is followed by a reset: it was none.
    while _unacknowledged(bare) and not _is_over(bare):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(TICK_S)
    failed = bare.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed or _unacknowledged(bare):
        raise OSError(failed, "the connection was reset")


def _unacknowledged(line: socket.socket) -> int:
    """Octets that the other machine has not acknowledged, the end of the connection among them."""
    return int(struct.unpack("i", fcntl.ioctl(line.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])


def _is_over(line: socket.socket) -> bool:
    """Whether the connection has ended on both sides, in order or by a reset."""
    return line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE


def is_ip(address: str) -> bool:
    """Whether this is an IP address and not a name."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True
