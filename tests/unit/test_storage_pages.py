"""What the pages ask the index: what happened in an hour, who sent, who may log in."""

import pytest

from storage import activity, audit, jobs, senders, web_users
from storage.activity import Activity
from storage.errors import NotFound
from storage.models import web_sessions
from storage.models import web_users as users
from tests.storage_factory import QUIET_S, Store, not_analysed

HOUR = 3600.0


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as made:
        yield made


def test_an_hour_counts_what_happened_in_it_and_nothing_of_a_shadow_model(store):
    store.reported("pacs", now=100.0)
    store.receive(1, now=HOUR + 5, series_uid="8.1", study_uid="8")
    store.close_due(HOUR + 5 + QUIET_S)
    job = store.claim(HOUR + 50)
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, HOUR + 50, not_analysed("SLICE_GAP", "A gap."), [], [])
    store.receive(1, now=HOUR + 60, series_uid="8.2", study_uid="8")
    store.close_due(HOUR + 60 + QUIET_S)
    failing = store.claim(HOUR + 100)
    with store.database.transaction() as tx:
        jobs.fail(tx, failing.job_id, failing.fence, HOUR + 100, "no memory", None)
    with store.database.read() as tx:
        first, second = activity.between(tx, 0.0, HOUR), activity.between(tx, HOUR, 2 * HOUR)
        assert first == Activity(received=1, analysed=1)
        assert second == Activity(received=2, not_analysed=1, failed=1)
        assert Activity.total([first, second]) == Activity(received=3, analysed=1, not_analysed=1, failed=1)
        assert activity.between(tx, 2 * HOUR, 3 * HOUR) == Activity()


def test_senders_are_counted_over_a_time_and_refusals_of_a_kind_together(store):
    store.receive(1, 2, now=10.0, series_uid="8.1", calling_ae="OLD")
    store.receive(1, 2, 3, now=1000.0, series_uid="8.2", calling_ae="NEW")
    with store.database.transaction() as tx:
        for now, times in ((1000.0, {}), (1010.0, {"times": 41})):
            peer, detail = audit.Peer("EVE", "10.0.0.6"), {"reason": "unknown AE title", **times}
            audit.append(tx, now, "association.rejected", peer=peer, outcome="UNKNOWN_AE", detail=detail)
    with store.database.read() as tx:
        [found] = senders.senders(tx, 500.0)
        assert (found.ae_title, found.series, found.instances, found.last_at) == ("NEW", 1, 3, 1000.0)
        assert senders.last_series(tx) == {"OLD": 10.0, "NEW": 1000.0}
        [refused] = senders.refusals(tx, 500.0)
        assert (refused.peer_ae, refused.times, refused.last_at) == ("EVE", 42, 1010.0)
        assert senders.refusals(tx, 2000.0) == []


def test_a_login_ends_by_time_by_logout_by_another_password_and_with_its_account(store):
    with store.database.transaction() as tx:
        number = web_users.add(tx, "ada", ["viewer"], "hash", 0.0)
        for token in "abcd":
            web_users.begin_login(tx, token, number, "10.0.0.1", 0.0, 100.0)

    def who(token, now=50.0):
        with store.database.read() as tx:
            found = web_users.who_is(tx, token, now)
            return found.name if found else None

    assert (who("a"), who("a", 100.0), who("x")) == ("ada", None, None)
    with store.database.transaction() as tx:
        web_users.end_login(tx, "a")
    assert (who("a"), who("b")) == (None, "ada")
    with store.database.transaction() as tx:
        web_users.set_password(tx, number, "other", 60.0)
    assert who("b") is None
    with store.database.transaction() as tx:
        web_users.begin_login(tx, "e", number, "10.0.0.1", 200.0, 300.0)
        assert [row.token_sha256 for row in tx.execute(web_sessions.select())] == ["e"]
        web_users.remove(tx, number)
        assert not tx.execute(users.select()).all()
        with pytest.raises(NotFound):
            web_users.get(tx, "ada")
    assert who("e", 250.0) is None
