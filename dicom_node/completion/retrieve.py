"""Fetch instances from a PACS (C-GET, or C-MOVE to ourselves), recorded as durably as those that it sends us."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, build_role, evt
from pynetdicom.presentation import PresentationContext
from sqlalchemy import Connection

from config.settings import SenderSettings
from dicom_node.receiver.errors import Refused, Unreadable, answer_for
from dicom_node.receiver.headers import read_header, read_identity
from dicom_node.receiver.negotiation import IMAGE_CLASSES, TRANSFER_SYNTAXES
from dicom_node.receiver.part10 import encode_file_start
from dicom_node.receiver.uids import accepted_uid, parse_uid
from dicom_node.scu.association import Link, Peer, PeerUnavailable, associate
from dicom_node.scu.contexts import GET, MOVE
from dicom_node.scu.query import SeriesKey
from dicom_node.statuses import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS
from storage import recording, refused, series
from storage.arrival import Arrival, Outcome
from storage.database import Database
from storage.errors import DatabaseUnavailable, StorageError
from storage.files import FileStore
from storage.pseudonyms import Pseudonyms
from storage.refused import RefusedInstance

log = structlog.get_logger()

IMPLICIT_VR = str(ImplicitVRLittleEndian)
EXPLICIT_VR = str(ExplicitVRLittleEndian)
UIDS_AT_ONCE = 50
"""In one request: some PACS limit the length of a list of UIDs."""
SLOWEST_S_PER_INSTANCE = 2.0
NOT_ASKED_FOR = CANNOT_UNDERSTAND


@dataclass(frozen=True)
class Wanted:
    """Instances of one series.

    missing: SOP Instance UIDs. syntaxes: transfer syntaxes of the series' instances that are here already.
    """

    series: SeriesKey
    missing: set[str]
    syntaxes: frozenset[str]


@dataclass(frozen=True)
class Retrieval(Wanted):
    """What to fetch of a series. series_pk: None if the index may not have it yet.

    quiet_s: of the series, so that a fetched instance waits as long as a sent one.
    node_ae: our own AE title, as which C-MOVE names us.
    pseudonyms: what the index calls patients.
    """

    series_pk: int | None
    quiet_s: float
    node_ae: str
    pseudonyms: Pseudonyms


def fetch(
    peer: Peer,
    caller: SenderSettings,
    wanted: Retrieval,
    database: Database,
    files: FileStore,
    clock: Callable[[], float],
    *,
    move: bool = False,
) -> int:
    """Fetch instances; with `move` the node's receiver takes them. Returns how many of them are here now.

    Raises PeerUnavailable, or NoContext if the peer does not support it.
    """
    if not wanted.missing:
        return 0
    keeper = Keeper(peer, caller, wanted, database, files, clock)
    retrieve(peer, caller, wanted, keeper.on_store, keeper.count_here, move_to=wanted.node_ae if move else None)
    return keeper.count_here()


def retrieve(
    peer: Peer,
    caller: SenderSettings,
    wanted: Wanted,
    on_store: Callable[[evt.Event], int],
    count_here: Callable[[], int],
    *,
    move_to: str | None = None,
) -> None:
    """Ask a PACS for instances, by each information model that it offers until all are here.

    on_store: takes an instance and returns the DIMSE status. count_here: how many of the wanted ones are here.
    move_to: AE title of a C-MOVE's destination; None for C-GET.
    Raises PeerUnavailable, or NoContext if the peer does not support it.
    """
    service = GET if move_to is None else MOVE
    contexts = service.contexts()
    if move_to is None:
        contexts += storage_contexts(wanted.syntaxes)
    roles = [build_role(uid, scp_role=True) for uid in sorted(IMAGE_CLASSES)] if move_to is None else []
    handlers: list[evt.EventHandlerType] = [(evt.EVT_C_STORE, on_store)]
    with associate(peer, caller, contexts, roles=roles, handlers=handlers) as link:
        for model in (m for m in service.classes if link.accepted(m)):
            for some in _batches(sorted(wanted.missing)):
                _retrieve(link, model, _identifier(model, wanted, some), len(some), move_to)
            if count_here() == len(wanted.missing):
                break


def _retrieve(link: Link, model: str, identifier: Dataset, count: int, move_to: str | None) -> None:
    """One C-GET or C-MOVE. What became of each instance is seen in the index, not in the sub-operation counts."""
    association = link.association
    started = time.monotonic()
    statuses: list[Dataset] = []
    with link.exchange(link.response_s + SLOWEST_S_PER_INSTANCE * count):
        if move_to is None:
            responses = association.send_c_get(identifier, model)
        else:
            responses = association.send_c_move(identifier, move_to, model)
        statuses += [status for status, _ in responses]
    if not statuses or "Status" not in statuses[-1]:
        raise PeerUnavailable(f"retrieval: {link.why_lost(started)}")
    if statuses[-1].Status != SUCCESS:
        log.info("retrieval not complete", status=f"0x{statuses[-1].Status:04X}")


class Keeper:
    """Takes fetched instances: a file that is durable and a row that is committed before success is answered."""

    def __init__(
        self,
        peer: Peer,
        caller: SenderSettings,
        wanted: Retrieval,
        database: Database,
        files: FileStore,
        clock: Callable[[], float],
    ) -> None:
        self._peer = peer
        self._caller = caller
        self._wanted = wanted
        self._database = database
        self._files = files
        self._clock = clock

    def on_store(self, event: evt.Event) -> int:
        """EVT_C_STORE: keep one instance. Returns the DIMSE status."""
        data = event.request.DataSet.getvalue()  # type: ignore[union-attr]
        return self.keep(data, str(event.context.abstract_syntax), str(event.context.transfer_syntax))

    def keep(self, data: bytes, sop_class: str, syntax: str) -> int:
        """Keep one instance. data: its encoded data set. Returns the DIMSE status of what became of it."""
        try:
            return self._keep(data, sop_class, syntax)
        except Refused as error:
            self._remember(data, syntax, error)
            return error.status
        except (StorageError, OSError) as error:
            log.warning("fetched instance not kept", error=type(error).__name__)
            return OUT_OF_RESOURCES

    def _keep(self, data: bytes, sop_class: str, syntax: str) -> int:
        header = read_header(data, len(data), syntax == IMPLICIT_VR)
        uid = parse_uid(header.sop_instance_uid, "SOP Instance UID")
        series_uid = parse_uid(header.series_instance_uid, "Series Instance UID")
        if uid not in self._wanted.missing or series_uid != self._wanted.series.series_instance_uid:
            return NOT_ASKED_FOR
        if parse_uid(header.sop_class_uid, "SOP Class UID") != sop_class:
            raise Unreadable("SOP Class UID differs from the presentation context")
        study_uid = parse_uid(header.study_instance_uid, "Study Instance UID")
        file = self._files.write_durably([encode_file_start(sop_class, uid, syntax), data])
        arrival = Arrival(
            uid, sop_class, series_uid, study_uid, syntax,
            self._peer.ae_title, self._caller.calling_ae_title, self._peer.host, file,
            self._wanted.pseudonyms.header(header.indexed),
        )  # fmt: skip
        self._record(arrival)
        return SUCCESS

    def _remember(self, data: bytes, syntax: str, error: Refused) -> None:
        """Write a refusal down, as the receiver does."""
        header = read_identity(data, syntax == IMPLICIT_VR)
        refused_instance = RefusedInstance(
            sop_instance_uid=accepted_uid(header.sop_instance_uid),
            series_instance_uid=self._wanted.series.series_instance_uid,
            study_instance_uid=self._wanted.series.study_instance_uid,
            patient_id=self._wanted.pseudonyms.of(self._wanted.series.patient_id),
            status=f"{error.status:04X}",
            reason=answer_for(error)[1],
            calling_ae=self._peer.ae_title,
            address=self._peer.host,
        )
        try:
            with self._database.transaction() as tx:
                refused.record(tx, refused_instance, self._clock())
        except StorageError as failure:
            log.warning("refusal not remembered", error=type(failure).__name__)

    def _record(self, arrival: Arrival) -> None:
        outcome = Outcome.DUPLICATE
        try:
            with self._database.transaction() as tx:
                # It may have been sent to us in the meantime, perhaps in another transfer syntax: that is no conflict.
                if arrival.sop_instance_uid not in self._held(tx):
                    outcome = recording.record_instance(tx, arrival, self._clock(), self._wanted.quiet_s)
        except DatabaseUnavailable:
            raise  # the row may be there: a file that none names is swept
        except Exception:
            self._files.remove(arrival.file.path)
            raise
        if outcome == Outcome.DUPLICATE:
            self._files.remove(arrival.file.path)

    def count_here(self) -> int:
        """How many of the wanted instances the node holds now, however they came."""
        with self._database.read() as tx:
            return len(self._wanted.missing & self._held(tx).keys())

    def _held(self, tx: Connection) -> dict[str, str]:
        number = self._wanted.series_pk or series.number_of(tx, self._wanted.series.series_instance_uid)
        return {} if number is None else held_instances(tx, number)


def held_instances(tx: Connection, series_pk: int) -> dict[str, str]:
    """Transfer syntax by SOP Instance UID of the instances of a series whose files are here."""
    return {i.sop_instance_uid: i.transfer_syntax_uid for i in series.series_instances(tx, series_pk) if i.gone is None}


def storage_contexts(likely: frozenset[str] = frozenset()) -> list[PresentationContext]:
    """What a PACS may send on a C-GET. likely: transfer syntaxes that it probably has."""

    # One transfer syntax each, so that the PACS can send every instance in the one that it has. DCMTK's archive
    # takes the first context of the class, whatever it holds. So the syntax of the slices that came is put first.
    def rank(syntax: str) -> tuple[bool, bool, str]:
        return syntax not in likely, syntax != EXPLICIT_VR, syntax

    return [build_context(uid, s) for uid in sorted(IMAGE_CLASSES) for s in sorted(TRANSFER_SYNTAXES, key=rank)]


def _batches(uids: Sequence[str]) -> Iterator[Sequence[str]]:
    yield from (uids[start : start + UIDS_AT_ONCE] for start in range(0, len(uids), UIDS_AT_ONCE))


def _identifier(model: str, wanted: Wanted, uids: Sequence[str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    if model in (GET.classes[1], MOVE.classes[1]):
        identifier.PatientID = wanted.series.patient_id
    identifier.StudyInstanceUID = wanted.series.study_instance_uid
    identifier.SeriesInstanceUID = wanted.series.series_instance_uid
    identifier.SOPInstanceUID = list(uids)
    return identifier
