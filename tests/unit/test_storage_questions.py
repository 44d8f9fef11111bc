"""A person's own SQL can read the index, and nothing else, whatever is typed."""

import pytest

from storage import questions
from storage.questions import UnusableQuestion, ask, refuse_more_than_a_query, saved_questions
from tests.storage_factory import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Not `tmp_path`: a hundred questions to one index, which none of them changes."""
    with Store(tmp_path_factory.mktemp("asked")) as store:
        store.reported("PACS")
        yield store


def state(store):
    return [store.rows(f"SELECT * FROM {table} ORDER BY 1") for table in ("series", "audit", "results", "properties")]


WRITING = [
    "DELETE FROM audit",
    "UPDATE series SET state = 'OPEN'",
    "INSERT INTO properties VALUES ('a', 'b')",
    "DROP TABLE series",
    "CREATE TABLE mine (a)",
    "CREATE TEMP TABLE mine (a INTEGER)",
    "ALTER TABLE series ADD COLUMN mine TEXT",
    "SELECT 1; DELETE FROM audit",
    "SELECT 1) AS a; DELETE FROM audit; SELECT (1",
    "WITH gone AS (DELETE FROM properties RETURNING *) SELECT * FROM gone",
    "SELECT * INTO mine FROM series",
    "SELECT * FROM series FOR UPDATE",
    "REINDEX",
    "VACUUM",
    "BEGIN; DELETE FROM audit; COMMIT",
    "COMMIT",
    "SAVEPOINT a",
    "EXPLAIN ANALYZE DELETE FROM audit",
    "/* SELECT */ DELETE FROM audit",
    "-- SELECT\nDELETE FROM audit",
    "REPLACE INTO properties VALUES ('a', 'b')",
]
REACHING_OUT = [
    "ATTACH DATABASE '{folder}/made.db' AS made",
    "VACUUM INTO '{folder}/made.db'",
    "PRAGMA query_only = OFF",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM pragma_query_only('0')",
    "SELECT load_extension('{folder}/made.so')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('{folder}/made.db', 'x')",
    "SELECT fts3_tokenizer('simple')",
    "SELECT randomblob(999999999)",
    "COPY series TO '{folder}/made.db'",
    "COPY series TO PROGRAM 'touch {folder}/made.db'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT \"pg_read_file\"('/etc/passwd')",
    "SELECT U&\"\\0070g_read_file\"('/etc/passwd')",
    "SELECT pg_catalog.pg_read_file('/etc/passwd')",
    "SELECT pg_read_file/**/('/etc/passwd')",
    "SELECT lo_export(1, '{folder}/made.db')",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "SET TRANSACTION READ WRITE",
    "SELECT pg_advisory_xact_lock(422658663795)",
    "SELECT pg_sleep(60)",
    "SELECT pg_terminate_backend(1)",
    "SELECT nextval('series_id_seq')",
    "SELECT query_to_xml('delete from audit', true, true, '')",
    "SELECT * FROM dblink('dbname=x', 'select 1')",
    "SELECT * FROM pg_shadow",
    "SELECT current_setting('data_directory')",
    "DO $$ BEGIN DELETE FROM audit; END $$",
    "CALL mine()",
    "LOAD 'mine'",
    "LISTEN a",
    "LOCK TABLE series",
]
ELSEWHERE_A_COMMENT = [
    "SELECT 1 --\r, pg_sleep(60)",
    "SELECT 1 /* /* */ ' */ , (SELECT max(password_hash) FROM web_users) --'",
    "SELECT 1 /* /* */ /* ' */ */, pg_sleep(60) --'",
]
"""PostgreSQL ends a comment at a return, and counts comments within comments; SQLite does neither."""
WITHOUT_PARENTHESES = [
    "SELECT ('SELECT to_tsvector(password_hash) FROM web_users'::text).ts_stat",
    "SELECT x.ts_stat FROM lower('select to_tsvector(password_hash) from web_users') AS x",
    "SELECT x.\"current_setting\" FROM lower('data_directory') AS x",
]
SECRETS = [
    "SELECT * FROM web_users",
    'SELECT * FROM "web_users"',
    "SELECT count(*) FROM WEB_USERS",
    "SELECT password_hash FROM main.web_users",
    "SELECT (SELECT max(password_hash) FROM web_users) FROM series",
    "WITH a AS (SELECT * FROM web_sessions) SELECT * FROM a",
    "SELECT * FROM series JOIN web_sessions ON 1 = 1",
]


@pytest.mark.parametrize(
    "typed", [*WRITING, *REACHING_OUT, *SECRETS, "", ";", "SELECT", "\0", "x" * 20_000, "(" * 5000]
)
def test_nothing_but_a_question_is_answered(store, typed):
    before = state(store)
    with pytest.raises(UnusableQuestion):
        ask(store.database, typed.format(folder=store.folder) if "{" in typed else typed)
    assert state(store) == before
    assert not list(store.folder.glob("made*"))


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 1 AS one;", ((1,),)),
        ("  -- a comment; with a sign\n SELECT count(*) FROM series", ((1,),)),
        ("WITH a AS (SELECT 'x;y' AS b) SELECT b FROM a", (("x;y",),)),
        ("SELECT '100%' AS share", (("100%",),)),
        ("SELECT max(id), min(id) FROM series WHERE modality IN ('CT') GROUP BY modality", ((1, 1),)),
        ("SELECT outcome, row_number() OVER (ORDER BY id) FROM results", (("ANALYSED", 1),)),
        ("SELECT count(*) FROM series WHERE description = '; DROP TABLE series'", ((0,),)),
    ],
)
def test_a_question_is_answered(store, sql, rows):
    assert ask(store.database, sql).rows == rows


def test_every_saved_question_is_answered(store):
    found = saved_questions()
    assert len(found) >= 14
    for one in found:
        answer = ask(store.database, one.sql)
        assert answer.columns, one.name
        assert one.question.endswith((".", "?", '"')), one.name


def test_a_long_answer_is_cut_off_and_says_so(store):
    answer = ask(store.database, "SELECT a.id FROM audit a, audit b", rows=3)
    assert (len(answer.rows), answer.cut_off) == (3, True)


def test_a_question_that_takes_too_long_is_ended(store):
    with pytest.raises(UnusableQuestion, match="longer than"):
        ask(store.database, f"SELECT count(*) FROM {', '.join(f'audit a{n}' for n in range(12))}", seconds=0.3)
    assert ask(store.database, "SELECT 1 AS one").rows == ((1,),)


@pytest.mark.parametrize("typed", [*ELSEWHERE_A_COMMENT, *WITHOUT_PARENTHESES])
def test_what_postgresql_reads_otherwise_is_refused_before_it_is_asked(typed):
    with pytest.raises(UnusableQuestion, match="a question"):
        refuse_more_than_a_query(typed)


TEN_THOUSAND = "replace(replace(replace(replace('a', 'a', 'aaaaaaaaaa'), 'a', 'aaaaaaaaaa'), 'a', 'aaaaaaaaaa')"
TEN_THOUSAND += ", 'a', 'aaaaaaaaaa')"


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "call",
    [
        f"replace({TEN_THOUSAND}, 'a', 'aaaaaaaaaa')",
        f"trim({TEN_THOUSAND}, {TEN_THOUSAND})",
        f"{TEN_THOUSAND} LIKE '%' || {TEN_THOUSAND}",
    ],
)
def test_no_single_call_can_take_long(store, call):
    """Nothing interrupts SQLite within a call, so its arguments are short."""
    with pytest.raises(UnusableQuestion):
        ask(store.database, f"SELECT length({call}) AS n")


@pytest.mark.sqlite
def test_slow_calls_are_ended_by_the_clock(store):
    half = f"substr({TEN_THOUSAND}, 1, 5000)"
    slow = f"SELECT sum(instr(a, b || n)) FROM (SELECT {TEN_THOUSAND} AS a, {half} AS b), n"
    with pytest.raises(UnusableQuestion, match="longer than"):
        ask(store.database, f"WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) {slow}", seconds=0.3)


def test_trimming_works_as_ever(store):
    sql = "SELECT trim('xxaxx', 'x') AS a, ltrim('xxa', 'x') AS b, rtrim('axx', 'x') AS c, trim(' a ') AS d"
    assert ask(store.database, sql).rows == (("a", "a", "a", "a"),)
    assert ask(store.database, "SELECT trim(NULL, 'x') AS a").rows == ((None,),)


def test_large_values_are_clipped(store):
    long = ask(store.database, f"SELECT '{'x' * 9000}' AS long").rows[0][0]
    assert len(str(long)) <= questions.LONGEST_CELL + 1


def test_asking_keeps_no_transaction_open(store):
    ask(store.database, "SELECT * FROM series")
    store.receive(9, now=500.0)
    assert ask(store.database, "SELECT instance_count FROM series").rows == ((3,),)
