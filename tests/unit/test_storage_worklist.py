"""The worklist finds what is asked for, in the order asked for, page by page, as a search of every line would."""

import random

import pytest

from benchmarks.index_fill import NOW, fill
from storage.database import open_database
from storage.listed_series import lines_of
from storage.models import listings
from storage.names import name_key
from storage.worklist import Order, Place, Search, choices, find
from tests.storage_factory import Store, fresh_url

COUNT = 400
DAY = 86400.0
ASKED = {
    "source": ["", "CT3"],
    "standing": ["", "ANALYSED", "NOT_ANALYSED", "FAILED", "PENDING"],
    "reason_code": ["", "KERNEL"],
    "model": ["", "covid-ct 1.0", "densitometry 1.0"],
    "finding": ["", "POSITIVE"],
    "since": [None, NOW - 0.08 * DAY],
    "until": [None, NOW - 0.03 * DAY],
    "text": ["", "ba", "P1000010", "200"],
}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    url = fresh_url(tmp_path_factory.mktemp("index"))
    fill(url, COUNT, failing=20)
    database = open_database(url)
    yield database
    database.close()


@pytest.fixture(scope="module")
def every(database):
    with database.read() as tx:
        return lines_of(tx, tx.execute(listings.select().with_only_columns(listings.c.id)).scalars().all())


def matches(line, search):
    kind = ("source", "standing", "reason_code", "model", "finding")
    called = (line.patient_id, line.accession_number)
    return (
        all(getattr(search, name) in ("", getattr(line, name)) for name in kind)
        and (search.since is None or line.received_at >= search.since)
        and (search.until is None or line.received_at < search.until)
        and (
            not search.text
            or search.text in called
            or (len(search.text) > 1 and name_key(line.patient_name).startswith(search.text))
        )
        and (search.order is not Order.PROBABILITY or (line.probability is not None and line.standing == "ANALYSED"))
    )


def expected(every, search):
    newest = sorted(every, key=lambda line: (line.received_at, line.listing), reverse=True)
    found = [line for line in newest if matches(line, search)]
    by_name = {
        Order.SOURCE: lambda line: line.source,
        Order.MODEL: lambda line: line.model,
        Order.OUTCOME: lambda line: (line.standing, line.reason_code, line.finding),
    }
    if search.order in by_name:
        return sorted(found, key=by_name[search.order], reverse=search.backwards)
    if search.order is Order.PROBABILITY:
        return sorted(found, key=lambda line: line.probability, reverse=not search.backwards)
    return found[::-1] if search.backwards else found


def pages(tx, search, most):
    place, found = None, []
    for _ in range(COUNT):
        page = find(tx, search, place, most=most)
        assert len(page.lines) <= most
        found += page.lines
        place = page.next
        if place is None:
            return found
    raise AssertionError("the pages do not end")


def searches(number):
    """Half of what can be asked for is not; all else comes in every combination."""
    chance = random.Random(17)
    orders = [order for order in Order if order is not Order.PATIENT]
    for _ in range(number):
        asked = {name: chance.choice(values) for name, values in ASKED.items() if chance.random() < 0.5}
        yield Search(**asked, order=chance.choice(orders), backwards=chance.random() < 0.5)


def test_every_combination_finds_what_a_search_of_every_line_finds(database, every):
    with_lines = 0
    with database.read() as tx:
        for search in searches(120):
            found, wanted = pages(tx, search, most=19), expected(every, search)
            with_lines += bool(wanted)
            if search.order is Order.PROBABILITY:  # ties may come in any order
                assert [one.probability for one in found] == [one.probability for one in wanted], search
                assert {one.listing for one in found} == {one.listing for one in wanted}, search
            else:
                assert [one.listing for one in found] == [one.listing for one in wanted], search
    assert with_lines > 40


def test_the_whole_list_has_every_series_and_says_how_many(database, every):
    with database.read() as tx:
        page = find(tx, Search(), most=10)
        assert page.total == len(every) == COUNT
        assert find(tx, Search(standing="NOT_ANALYSED")).total == sum(one.standing == "NOT_ANALYSED" for one in every)
        assert choices(tx)["model"] == ["covid-ct 1.0", "densitometry 1.0"]


def test_what_comes_while_somebody_reads_shifts_no_page(tmp_path):
    with Store(tmp_path) as store:
        for number in range(6):
            store.receive(1, now=1000.0 + number, series_uid=f"1.{number}", study_uid="1")
        with store.database.read() as tx:
            first = find(tx, Search(), most=3)
        store.receive(1, now=2000.0, series_uid="1.99", study_uid="1")
        with store.database.read() as tx:
            second = find(tx, Search(), first.next, most=3)
        assert [line.received_at for line in first.lines + second.lines] == [1005, 1004, 1003, 1002, 1001, 1000]


def test_many_series_at_the_same_moment_are_all_found(tmp_path):
    with Store(tmp_path) as store:
        for number in range(30):
            store.receive(1, now=5.0, series_uid=f"1.{number}", study_uid="1", calling_ae=f"CT{number}")
        with store.database.read() as tx:
            assert len({line.series_pk for line in pages(tx, Search(), 4)}) == 30


def test_a_patient_with_very_many_studies_is_cut_off_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.named_series.MOST_SERIES", 5)
    with Store(tmp_path) as store:
        for number in range(9):
            store.receive(1, now=5.0 + number, series_uid=f"1.{number}.1", study_uid=f"1.{number}")
        with store.database.read() as tx:
            page = find(tx, Search(text="P1"))
        assert page.cut_off
        assert [line.received_at for line in page.lines] == [13, 12, 11, 10, 9]


def test_a_search_in_days_by_probability_that_finds_too_much_says_that_it_is_by_time(database, monkeypatch):
    monkeypatch.setattr("storage.worklist.GATHERED", 10)
    with database.read() as tx:
        page = find(tx, Search(order=Order.PROBABILITY, since=NOW - 30 * DAY))
    assert page.by_time
    assert [line.received_at for line in page.lines] == sorted((line.received_at for line in page.lines), reverse=True)


def test_a_pseudonym_is_found_by_the_identifier_it_stands_for(tmp_path):
    with Store(tmp_path) as store:
        store.receive(1, now=5.0, patient_id="~abc")
        with store.database.read() as tx:
            assert len(find(tx, Search(text="4711"), identifier="~abc").lines) == 1
            assert find(tx, Search(text="4711")).lines == []


def test_nothing_typed_can_be_more_than_text(database):
    with database.read() as tx:
        for text in (
            "'; DROP TABLE series; --",
            "%",
            "_",
            "a\x00",
            "\U0010ffff",
            "a" * 5000,
            "ba' OR '1'='1",
            "\udcff",
        ):
            assert find(tx, Search(text=text)).lines == []
        assert find(tx, Search(), Place(float("inf"), 0)).lines != []
