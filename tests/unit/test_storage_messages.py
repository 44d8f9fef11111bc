"""What deliveries say to other systems: kept as it was composed, and for nobody to read with a pseudonym key."""

import pytest
from sqlalchemy import select, update

from storage import results
from storage.errors import CorruptFile
from storage.messages import Message, Messages
from storage.models import messages
from tests.storage_factory import QUIET_S, Store

KEY = "0123456789abcdef"
SAID = Message(b"Doe^Jane \x00\xff", "application/hl7-v2", "MSG-1")


@pytest.fixture
def store(tmp_path):
    """An index with two results that wait for a destination."""
    with Store(tmp_path) as made:
        for number in (1, 2):
            now = 100.0 * number
            made.receive(1, now=now, series_uid=f"1.2.3.{number}", study_uid=f"1.2.{number}")
            made.close_due(now + QUIET_S)
            made.finish(made.claim(now + QUIET_S), now + 40, "ris")
        yield made


def keep(store, kept, message=SAID, delivery_id=1, kind="hl7"):
    with store.database.transaction() as tx:
        kept.keep(tx, delivery_id, kind, message, 500.0)


def read(store, kept, delivery_id=1, kind="hl7"):
    with store.database.read() as tx:
        return kept.kept(tx, delivery_id, kind)


@pytest.mark.parametrize("key", ["", KEY])
def test_a_message_comes_back_as_it_was_kept(store, key):
    assert read(store, Messages(key)) is None
    keep(store, Messages(key))
    assert read(store, Messages(key)) == SAID
    assert read(store, Messages(key), delivery_id=2) is None


def test_a_message_for_another_kind_of_destination_is_replaced(store):
    keep(store, Messages(""))
    assert read(store, Messages(""), kind="fhir") is None
    other = Message(b"{}", "application/fhir+json", "k")
    keep(store, Messages(""), other, kind="fhir")
    assert read(store, Messages(""), kind="fhir") == other


def test_with_a_key_the_index_holds_nothing_readable_and_no_two_are_alike(store):
    keep(store, Messages(KEY))
    keep(store, Messages(KEY), delivery_id=2)
    with store.database.read() as tx:
        one, two = tx.scalars(select(messages.c.content).order_by(messages.c.delivery_id)).all()
    assert b"Doe" not in one and one != two


@pytest.mark.parametrize(
    "column", [{"content": b"another"}, {"nonce": bytes(12)}, {"sha256": "0" * 64}, {"delivery_id": 2}]
)
def test_an_altered_message_is_an_error(store, column):
    keep(store, Messages(KEY))
    with store.database.transaction() as tx:
        tx.execute(update(messages).values(**column))
    with pytest.raises(CorruptFile):
        read(store, Messages(KEY), delivery_id=column.get("delivery_id", 1))


@pytest.mark.parametrize("key", ["", "another key of 16"])
def test_without_the_right_key_a_message_is_an_error(store, key):
    keep(store, Messages(KEY))
    with pytest.raises(CorruptFile):
        read(store, Messages(key))


def test_an_object_is_found_by_its_uid(store):
    rows = store.rows("SELECT result_id, sop_instance_uid FROM result_objects ORDER BY id")
    with store.database.read() as tx:
        for row in rows:
            found = results.object_by_uid(tx, row["sop_instance_uid"])
            assert found is not None
            assert (found[0], found[1].sop_instance_uid) == (row["result_id"], row["sop_instance_uid"])
        assert rows and results.object_by_uid(tx, "1.2.3") is None
