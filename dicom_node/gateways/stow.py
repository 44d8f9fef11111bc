"""DICOMweb: the objects of results to an archive by STOW-RS (PS3.18, 10.5), the bytes of their files unchanged."""

import uuid
from collections.abc import Iterator, Sequence

from config.gateways.stow import StowDestination
from config.settings import SenderSettings
from dicom_node.errors import NodeError
from dicom_node.gateways.dicomweb_tables import JSON, OF_ONE, ONE_BY_ONE
from dicom_node.gateways.http import CHUNK, Answer, HttpPeer
from dicom_node.gateways.stow_answer import Said, read_answer
from dicom_node.gateways.verdict import AttemptOutcome
from dicom_node.scu.store import EchoAnswer, InstanceFile, StoreOutcome, StoreResult, classify
from dicom_node.statuses import CANNOT_UNDERSTAND, PROCESSING_FAILURE


class Stow:
    """One archive."""

    def __init__(self, destination: StowDestination, sender: SenderSettings) -> None:
        self._max_bytes = destination.max_request_mb * 1024**2
        self._peer = HttpPeer(destination, sender)

    def store(self, instances: Sequence[InstanceFile]) -> list[StoreResult]:
        """Send instances in their order, as many as fit in each request. One result for each; never raises."""
        results: list[StoreResult] = []
        for batch in _batches(instances, self._max_bytes):
            results += self._store(batch)
        return results

    def test(self) -> EchoAnswer:
        """Whether the archive answers a search for one study; what it finds is read by nobody."""
        return self._peer.test("/studies?limit=1", {"Accept": JSON})

    def _store(self, batch: Sequence[InstanceFile]) -> list[StoreResult]:
        try:
            answer = self._post(batch)
        except NodeError as error:
            return [_unanswered(one, str(error)) for one in batch]
        said = read_answer(answer.media_type, answer.body)
        if said is not None and (answer.ok or said.failed):
            return [_result(one, answer, said) for one in batch]
        if len(batch) > 1 and answer.status in ONE_BY_ONE:
            return [result for one in batch for result in self._store([one])]
        return [_without_list(one, answer) for one in batch]

    def _post(self, batch: Sequence[InstanceFile]) -> Answer:
        body = _Body(batch)
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={body.boundary}',
            "Content-Length": str(body.size),
            "Accept": JSON,
        }
        return self._peer.ask("POST", "/studies", body, headers)


def _batches(instances: Sequence[InstanceFile], max_bytes: int) -> Iterator[list[InstanceFile]]:
    batch: list[InstanceFile] = []
    size = 0
    for instance in instances:
        more = instance.path.stat().st_size
        if batch and size + more > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(instance)
        size += more
    if batch:
        yield batch


class _Body:
    """The parts of a request, read from their files each time that it is iterated."""

    def __init__(self, instances: Sequence[InstanceFile]) -> None:
        self._paths = [one.path for one in instances]
        self.boundary = uuid.uuid4().hex
        self._before = f"--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._after = f"--{self.boundary}--\r\n".encode()

    @property
    def size(self) -> int:
        """Bytes in all."""
        around = len(self._before) + 2
        return sum(path.stat().st_size + around for path in self._paths) + len(self._after)

    def __iter__(self) -> Iterator[bytes]:
        for path in self._paths:
            yield self._before
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
            yield b"\r\n"
        yield self._after


def _result(instance: InstanceFile, answer: Answer, said: Said) -> StoreResult:
    """What an answer with a list says of one instance."""
    uid = instance.sop_instance_uid
    if uid in said.failed:
        reason = said.failed[uid]
        return StoreResult(uid, classify(reason), reason, f"failure reason 0x{reason:04X}")
    if uid in said.stored:
        warning = said.stored[uid]
        if warning:
            return StoreResult(uid, StoreOutcome.WARNING, warning, f"warning reason 0x{warning:04X}")
        return StoreResult(uid, StoreOutcome.STORED, 0, "stored")
    detail = f"{answer.words}; its list of what is stored leaves this object out"
    return StoreResult(uid, StoreOutcome.TRANSIENT, PROCESSING_FAILURE, detail)


def _without_list(instance: InstanceFile, answer: Answer) -> StoreResult:
    """What a status without a list means for one instance."""
    uid = instance.sop_instance_uid
    if answer.ok:
        # A page of somebody else, such as a login's or a proxy's, comes with 200 too.
        detail = f"{answer.words}, and no list of what is stored"
        return StoreResult(uid, StoreOutcome.TRANSIENT, PROCESSING_FAILURE, detail)
    if answer.outcome == AttemptOutcome.UNANSWERED:
        return _unanswered(instance, answer.words)
    if answer.outcome == AttemptOutcome.TRANSIENT:
        return StoreResult(uid, StoreOutcome.TRANSIENT, PROCESSING_FAILURE, answer.words)
    return StoreResult(uid, StoreOutcome.PERMANENT, OF_ONE.get(answer.status, CANNOT_UNDERSTAND), answer.words)


def _unanswered(instance: InstanceFile, why: str) -> StoreResult:
    return StoreResult(instance.sop_instance_uid, StoreOutcome.TRANSIENT, None, why)
