"""A DICOMweb archive that answers what a test tells it to, and keeps what it took by SOP Instance UID."""

import contextlib
import io
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydicom import dcmread

DICOM_JSON = "application/dicom+json"
Reply = Callable[["Archive", "Handler", list[bytes]], None]
"""Answers one POST. The list: the parts of the request."""


@dataclass
class Archive:
    """What it holds, and what it does next: the replies in turn, then `stores` for ever.

    told: messages that are no objects, by their key.
    """

    replies: list[Reply] = field(default_factory=list)
    held: dict[str, list[bytes]] = field(default_factory=dict)
    requests: list[dict[str, str]] = field(default_factory=list)
    told: dict[str, list[bytes]] = field(default_factory=dict)
    tokens_given: int = 0
    url: str = ""

    def keep(self, part: bytes) -> str:
        """Keep one instance. Returns its UID."""
        uid = uid_of(part)
        self.held.setdefault(uid, []).append(part)
        return uid


def uid_of(part: bytes) -> str:
    """SOP Instance UID of a file."""
    return str(dcmread(io.BytesIO(part), stop_before_pixels=True).SOPInstanceUID)


def class_of(part: bytes) -> str:
    """SOP Class UID of a file."""
    return str(dcmread(io.BytesIO(part), stop_before_pixels=True).SOPClassUID)


def listed(stored: dict[str, int | None], failed: dict[str, int | None]) -> dict[str, Any]:
    """A Store Instances Response in DICOM's JSON model: warnings and failure reasons by UID."""

    def items(reasons: dict[str, int | None], tag: str) -> dict[str, Any]:
        found = []
        for uid, reason in reasons.items():
            item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
            if reason is not None:
                item[tag] = {"vr": "US", "Value": [reason]}
            found.append(item)
        return {"vr": "SQ", "Value": found}

    answer = {"00081199": items(stored, "00081196")} if stored else {}
    return answer | ({"00081198": items(failed, "00081197")} if failed else {})


def as_xml(answer: dict[str, Any]) -> bytes:
    """The same in the native DICOM model."""

    def attributes(found: dict[str, Any]) -> str:
        return "".join(
            f'<DicomAttribute tag="{tag}" vr="{one["vr"]}">{values(one)}</DicomAttribute>' for tag, one in found.items()
        )

    def values(one: dict[str, Any]) -> str:
        if one["vr"] == "SQ":
            numbered = enumerate(one["Value"], 1)
            return "".join(f'<Item number="{n}">{attributes(item)}</Item>' for n, item in numbered)
        return "".join(f'<Value number="{n}">{value}</Value>' for n, value in enumerate(one["Value"], 1))

    head = '<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xml:space="preserve">'
    return f"{head}{attributes(answer)}</NativeDicomModel>".encode()


def stores(status: int = 200, *, xml: bool = False, warning: int | None = None) -> Reply:
    """Keeps everything and says so."""
    return fails({}, status, xml=xml, warning=warning)


def fails(reasons: dict[str, int | None], status: int = 202, *, xml: bool = False, warning: int | None = None) -> Reply:
    """Keeps what is of no class in `reasons`, whose instances fail with the reason there."""

    def reply(archive: Archive, handler: "Handler", parts: list[bytes]) -> None:
        failed = {uid_of(part): reasons[class_of(part)] for part in parts if class_of(part) in reasons}
        kept = [archive.keep(part) for part in parts if class_of(part) not in reasons]
        answer = listed(dict.fromkeys(kept, warning), failed)
        body = as_xml(answer) if xml else json.dumps(answer).encode()
        handler.answer(status, body, "application/dicom+xml" if xml else DICOM_JSON)

    return reply


def says(status: int, body: bytes = b"", media_type: str = "text/html", **headers: str) -> Reply:
    """Keeps nothing."""
    return lambda archive, handler, parts: handler.answer(status, body, media_type, **headers)


def keeps_and(then: Reply) -> Reply:
    """Keeps everything and does something else than to say so."""

    def reply(archive: Archive, handler: "Handler", parts: list[bytes]) -> None:
        for part in parts:
            archive.keep(part)
        then(archive, handler, parts)

    return reply


def cuts(archive: Archive, handler: "Handler", parts: list[bytes]) -> None:
    """Closes the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def hangs(archive: Archive, handler: "Handler", parts: list[bytes]) -> None:
    """Says nothing until the peer is gone."""
    with contextlib.suppress(OSError):
        handler.connection.recv(1)
    handler.close_connection = True


def drips(archive: Archive, handler: "Handler", parts: list[bytes]) -> None:
    """Sends an endless answer, a byte at a time."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n\r\n")
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.05)


class Handler(BaseHTTPRequestHandler):
    """One connection to the archive."""

    protocol_version = "HTTP/1.1"
    archive: Archive

    def do_GET(self) -> None:
        """A search."""
        self.answer(200, b"[]", DICOM_JSON)

    def do_POST(self) -> None:
        """Objects, a message, or a request for a token."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.archive.requests.append({"path": self.path, **dict(self.headers.items())})
        if self.path == "/token":
            self.archive.requests[-1]["form"] = body.decode()
            self.archive.tokens_given += 1
            token = {"access_token": f"token-{self.archive.tokens_given}", "expires_in": 3600}
            self.answer(200, json.dumps(token).encode(), "application/json")
            return
        if self.path == "/told":
            self.archive.told.setdefault(self.headers["Key"], []).append(body)
            self.answer(200, b"", "text/plain")
            return
        reply = self.archive.replies.pop(0) if self.archive.replies else stores()
        reply(self.archive, self, self._parts(body))

    def _parts(self, body: bytes) -> list[bytes]:
        message = Message()
        message["Content-Type"] = self.headers["Content-Type"]
        assert message.get_content_type() == "multipart/related"
        assert message.get_param("type") == "application/dicom"
        boundary = str(message.get_param("boundary")).encode()
        assert body.endswith(b"--" + boundary + b"--\r\n")
        parts = body.split(b"--" + boundary)[1:-1]
        heads_and_contents = [part.removeprefix(b"\r\n").removesuffix(b"\r\n").split(b"\r\n\r\n", 1) for part in parts]
        assert all(head == b"Content-Type: application/dicom" for head, _ in heads_and_contents)
        return [content for _, content in heads_and_contents]

    def answer(self, status: int, body: bytes, media_type: str, **headers: str) -> None:
        """Send an answer."""
        with contextlib.suppress(OSError):  # who asked may be gone
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests' output is for the tests."""


class Server(ThreadingHTTPServer):
    """Whose connections may be cut by the peer."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that is gone is no error of the archive."""


@contextlib.contextmanager
def archive(*replies: Reply, context: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Archive]:
    """An archive on loopback. context: for TLS."""
    made = Archive(list(replies))
    server = Server(("127.0.0.1", port), type("Bound", (Handler,), {"archive": made}))
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    made.url = f"{'https' if context else 'http'}://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
