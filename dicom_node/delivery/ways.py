"""The two ways in which a delivery reaches its destination: the result's objects as they are stored, or a message."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

from sqlalchemy import Connection

from config.settings import AnyDestination, Destination, Settings
from dicom_node.delivery.attempt import STORED, judge, send_objects
from dicom_node.delivery.commitment import Clock
from dicom_node.gateways.interface import CannotCompose, Gateway, ObjectGateway
from dicom_node.gateways.kinds import OBJECTS, message_gateway, object_gateway
from dicom_node.gateways.reading import read_reported
from dicom_node.gateways.verdict import AttemptOutcome, Verdict
from dicom_node.scu.store import InstanceFile, StoreResult, read_instance, store
from storage import deliveries, overtaken
from storage.database import Database
from storage.deliveries import ClaimedDelivery
from storage.errors import CorruptFile, StaleLease
from storage.files import FileStore
from storage.messages import Message, Messages
from storage.results import StoredObject, get_result

Store = Callable[[Sequence[InstanceFile]], list[StoreResult]]


class Way(Protocol):
    """How deliveries reach one destination."""

    def attempt(self, claimed: ClaimedDelivery, clock: Clock) -> Verdict:
        """Send what is not there yet. Raises CorruptFile, StoreUnavailable, NodeError or StaleLease."""
        ...

    def set_right(self, claimed: ClaimedDelivery, now: float) -> None:
        """Another sender had the delivery while this one sent it: see to it that the destination ends with what stands.

        It is written down in the index, so that any sender does it.
        """
        ...

    def stored(self, delivery_id: int) -> dict[str, int]:
        """DIMSE status by SOP Instance UID of what is stored."""
        ...

    def forget(self, delivery_id: int) -> None:
        """The delivery has ended."""
        ...


def way_of(settings: Settings, destination: AnyDestination, database: Database, files: FileStore) -> Way:
    """How deliveries reach this destination."""
    if isinstance(destination, Destination):
        peer = destination
        return ObjectsWay(database, files, lambda instances: store(peer, settings.sender, instances))
    if destination.kind in OBJECTS:
        return ObjectsWay(database, files, _Lazily(settings, destination))
    return MessagesWay(settings, destination, database, files)


def still_held(database: Database, claimed: ClaimedDelivery, clock: Clock) -> None:
    """Look at the lease once more, right before something is sent. Raises StaleLease if it is over."""
    with database.read() as tx:
        if not deliveries.is_held(tx, claimed.delivery_id, claimed.fence, clock()):
            raise StaleLease(f"delivery {claimed.delivery_id}: its lease is over")


class _Lazily:
    """The gateway of a destination, made when it is first needed: what it lacks is then a delivery's error."""

    def __init__(self, settings: Settings, destination: AnyDestination) -> None:
        self._settings, self._destination = settings, destination

    @cached_property
    def _gateway(self) -> ObjectGateway:
        return object_gateway(self._destination, self._settings)

    def __call__(self, instances: Sequence[InstanceFile]) -> list[StoreResult]:
        return self._gateway.store(instances)


class ObjectsWay:
    """The objects of the result, of the reports the first that the destination takes."""

    def __init__(self, database: Database, files: FileStore, send: Store) -> None:
        self._database = database
        self._files = files
        self._send = send
        # How earlier attempts ended, as far as this process made them: statuses of what is stored.
        self._stored: dict[int, dict[str, int]] = {}

    def attempt(self, claimed: ClaimedDelivery, clock: Clock) -> Verdict:
        """Send the objects that no earlier attempt has stored."""

        def send(objects: Sequence[StoredObject]) -> list[StoreResult]:
            still_held(self._database, claimed, clock)
            return self._store(objects)

        stored = self._stored.setdefault(claimed.delivery_id, {})
        results = send_objects(claimed.objects, stored, send)
        stored.update({uid: result.status or 0 for uid, result in results.items() if result.outcome in STORED})
        return judge(claimed.objects, results)

    def set_right(self, claimed: ClaimedDelivery, now: float) -> None:
        """Nothing to do: whichever comes first, the later report names the former one in Predecessor Documents."""

    def stored(self, delivery_id: int) -> dict[str, int]:
        """Statuses of what attempts of this process stored."""
        return self._stored.get(delivery_id, {})

    def forget(self, delivery_id: int) -> None:
        """The delivery has ended: what it stored is in the index."""
        self._stored.pop(delivery_id, None)

    def _store(self, objects: Sequence[StoredObject]) -> list[StoreResult]:
        with self._files.at_hand(objects) as paths:
            instances = [read_instance(path) for path in paths]
            return self._send(instances)


class MessagesWay:
    """A message that is composed once and kept before it is first sent: every attempt sends the same bytes."""

    def __init__(self, settings: Settings, destination: AnyDestination, database: Database, files: FileStore) -> None:
        self._settings = settings
        self._destination = destination
        self._database = database
        self._files = files
        self._messages = Messages(settings.storage.pseudonym_key.get_secret_value())

    def attempt(self, claimed: ClaimedDelivery, clock: Clock) -> Verdict:
        """Send the message."""
        try:
            message = self._kept(claimed.delivery_id) or self._compose(claimed, clock())
        except CannotCompose as error:
            return Verdict(AttemptOutcome.REFUSED, f"no message can be made of the result: {error}")
        still_held(self._database, claimed, clock)
        if self._is_replaced(claimed.result_id):
            return Verdict(AttemptOutcome.TRANSIENT, "a later result of the series replaces it", sent=False)
        return self._gateway.send(message)

    def set_right(self, claimed: ClaimedDelivery, now: float) -> None:
        """Have what stands told once more: a receiver takes what comes last for the newest."""
        with self._database.transaction() as tx:
            overtaken.set_right(tx, claimed, now, lambda delivery_id: self._tell_anew(tx, delivery_id, now))

    def _tell_anew(self, tx: Connection, delivery_id: int, now: float) -> None:
        """Change a kept message as far as the receiver would otherwise take it for a repetition."""
        try:
            kept = self._messages.kept(tx, delivery_id, self._destination.kind)
        except CorruptFile:
            return  # the attempt to send it says so
        if kept is not None:
            self._messages.keep(tx, delivery_id, self._destination.kind, self._gateway.anew(kept), now)

    def stored(self, delivery_id: int) -> dict[str, int]:
        """A message has no objects."""
        return {}

    def forget(self, delivery_id: int) -> None:
        """The message stays, for a person who sends it again."""

    @cached_property
    def _gateway(self) -> Gateway:
        return message_gateway(self._destination, self._settings)

    def _kept(self, delivery_id: int) -> Message | None:
        with self._database.read() as tx:
            return self._messages.kept(tx, delivery_id, self._destination.kind)

    def _is_replaced(self, result_id: int) -> bool:
        """Another host may have told the later result by now: a receiver would take this one for the newest."""
        with self._database.read() as tx:
            return get_result(tx, result_id)["superseded_at"] is not None

    def _compose(self, claimed: ClaimedDelivery, now: float) -> Message:
        composed = self._gateway.compose(read_reported(self._database, self._files, claimed.result_id))
        with self._database.transaction() as tx:
            # Another sender may hold the delivery by now: only the one with the lease may decide what is sent.
            if not deliveries.heartbeat(tx, claimed.delivery_id, claimed.fence, now, self._settings.sender.lease_s):
                raise StaleLease(f"delivery {claimed.delivery_id}: its lease is somebody else's now")
            self._messages.keep(tx, claimed.delivery_id, self._destination.kind, composed, now)
        return composed
