"""A DICOMweb server on loopback that counts, lists and gives instances, or answers what a test tells it to."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from pydicom import Dataset

from tests.outbox import part10

JSON = "application/dicom+json"
MULTIPART = 'multipart/related; type="application/dicom"; boundary=limit'


@dataclass(frozen=True)
class Reply:
    """An answer. cut: the connection ends before the stated length. unstated: no length is stated."""

    status: int
    body: bytes = b""
    kind: str = JSON
    cut: bool = False
    unstated: bool = False


Answers = Callable[[str], Reply | None]
"""By the UID of what is asked for; None: as a server should."""


@dataclass
class WebSource:
    """What it holds, and what it answers to "count", "list", "series" and "instance" in place of it.

    cap: items that it lists in one answer at most. pages: it lists the others when asked for them.
    counts: it states how many instances a series has.
    """

    slices: Sequence[Dataset]
    cap: int = 1000
    pages: bool = True
    counts: bool = True
    answers: dict[str, Answers] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> "WebSource":
        handler = type("Handler", (_Handler,), {"source": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/dicom-web"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, path: str, query: dict[str, str]) -> tuple[str, Reply]:
        """The kind of a request, and the answer to it."""
        parts = path.removeprefix("/dicom-web/").split("/")
        kind = {
            3: "count" if "0020000E" in query else "series",
            5: parts[-1] if parts[-1] == "metadata" else "list",
            6: "instance",
        }[len(parts)]
        told = self.answers[kind](parts[-1]) if kind in self.answers else None
        if told is not None:
            return kind, told
        if kind == "instance":
            found = [part10(one) for one in self.slices if one.SOPInstanceUID == parts[-1]]
            return kind, multipart(*found) if found else Reply(404)
        if parts[-1] == "metadata":
            return kind, Reply(200, json.dumps(_listed(self.slices, parts[3])).encode())
        items = _listed(self.slices, parts[3]) if kind == "list" else self._series(parts[1], query)
        at, limit = int(query["offset"]), min(int(query["limit"]), self.cap)
        items = items if self.pages else items[:limit]
        page = items[at : at + limit]
        return kind, Reply(200, json.dumps(page).encode()) if page else Reply(204)

    def _series(self, study: str, query: dict[str, str]) -> list[dict[str, object]]:
        wanted = query.get("0020000E")
        found = [one for one in self.slices if one.StudyInstanceUID == study]
        uids = dict.fromkeys(one.SeriesInstanceUID for one in found)
        items = []
        for uid in uids:
            item = {"0020000E": element("UI", uid), "00080060": element("CS", "CT")}
            if self.counts:
                item["00201209"] = element("IS", sum(one.SeriesInstanceUID == uid for one in found))
            items += [item] if wanted in (None, uid) else []
        return items


class _Handler(BaseHTTPRequestHandler):
    source: WebSource

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        kind, reply = self.source.reply(split.path, dict(parse_qsl(split.query)))
        self.source.asked.append(kind)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        if not reply.unstated and reply.status != 204:
            self.send_header("Content-Length", str(len(reply.body) + (10 if reply.cut else 0)))
        self.end_headers()
        self.wfile.write(reply.body)


def _listed(slices: Sequence[Dataset], series: str) -> list[dict[str, object]]:
    return [{"00080018": element("UI", one.SOPInstanceUID)} for one in slices if one.SeriesInstanceUID == series]


def element(vr: str, *values: object) -> dict[str, object]:
    """An element of the DICOM JSON model."""
    return {"vr": vr, "Value": list(values)}


def multipart(*parts: bytes) -> Reply:
    """The answer of WADO-RS with these files."""
    body = b"".join(b"\r\n--limit\r\nContent-Type: application/dicom\r\n\r\n" + part for part in parts)
    return Reply(200, body + b"\r\n--limit--\r\n", MULTIPART)
