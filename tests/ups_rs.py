"""The worklist of ups.py by UPS-RS, with the images of its steps by WADO-RS."""

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag

from tests.outbox import part10
from tests.ups import Faults, Steps

JSON = "application/dicom+json"
# PS3.18 11.5 to 11.7.
STATUSES = {
    0x0000: 200,
    0xB304: 200,
    0xB306: 200,
    0x0106: 400,
    0xC300: 409,
    0xC301: 400,
    0xC302: 409,
    0xC303: 400,
    0xC304: 409,
    0xC307: 404,
    0xC310: 409,
}


class UpsRs:
    """A server on loopback. slices: what it has. faults: as in ups.py, with HTTP statuses. asked: kinds, in order."""

    def __init__(self, folder: Path, slices: Sequence[Dataset]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.steps, self.faults, self.asked = Steps(folder / "worklist.sqlite"), Faults(), []
        self.images = {one.SOPInstanceUID: part10(one) for one in slices}
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/dicom-web"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> "UpsRs":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    site: UpsRs

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        parts, query = self._path()
        if parts[:1] == ["studies"]:
            self._image(parts[5])
        elif parts == ["workitems"]:
            found = [one.to_json_dict() for one in self.site.steps.find(_keys(query))]
            self._finish("find", 200 if found else 204, found)
        else:
            step = self.site.steps.get(parts[1])
            self._finish("read", 404 if step is None else 200, [] if step is None else [step.to_json_dict()])

    def do_PUT(self) -> None:
        parts, _ = self._path()
        said = self._body()
        kind = str(said.get("ProcedureStepState", ""))
        if not self._refused(kind):
            status = self.site.steps.change_state(parts[1], said.get("TransactionUID"), kind, "NODE")
            self._finish(kind, STATUSES[status], [])

    def do_POST(self) -> None:
        parts, query = self._path()
        changes = self._body()
        if not self._refused("set"):
            status = self.site.steps.change(parts[1], query.get("transaction-uid", [None])[0], changes)
            self._finish("set", STATUSES[status], [])

    def _path(self) -> tuple[list[str], dict[str, list[str]]]:
        split = urlsplit(self.path)
        assert split.path.startswith("/dicom-web/")
        return split.path.removeprefix("/dicom-web/").split("/"), parse_qs(split.query)

    def _body(self) -> Dataset:
        (found,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Content-Type"] != JSON:
            self.site.steps.violations.append(f"content of type {self.headers['Content-Type']}")
        return Dataset.from_json(found)

    def _refused(self, kind: str) -> bool:
        status = self.site.faults.answers.pop(kind, None)
        if status is not None:
            self._send(status, JSON, b"")
        return status is not None

    def _finish(self, kind: str, status: int, content: list[object]) -> None:
        self.site.asked.append(kind)
        status = self.site.faults.answers.pop(kind, status)
        if kind in self.site.faults.lost:
            self.site.faults.lost.discard(kind)
            self.close_connection = True
            return
        self._send(status, JSON, json.dumps(content).encode() if status == 200 else b"")

    def _image(self, uid: str) -> None:
        content = self.site.images.get(uid)
        if content is None:
            self._send(404, JSON, b"")
            return
        body = b"--limit\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--limit--\r\n"
        self._send(200, 'multipart/related; type="application/dicom"; boundary=limit', body)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _keys(query: dict[str, list[str]]) -> Dataset:
    """The matching keys of a query; a key in a sequence is SEQUENCE.KEY."""
    keys = Dataset()
    for name, (value, *_) in query.items():
        if name in ("limit", "includefield"):
            continue
        outer, _, inner = name.partition(".")
        keyword = str(keyword_for_tag(int(outer, 16)))
        if not inner:
            setattr(keys, keyword, value)
            continue
        if keyword not in keys:
            setattr(keys, keyword, [Dataset()])
        setattr(keys[keyword].value[0], str(keyword_for_tag(int(inner, 16))), value)
    return keys
