"""HTTP as gateways speak it: one exchange at a time, each with a deadline, a bound on the answer, and no redirects.

Nothing of a request, an answer or a secret gets into a message or a log: a reason names the kind of error only. Proxies
of the environment are not used.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from config.gateways.http import HttpDestination
from config.settings import SenderSettings
from dicom_node.errors import NodeError
from dicom_node.gateways.dicomweb_tables import AWAY
from dicom_node.gateways.identities import Identity, NoSecret, identity_of
from dicom_node.gateways.verdict import AttemptOutcome, Verdict, why_no_connection
from dicom_node.scu.store import SLOWEST_BYTES_PER_S, EchoAnswer
from dicom_node.scu.tls import client_context

MAX_ANSWER_BYTES = 4 * 1024**2
CHUNK = 1 << 16
REFUSALS: Mapping[int, str] = {
    401: "it does not accept who the node says it is",
    403: "the node may not do this there",
    404: "there is no such service at this address",
    408: "it took the request for too slow",
    413: "the request is too large for it",
    415: "it does not take this kind of content",
    429: "it is asked too often",
    503: "it is not available",
}


class NoAnswer(NodeError):
    """No usable answer came. Whether the peer took the request is not known. The text is for `status`."""

    @property
    def verdict(self) -> Verdict:
        """What it means for a delivery."""
        return Verdict(AttemptOutcome.UNANSWERED, str(self))


@dataclass(frozen=True)
class Answer:
    """What a peer answered. media_type: without parameters, in lower case.  body: at most the bound of the exchange."""

    status: int
    media_type: str
    body: bytes
    headers: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """True for a status of success."""
        return 200 <= self.status < 300

    @property
    def words(self) -> str:
        """The status for a person."""
        known = REFUSALS.get(self.status) or ("it answers with a redirect" if 300 <= self.status < 400 else "")
        return f"HTTP status {self.status}" + (f": {known}" if known else "")

    @property
    def outcome(self) -> AttemptOutcome:
        """What the status alone means for a delivery."""
        if self.ok:
            return AttemptOutcome.DELIVERED
        if self.status in AWAY or 300 <= self.status < 400:
            return AttemptOutcome.UNANSWERED
        return AttemptOutcome.REFUSED if 400 <= self.status < 500 else AttemptOutcome.TRANSIENT

    @property
    def verdict(self) -> Verdict:
        """What the status alone means for a delivery, with the reason."""
        return Verdict(self.outcome, "" if self.ok else self.words)


class HttpPeer:
    """One peer that is reached by HTTP. identity: how the node says who it is; None: as the settings say."""

    def __init__(self, destination: HttpDestination, sender: SenderSettings, identity: Identity | None = None) -> None:
        self._destination = destination
        self._sender = sender
        self._identity = identity or identity_of(destination, self.exchange)

    def ask(
        self,
        method: str,
        path: str,
        content: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """Ask for what is at `path` below the destination's address, and say who asks.

        content: if not bytes, it must be the same each time that it is iterated, and `headers` must give its length.
        A token that is no longer valid is renewed once. Raises NoAnswer.
        """
        url = self._destination.url + path
        answer = self.exchange(method, url, content, {**(headers or {}), **self._who()}, max_bytes)
        if answer.status == 401 and self._identity.renew():
            answer = self.exchange(method, url, content, {**(headers or {}), **self._who()}, max_bytes)
        return answer

    def _who(self) -> Mapping[str, str]:
        """The headers that say who asks. Raises NoAnswer: without them no answer would be of use."""
        try:
            return self._identity.headers()
        except NoSecret as error:
            raise NoAnswer(str(error)) from None

    def test(self, path: str, headers: Mapping[str, str] | None = None) -> EchoAnswer:
        """Whether the peer answers a GET, for a person. What it answers is read by nobody."""
        started = time.monotonic()
        try:
            answer = self.ask("GET", path, headers=headers)
        except NodeError as error:
            return EchoAnswer(False, str(error))
        milliseconds = (time.monotonic() - started) * 1000
        return EchoAnswer(answer.ok, f"{answer.words}, in {milliseconds:.0f} ms")

    def exchange(
        self,
        method: str,
        url: str,
        content: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """One request and its answer, on a connection of its own, as these headers alone say. Raises NoAnswer."""
        patience_s = self._sender.response_timeout_s
        length = int((headers or {}).get("Content-Length", len(content) if isinstance(content, bytes) else 0))
        deadline = _Deadline(self._sender.connect_timeout_s + patience_s + length / SLOWEST_BYTES_PER_S)
        limits = httpx.Timeout(patience_s, connect=self._sender.connect_timeout_s)
        watched, trusted = {"trace": deadline.watch}, self._trusted(url)
        unpacked = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            with (
                deadline,
                httpx.Client(verify=trusted, trust_env=False, timeout=limits, follow_redirects=False) as client,
                client.stream(method, url, content=content or None, headers=unpacked, extensions=watched) as answer,
            ):
                found = _read(answer, max_bytes)
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
            raise NoAnswer(deadline.why if deadline.passed else _why(error)) from None
        if deadline.passed:  # an answer of no stated length seems whole when it is cut
            raise NoAnswer(deadline.why)
        return found

    def _trusted(self, url: str) -> ssl.SSLContext | bool:
        """The TLS settings, read anew each time: certificates are renewed while the node runs."""
        if not url.startswith("https://"):
            return False
        found = self._destination
        try:
            shown = found.tls_certificate if found.tls_key else None
            return client_context(found.tls_authorities, shown, found.tls_key)
        except OSError as error:
            raise NoAnswer(f"the TLS files cannot be used: {error.strerror or error}") from None


def _read(answer: httpx.Response, max_bytes: int) -> Answer:
    """The answer with its body. Raises NoAnswer if that is longer than allowed, or packed: it could unpack to more."""
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise NoAnswer(f"HTTP status {answer.status_code} with a packed answer, which the node did not ask for")
    body = bytearray()
    for chunk in answer.iter_raw(CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise NoAnswer(f"HTTP status {answer.status_code} with more than {max_bytes} bytes")
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return Answer(answer.status_code, media_type, bytes(body), dict(answer.headers))


def _why(error: Exception) -> str:
    """What went wrong, without what the peer sent and without an address."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed ({cause.reason or type(cause).__name__})"
    for kind, words in _WORDS:
        if isinstance(error, kind):
            why = why_no_connection(cause) if cause is not None else ""
            return f"{words}: {why}" if why else words
    return f"no answer ({type(error).__name__})"


_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (httpx.ConnectTimeout, "it does not take the connection in time"),
    (httpx.ConnectError, "it cannot be connected to"),
    (httpx.TimeoutException, "it does not answer in time"),
    (httpx.InvalidURL, "its address cannot be used"),
    (httpx.NetworkError, "the connection was cut"),
    (httpx.ProtocolError, "it ended the connection, or answered with something that is not HTTP"),
)


class _Deadline:
    """Cuts the connection of an exchange that takes too long in all, however lively it is."""

    def __init__(self, longest_s: float) -> None:
        self.passed = False
        self.why = f"it does not answer within {longest_s:.0f} s"
        self._timer = threading.Timer(longest_s, self._cut)
        self._timer.daemon = True
        self._socket: socket.socket | None = None

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Take the connection from httpx's trace of what it does."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")

    def _cut(self) -> None:
        self.passed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()
