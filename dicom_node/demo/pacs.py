"""A small PACS for the demonstration and for tests: keeps what it receives in a folder, counts it and gives it back.

Not for production: its index is in memory, and it keeps nothing safe.
"""

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

QUERY_MODELS = (
    StudyRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelGet,
)
INDEXED = (
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "Modality",
    "StudyDate",
)

BELOW = {
    "SERIES": ("SOPInstanceUID", "SOPClassUID"),
    "STUDY": ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "Modality"),
}


@dataclass(frozen=True)
class Held:
    """One instance that the PACS holds. keys: the indexed attributes by keyword."""

    path: Path
    keys: dict[str, str]


class Pacs:
    """A Storage, Verification, C-FIND and C-GET SCP on loopback.

    folder: where received files lie, under generated names, byte for byte as they came.
    port: 0 for a free one; `port` says which.
    answer: given the received SOP Instance UID, the status to answer; an instance is kept only with 0x0000 or Bxxx.
    counts: False for a PACS that leaves NumberOfSeriesRelatedInstances out of its answers.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        ae_title: str = "DEMO_PACS",
        answer: Callable[[str], int] | None = None,
        counts: bool = True,
    ) -> None:
        self.folder = folder
        self.port = port
        self.ae_title = ae_title
        self.counts = counts
        self._answer = answer or (lambda _uid: 0x0000)
        self._held: dict[str, Held] = {}
        self._received: list[Path] = []
        self._lock = threading.Lock()
        self._server: ThreadedAssociationServer | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        entity = AE(ae_title=self.ae_title)
        entity.maximum_pdu_size = 131072
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            # As SCP of C-GET the roles are the other way round: we send, the requestor stores.
            entity.add_supported_context(
                str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES, scu_role=True, scp_role=True
            )
        for model in QUERY_MODELS:
            entity.add_supported_context(model)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_C_GET, self._on_get),
        ]
        server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        assert server is not None  # noqa: S101  only a blocking start gives none
        self._server, self.port = server, int(server.server_address[1])

    def stop(self) -> None:
        """Stop listening; running associations are aborted."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> "Pacs":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def received(self) -> list[Path]:
        """The files received so far, in their order; a resent instance is there again."""
        with self._lock:
            return list(self._received)

    def delete(self, sop_instance_uid: str) -> None:
        """Forget an instance, as a PACS does when somebody deletes it."""
        with self._lock:
            del self._held[sop_instance_uid]

    def load(self, folder: Path) -> int:
        """Hold a folder's files as if they had been received earlier. Returns how many."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in paths:
            self._hold(path)
        return len(paths)

    def _hold(self, path: Path) -> None:
        header = dcmread(path, stop_before_pixels=True, specific_tags=list(INDEXED))
        keys = {keyword: str(header.get(keyword, "")) for keyword in INDEXED}
        with self._lock:
            self._held[keys["SOPInstanceUID"]] = Held(path, keys)

    def _on_store(self, event: evt.Event) -> int:
        status = self._answer(str(getattr(event.request, "AffectedSOPInstanceUID", "")))
        if status == 0 or status & 0xF000 == 0xB000:
            # Written under another name first, so that whoever reads the folder sees whole files only.
            new = self.folder / f"{uuid.uuid4().hex}.new"
            new.write_bytes(event.encoded_dataset())
            path = new.replace(new.with_suffix(".dcm"))
            self._hold(path)
            with self._lock:
                self._received.append(path)
        return status

    def _matches(self, identifier: Dataset) -> list[Held]:
        wanted = {k: _values(identifier, k) for k in INDEXED if identifier.get(k) and k != "StudyDate"}
        first, _, last = str(identifier.get("StudyDate") or "").partition("-")
        with self._lock:
            held = list(self._held.values())
        held = [h for h in held if first <= h.keys["StudyDate"] <= (last or first or "9")]
        return [h for h in held if all(h.keys[keyword] in values for keyword, values in wanted.items())]

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        identifier = event.identifier
        level = identifier.get("QueryRetrieveLevel", "")
        matches = self._matches(identifier)
        if level == "IMAGE":
            for held in matches:
                yield 0xFF00, _response(level, held)
        elif level == "STUDY":
            for held in {held.keys["StudyInstanceUID"]: held for held in matches}.values():
                yield 0xFF00, _response(level, held)
        elif level == "SERIES":
            series = {held.keys["SeriesInstanceUID"]: held for held in matches}
            for uid, held in series.items():
                answer = _response(level, held)
                if self.counts:
                    answer.NumberOfSeriesRelatedInstances = sum(h.keys["SeriesInstanceUID"] == uid for h in matches)
                yield 0xFF00, answer
        else:
            yield 0xA900, None

    def _on_get(self, event: evt.Event) -> Iterator[object]:
        matches = self._matches(event.identifier)
        yield len(matches)
        for held in matches:
            yield 0xFF00, dcmread(held.path)


def _values(identifier: Dataset, keyword: str) -> set[str]:
    value = identifier[keyword].value
    return {str(value)} if isinstance(value, str) else {str(item) for item in value}


def _response(level: str, held: Held) -> Dataset:
    answer = Dataset()
    answer.QueryRetrieveLevel = level
    for keyword, value in held.keys.items():
        if level == "IMAGE" or keyword not in BELOW[level]:
            setattr(answer, keyword, value)
    return answer
