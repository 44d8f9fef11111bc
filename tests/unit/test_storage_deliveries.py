"""The outbox: one delivery per result and destination, leases, retries, storage commitment."""

import pytest

from storage import commitments, deliveries, results
from storage.deliveries import DeliveryState
from storage.errors import IllegalMove, NotFound, StaleLease
from storage.status import status
from tests.storage_factory import QUIET_S, Store

LEASE_S = 60.0


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


@pytest.fixture
def outbox(store):
    """One report, due at 30 to the PACS and to an archive."""
    store.reported("PACS", "ARCHIVE")
    return store


def do(store, function, *arguments, **named):
    with store.database.transaction() as tx:
        return function(tx, *arguments, **named)


def due(store, now, destination="PACS"):
    return do(store, deliveries.claim, destination, now, LEASE_S)


def states(store):
    return {row["destination"]: row["state"] for row in store.rows("SELECT destination, state FROM deliveries")}


def test_what_is_due_comes_with_its_objects(outbox):
    [claimed] = due(outbox, 30)
    assert (claimed.destination, claimed.attempt, claimed.fence, claimed.series_instance_uid) == ("PACS", 1, 1, "1.2.3")
    [report] = claimed.objects
    assert outbox.files.read_verified(report.path, report.sha256)
    assert states(outbox) == {"PACS": "SENDING", "ARCHIVE": "PENDING"}
    assert due(outbox, 31) == []


def test_a_destination_never_gets_what_is_for_another(outbox):
    assert due(outbox, 30, "ELSEWHERE") == []
    do(outbox, deliveries.retry_later, due(outbox, 30)[0].delivery_id, 1, 31, 5000, "refused")
    assert len(due(outbox, 32, "ARCHIVE")) == 1


def test_sent_is_the_end_where_no_commitment_is_wanted(outbox):
    [claimed] = due(outbox, 30)
    uid = claimed.objects[0].sop_instance_uid
    do(outbox, deliveries.mark_sent, claimed.delivery_id, claimed.fence, 31, {uid: 0xB000}, "coercion of data elements")
    [row] = outbox.rows("SELECT * FROM deliveries WHERE destination = 'PACS'")
    assert (row["state"], row["sent_at"], row["warning"]) == ("SENT", 31.0, "coercion of data elements")
    assert do(outbox, commitments.due, "PACS", 1e9) == []
    assert due(outbox, 1e9) == []
    [audited] = outbox.rows("SELECT detail FROM audit WHERE event = 'delivery.sent'")
    assert "0xB000" in audited["detail"]


def test_a_failed_attempt_waits_and_sends_the_same_bytes(outbox):
    [first] = due(outbox, 30)
    assert (
        do(outbox, deliveries.retry_later, first.delivery_id, first.fence, 31, 100, "connection refused")
        == DeliveryState.PENDING
    )
    assert due(outbox, 99) == []
    [second] = due(outbox, 100)
    assert (second.attempt, second.fence, second.objects) == (2, 2, first.objects)


def test_a_sender_that_died_gives_back_when_its_lease_is_over(outbox):
    [dead] = due(outbox, 30)
    assert due(outbox, 30 + LEASE_S - 0.1) == []
    [alive] = due(outbox, 30 + LEASE_S)
    for late in (
        lambda: do(outbox, deliveries.mark_sent, dead.delivery_id, dead.fence, 95),
        lambda: do(outbox, deliveries.retry_later, dead.delivery_id, dead.fence, 95, 100, "x"),
        lambda: do(outbox, deliveries.fail, dead.delivery_id, dead.fence, 95, "x"),
    ):
        with pytest.raises(StaleLease):
            late()
    do(outbox, deliveries.mark_sent, alive.delivery_id, alive.fence, 96)
    assert states(outbox)["PACS"] == "SENT"


def test_a_result_waits_for_the_end_of_the_attempt_to_send_the_one_that_it_replaces(outbox):
    [former] = due(outbox, 30)
    outbox.receive(3, now=31)
    outbox.close_due(31 + QUIET_S)
    outbox.finish(outbox.claim(31 + QUIET_S), 31 + QUIET_S, "PACS", "ARCHIVE")
    assert due(outbox, 30 + LEASE_S - 0.1) == [], "what is being sent may still arrive"
    assert len(due(outbox, 30 + LEASE_S - 0.1, "ARCHIVE")) == 1, "there nothing is under way"
    assert do(outbox, deliveries.is_held, former.delivery_id, former.fence, 30 + LEASE_S - 0.1)
    [later] = due(outbox, 30 + LEASE_S)
    assert later.result_id > former.result_id
    assert not do(outbox, deliveries.is_held, former.delivery_id, former.fence, 30 + LEASE_S)


def test_a_heartbeat_lengthens_the_lease_of_a_slow_sending(outbox):
    [slow] = due(outbox, 30)
    assert do(outbox, deliveries.heartbeat, slow.delivery_id, slow.fence, 80, LEASE_S)
    assert due(outbox, 100) == []
    do(outbox, deliveries.mark_sent, slow.delivery_id, slow.fence, 120)
    assert not do(outbox, deliveries.heartbeat, slow.delivery_id, slow.fence, 121, LEASE_S)


def test_what_is_refused_for_good_stops_until_an_operator_retries_it(outbox):
    [claimed] = due(outbox, 30)
    do(outbox, deliveries.fail, claimed.delivery_id, claimed.fence, 31, "0xA900 data set does not match")
    assert due(outbox, 1e9) == []
    do(outbox, deliveries.retry, claimed.delivery_id, 200)
    assert due(outbox, 200)[0].attempt == 1
    with pytest.raises(IllegalMove):
        do(outbox, deliveries.retry, claimed.delivery_id, 201)
    with pytest.raises(NotFound):
        do(outbox, deliveries.retry, 999, 201)


def test_a_delivery_that_waits_can_be_hurried(outbox):
    [claimed] = due(outbox, 30)
    do(outbox, deliveries.retry_later, claimed.delivery_id, 1, 31, 5000, "connection refused", refused=True)
    do(outbox, deliveries.hurry, claimed.delivery_id, 40)
    [again] = due(outbox, 40)
    assert (again.attempt, again.refusals) == (1, 0), "its waits begin anew too"
    assert outbox.events().count("delivery.hurried") == 1
    with pytest.raises(IllegalMove, match="SENDING"):
        do(outbox, deliveries.hurry, claimed.delivery_id, 41)
    with pytest.raises(NotFound):
        do(outbox, deliveries.hurry, 999, 41)


@pytest.mark.parametrize("ended", ["SENT", "COMMITTED", "FAILED"])
def test_a_result_is_sent_again_with_the_same_bytes_whatever_became_of_it(outbox, ended):
    [first] = due(outbox, 30)
    if ended == "FAILED":
        do(outbox, deliveries.fail, first.delivery_id, first.fence, 31, "0xA900")
    else:
        do(outbox, deliveries.mark_sent, first.delivery_id, first.fence, 31)
    if ended == "COMMITTED":
        do(outbox, commitments.mark_committed, first.delivery_id, 32)
    assert do(outbox, deliveries.resend, first.result_id, ["PACS"], 40) == [first.delivery_id]
    [again] = due(outbox, 40)
    assert (again.attempt, again.refusals, again.fence, again.objects) == (1, 0, 2, first.objects)
    [row] = outbox.rows("SELECT detail FROM audit WHERE event = 'delivery.pending' AND at = 40")
    assert ended in row["detail"]
    assert "sent again by an operator" in row["detail"]
    do(outbox, deliveries.mark_sent, again.delivery_id, again.fence, 41)
    assert states(outbox)["PACS"] == "SENT"


def test_a_result_is_sent_to_a_destination_that_had_it_not(outbox):
    [first] = due(outbox, 30)
    new, old = do(outbox, deliveries.resend, first.result_id, ["ARCHIVE", "LATER", "LATER"], 40)[::-1]
    assert states(outbox) == {"PACS": "SENDING", "ARCHIVE": "PENDING", "LATER": "PENDING"}
    assert new != old
    assert due(outbox, 40, "LATER")[0].objects == first.objects


def test_what_is_being_sent_is_not_sent_twice_by_a_resend(outbox):
    [first] = due(outbox, 30)
    do(outbox, deliveries.resend, first.result_id, ["PACS"], 31)
    assert states(outbox)["PACS"] == "SENDING"
    do(outbox, deliveries.mark_sent, first.delivery_id, first.fence, 32)


def test_a_result_that_a_late_slice_made_outdated_is_not_sent_again(outbox):
    [first] = due(outbox, 30)
    do(outbox, deliveries.mark_sent, first.delivery_id, first.fence, 31)
    outbox.receive(3, now=40)
    with pytest.raises(IllegalMove, match="replaced by a later one"):
        do(outbox, deliveries.resend, first.result_id, ["PACS"], 41)
    with pytest.raises(NotFound):
        do(outbox, deliveries.resend, 999, ["PACS"], 41)


def test_a_report_that_is_being_sent_again_stays_the_predecessor_of_the_next(outbox):
    """It may be at the destination: a late slice takes it out of the outbox, and the next report must name it."""
    [first] = due(outbox, 30)
    do(outbox, deliveries.mark_sent, first.delivery_id, first.fence, 31)
    do(outbox, deliveries.resend, first.result_id, ["PACS"], 35)
    outbox.receive(3, now=40)
    assert states(outbox) == {"PACS": "SUPERSEDED", "ARCHIVE": "SUPERSEDED"}
    [job] = outbox.rows("SELECT series_pk FROM jobs WHERE state = 'REPORTED' OR state = 'SUPERSEDED'")
    with outbox.database.read() as tx:
        previous = results.previous_result(tx, job["series_pk"])
    assert previous is not None
    assert previous.result_id == first.result_id


def test_at_start_the_senders_leases_are_given_back(outbox):
    due(outbox, 30)
    due(outbox, 30, "ARCHIVE")
    assert do(outbox, deliveries.release_all, 31) == 2
    assert set(states(outbox).values()) == {"PENDING"}


def test_a_late_slice_lets_a_sending_end_but_not_begin_again(outbox):
    [sending] = due(outbox, 30)
    outbox.receive(3, now=40)
    assert states(outbox) == {"PACS": "SENDING", "ARCHIVE": "SUPERSEDED"}
    later = do(outbox, deliveries.retry_later, sending.delivery_id, sending.fence, 41, 50, "aborted")
    assert later == DeliveryState.SUPERSEDED
    assert due(outbox, 1e9) == []


def test_a_late_slice_does_not_unsend_what_arrived(outbox):
    [sending] = due(outbox, 30)
    outbox.receive(3, now=40)
    do(outbox, deliveries.mark_sent, sending.delivery_id, sending.fence, 41)
    assert states(outbox)["PACS"] == "SENT"


def test_a_superseded_report_is_not_resent_after_its_sender_died(outbox):
    due(outbox, 30)
    outbox.receive(3, now=40)
    assert due(outbox, 30 + LEASE_S) == []
    assert states(outbox)["PACS"] == "SUPERSEDED"


def sent(outbox, now=31):
    [claimed] = due(outbox, now - 1)
    do(outbox, deliveries.mark_sent, claimed.delivery_id, claimed.fence, now, commitment_at=now)
    return claimed.delivery_id


def test_commitment_is_asked_for_and_its_answer_finds_the_delivery(outbox):
    delivery = sent(outbox)
    [asked] = do(outbox, commitments.due, "PACS", 31)
    assert (asked.delivery_id, asked.questions, asked.transaction_uid) == (delivery, 0, None)
    do(outbox, commitments.ask, delivery, 31, 100, "2.25.77")
    assert do(outbox, commitments.due, "PACS", 99) == []
    assert do(outbox, commitments.find, "2.25.77").objects == asked.objects
    do(outbox, commitments.mark_committed, delivery, 50)
    do(outbox, commitments.mark_committed, delivery, 51)
    assert states(outbox)["PACS"] == "COMMITTED"
    assert outbox.events().count("delivery.committed") == 1
    with pytest.raises(NotFound):
        do(outbox, commitments.find, "2.25.78")


def test_commitment_without_an_answer_is_asked_for_again(outbox):
    delivery = sent(outbox)
    do(outbox, commitments.ask, delivery, 31, 100, "2.25.77")
    [again] = do(outbox, commitments.due, "PACS", 100)
    assert (again.questions, again.transaction_uid) == (1, "2.25.77")


def test_what_is_not_committed_is_sent_again(outbox):
    delivery = sent(outbox)
    do(outbox, commitments.ask, delivery, 31, 100, "2.25.77")
    do(outbox, commitments.send_again, delivery, 40, 50, "0x0112 no such object instance")
    [again] = due(outbox, 50)
    assert (again.delivery_id, again.attempt) == (delivery, 2)
    with pytest.raises(StaleLease):
        do(outbox, commitments.ask, delivery, 51, 100, "2.25.78")
    with pytest.raises(IllegalMove):
        do(outbox, commitments.mark_committed, delivery, 52)


def test_a_superseded_report_that_is_not_committed_is_not_sent_again(outbox):
    delivery = sent(outbox)
    outbox.receive(3, now=40)
    do(outbox, commitments.send_again, delivery, 41, 50, "0x0112 no such object instance")
    assert due(outbox, 1e6) == []


def test_asking_without_an_answer_ends_and_an_operator_begins_it_anew(outbox):
    delivery = sent(outbox)
    do(outbox, commitments.ask, delivery, 31, 100)
    do(outbox, commitments.give_up, delivery, 100, "no presentation context")
    assert do(outbox, commitments.due, "PACS", 1e9) == []
    [row] = outbox.rows("SELECT * FROM deliveries WHERE destination = 'PACS'")
    assert (row["state"], row["unconfirmed_at"]) == ("SENT", 100.0)
    assert "unconfirmed: no presentation context" in row["error"]
    with outbox.database.read() as tx:
        counts = status(tx, 101)
    assert [one["delivery_id"] for one in counts["unconfirmed_deliveries"]] == [delivery]
    do(outbox, deliveries.hurry, delivery, 200)
    [asked] = do(outbox, commitments.due, "PACS", 200)
    assert asked.questions == 0
    with outbox.database.read() as tx:
        assert status(tx, 201)["unconfirmed_deliveries"] == []


def test_a_late_answer_still_confirms_what_nobody_asks_about_anymore(outbox):
    delivery = sent(outbox)
    do(outbox, commitments.ask, delivery, 31, 100, "2.25.77")
    do(outbox, commitments.give_up, delivery, 100, "no answer")
    do(outbox, commitments.mark_committed, do(outbox, commitments.find, "2.25.77").delivery_id, 200)
    [row] = outbox.rows("SELECT * FROM deliveries WHERE destination = 'PACS'")
    assert (row["state"], row["unconfirmed_at"], row["error"]) == ("COMMITTED", None, None)


def test_what_is_sent_again_is_counted_whatever_is_asked_in_between(outbox):
    delivery = sent(outbox)
    for resends in (1, 2):
        do(outbox, commitments.ask, delivery, 31, 100)
        do(outbox, commitments.send_again, delivery, 40, 50, "2 of 2 objects are not there")
        assert sent(outbox, 51) == delivery
        [again] = do(outbox, commitments.due, "PACS", 51)
        assert (again.resends, again.questions) == (resends, 0)
    do(outbox, commitments.fail, delivery, 60, "sent three times and not there")
    assert states(outbox)["PACS"] == "FAILED"
    do(outbox, deliveries.retry, delivery, 70)
    sent(outbox, 71)
    assert do(outbox, commitments.due, "PACS", 71)[0].resends == 0


def test_a_sent_delivery_that_waits_for_nothing_cannot_be_hurried(outbox):
    [claimed] = due(outbox, 30)
    do(outbox, deliveries.mark_sent, claimed.delivery_id, claimed.fence, 31)
    with pytest.raises(IllegalMove, match="SENT"):
        do(outbox, deliveries.hurry, claimed.delivery_id, 32)


def with_work(store, now):
    with store.database.read() as tx:
        return [name for name in ("ARCHIVE", "PACS") if deliveries.has_work(tx, name, now)]


def test_a_destination_has_work_when_something_is_due(outbox):
    assert with_work(outbox, 29) == []
    assert with_work(outbox, 30) == ["ARCHIVE", "PACS"]
    sent(outbox)
    [archive] = due(outbox, 30, "ARCHIVE")
    do(outbox, deliveries.mark_sent, archive.delivery_id, archive.fence, 31)
    assert with_work(outbox, 31) == ["PACS"]


@pytest.mark.parametrize("jump", [60.0, 3600.0, 1e6])
def test_a_clock_that_jumped_back_leaves_no_delivery_hanging(store, jump):
    start = 2e6
    store.reported("PACS", now=start)
    back = start + 30 - jump
    [claimed] = due(store, back)
    do(store, deliveries.retry_later, claimed.delivery_id, claimed.fence, back + 1, back + 11, "refused")
    further = back - jump
    assert "PACS" in with_work(store, further)
    assert due(store, further) == []
    assert len(due(store, further + 10)) == 1


def test_states_that_nothing_leaves_are_final():
    left = {state for froms in deliveries.TRANSITIONS.values() for state in froms}
    assert set(DeliveryState) - left == {DeliveryState.SUPERSEDED}
    assert set(deliveries.TRANSITIONS) == set(DeliveryState)
