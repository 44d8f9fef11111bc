"""Notifications: each event told once, to the right people, by real mail and webhook servers, whatever these answer."""

import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from config.gateways.notifications import MailSettings
from config.load import read
from config.settings import Settings
from dicom_node.gateways.notifications import mail as mail_message
from dicom_node.gateways.notifications import notifier as at_work
from dicom_node.gateways.notifications.notifier import LEASE_S, Notifier
from dicom_node.gateways.verdict import AttemptOutcome
from dicom_node.receiver.certificates import Authority
from storage import jobs, notifications, pauses
from storage.errors import StaleLease
from tests.mail_server import PASSWORD, USER, mail_server
from tests.storage_factory import MODEL, Store, not_analysed

SECRET = "shared-between-us"
WEBHOOK = {"name": "hook", "on": ["positive", "not-analysed", "health"]}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    authority = Authority("hospital", time.time())
    (folder / "password").write_text(PASSWORD)
    (folder / "secret").write_text(SECRET)
    authority.write(folder / "ca.pem")
    return folder, authority.issue(folder, "mail")


@pytest.fixture(scope="module")
def mail_process(tmp_path_factory, keys):
    with mail_server(tmp_path_factory.mktemp("mails"), *keys[1]) as made:
        yield made


@pytest.fixture
def mail(mail_process):
    for file in mail_process.folder.glob("*.eml"):
        file.unlink()
    mail_process.say("take")
    return mail_process


@dataclass
class Hook:
    """A webhook. statuses: what it answers, the last one from then on; None: it takes the request and says nothing."""

    port: int = 0
    statuses: list[int | None] = field(default_factory=lambda: [204])
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def hook():
    made = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            made.got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            status = made.statuses.pop(0) if len(made.statuses) > 1 else made.statuses[0]
            if status is not None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def settings(store: Store, keys, *rules: dict, mail=None, hook=None) -> Settings:
    folder = keys[0]
    more = {
        "host": "127.0.0.1",
        "port": mail.port if mail else 1,
        "tls_authorities": folder / "ca.pem",
        "user": USER,
        "credentials": folder / "password",
        "sender": "node@hospital.example",
        "timeout_s": 3,
    }
    made = []
    for rule in rules:
        where = {"mail_to": ["a@hospital.example", "b@hospital.example"]} if mail else {}
        if hook:
            where |= {"webhook": f"http://127.0.0.1:{hook.port}/notify", "credentials": folder / "secret"}
        made.append({"name": "rule", **where, **rule})
    return Settings(
        data_dir=store.folder,
        storage={"database_url": store.url},
        mail=more,
        notifications=made,
        model={"allow_demonstration_model": True},
        sender={"response_timeout_s": 1.0, "connect_timeout_s": 1.0},
    )


def notifier(store: Store, given: Settings, problems: tuple[str, ...] = ()) -> Notifier:
    made = Notifier(given, store.database, lambda: problems)
    made.step(0)  # what happened before the first look is told to nobody
    return made


def analysed(store: Store, number: int, now: float = 100, probability: float = 0.9) -> int:
    store.receive(1, 2, now=now, series_uid=f"7.{number}", study_uid=f"6.{number}", patient_id=f"P{number}")
    store.close_due(now + 50)
    return store.finish(store.claim(now + 51), now + 52, probability=probability)


def refused(store: Store, number: int, now: float = 100) -> int:
    store.receive(1, 2, now=now, series_uid=f"8.{number}", patient_id=f"Q{number}")
    store.close_due(now + 50)
    job = store.claim(now + 51)
    with store.database.transaction() as tx:
        result = not_analysed("TOO_FEW_SLICES", "2 slices")
        return jobs.finish(tx, job.job_id, job.fence, now + 52, result, [], [])


def bodies(hook: Hook) -> list[dict]:
    return [json.loads(body) for _, body in hook.got]


def states(store: Store) -> list[str]:
    with store.database.read() as tx:
        return [one["state"] for one in reversed(notifications.latest(tx))]


# What is told.


def test_a_positive_result_is_told_once_and_a_negative_one_is_not(store, keys, hook):
    made = notifier(store, settings(store, keys, {"on": ["positive"]}, hook=hook))
    analysed(store, 1)
    analysed(store, 2, now=300, probability=0.1)
    for now in (400, 405, 410):
        made.step(now)
    Notifier(settings(store, keys, {"on": ["positive"]}, hook=hook), store.database, list).step(415)
    assert [(one["kind"], one["series"]) for one in bodies(hook)] == [("positive", 1)]


def test_a_mail_says_what_happened_and_nothing_of_the_patient_unless_the_rule_says_so(store, keys, mail):
    rules = ({"name": "open", "on": ["positive"], "patient_data": True}, {"name": "closed", "on": ["positive"]})
    made = notifier(store, settings(store, keys, *rules, mail=mail))
    analysed(store, 1)
    made.step(400)
    with_patient, without = sorted(mail.mails, key=lambda one: "P1" not in one.get_content())
    assert "patient id: P1" in with_patient.get_content()
    assert "P1" not in without.as_string()
    assert without["To"] == "a@hospital.example, b@hospital.example"
    assert without["Subject"] == "[DICOM_NODE] positive result"
    assert "dicom-node series show 1" in without.get_content()
    assert store.rows("SELECT content FROM notifications WHERE content <> ''") == [], "the text goes once it was sent"


def test_a_series_that_was_not_analysed_is_told_with_its_reason(store, keys, hook):
    made = notifier(store, settings(store, keys, {"on": ["not-analysed"]}, hook=hook))
    refused(store, 1)
    made.step(400)
    assert [(one["kind"], one["reason"]) for one in bodies(hook)] == [("not-analysed", "TOO_FEW_SLICES")]


def test_results_of_a_shadow_model_and_what_was_before_the_first_look_are_not_told(store, keys, hook):
    analysed(store, 1)
    made = notifier(store, settings(store, keys, {"on": ["positive"]}, hook=hook))
    analysed(store, 2, now=300)
    store.rows("SELECT 1")
    with store.database.engine.begin() as tx:
        tx.exec_driver_sql("UPDATE results SET shadow = true WHERE series_pk = 2")
    made.step(400)
    assert hook.got == []


def test_a_problem_is_told_when_it_comes_again_after_a_day_and_when_it_comes_back(store, keys, hook):
    problems = ["low-disk"]
    made = Notifier(settings(store, keys, {"on": ["health"]}, hook=hook), store.database, lambda: problems)
    for now in (0, 5, 10, 3600):
        made.step(now)
    assert [one["problem"] for one in bodies(hook)] == ["low-disk"]
    made.step(86_400)
    assert len(hook.got) == 2
    problems.clear()
    made.step(86_410)
    problems.append("low-disk")
    made.step(86_420)
    assert len(hook.got) == 3


def test_alarms_of_the_monitoring_have_kinds_of_their_own(store, keys, hook):
    words = ["canary-failed", "low-disk"]
    rules = [{"name": kind, "on": [kind]} for kind in ("canary-failed", "health")]
    Notifier(settings(store, keys, *rules, hook=hook), store.database, lambda: words).step(0)
    assert sorted((one["rule"], one["problem"]) for one in bodies(hook)) == [
        ("canary-failed", "canary-failed"), ("health", "low-disk"),
    ]  # fmt: skip


def test_a_destination_that_takes_nothing_is_told_and_a_paused_one_is_not(store, keys, hook):
    made = notifier(store, settings(store, keys, {"on": ["delivery-stuck"], "stuck_minutes": 10}, hook=hook))
    store.reported("PACS", now=0)
    made.step(500)
    assert hook.got == []
    with store.database.transaction() as tx:
        pauses.pause(tx, pauses.Pausable.DESTINATION, "PACS", "somebody", 600)
    made.step(700)
    assert hook.got == []
    with store.database.transaction() as tx:
        pauses.resume(tx, pauses.Pausable.DESTINATION, "PACS", "somebody", 800)
    for now in (1000, 1005):
        made.step(now)
    assert [one["destination"] for one in bodies(hook)] == ["PACS"]
    assert "PACS has taken nothing for 16 minutes" in bodies(hook)[0]["what"]


def test_what_is_too_much_for_an_hour_is_counted_and_told_together(store, keys, hook):
    made = notifier(store, settings(store, keys, {"on": ["positive"], "at_most_per_hour": 3}, hook=hook))
    for number in range(15):
        analysed(store, number)
    for now in (200, 205, 210):
        made.step(now)
    assert [one["kind"] for one in bodies(hook)] == ["positive"] * 3
    made.step(200 + 3601)
    assert bodies(hook)[3]["what"].startswith("And 12 more")
    assert bodies(hook)[3]["more"] == {"positive": 12}
    assert states(store) == ["SENT"] * 4


# How it is sent.


def test_a_webhook_can_check_who_sent_it_and_when(store, keys, hook):
    made = notifier(store, settings(store, keys, WEBHOOK, hook=hook))
    analysed(store, 1)
    made.step(400)
    [(headers, body)] = hook.got
    wanted = hmac.new(SECRET.encode(), f"{headers['Dicom-Node-Timestamp']}.".encode() + body, hashlib.sha256)
    assert headers["Dicom-Node-Signature"] == f"sha256={wanted.hexdigest()}"
    assert (headers["Idempotency-Key"], headers["Dicom-Node-Timestamp"]) == (json.loads(body)["id"], "400")


@pytest.mark.parametrize("status", [500, 503, 429, 408, None])
def test_a_webhook_that_cannot_now_gets_the_same_body_and_id_later(store, keys, hook, status):
    hook.statuses = [status, 200]
    made = notifier(store, settings(store, keys, WEBHOOK, hook=hook))
    analysed(store, 1)
    made.step(400)
    assert states(store) == ["PENDING"]
    made.step(400 + 5)
    assert len(hook.got) == 1, "not at once"
    made.step(500)
    (first, body), (second, again) = hook.got
    assert (body, first["Idempotency-Key"]) == (again, second["Idempotency-Key"])
    assert states(store) == ["SENT"]


def test_a_webhook_that_refuses_is_given_up_after_three_times_and_the_trail_says_so(store, keys, hook):
    hook.statuses = [422]
    made = notifier(store, settings(store, keys, WEBHOOK, hook=hook))
    analysed(store, 1)
    for now in (400, 1000, 3000, 9000, 20_000):
        made.step(now)
    assert (len(hook.got), states(store)) == (3, ["FAILED"])
    assert store.events()[-1] == "notification.failed"


def test_a_webhook_that_is_away_is_tried_for_two_days(store, keys, hook):
    given = settings(store, keys, WEBHOOK, hook=hook)
    hook.statuses = [503]
    made = notifier(store, given)
    analysed(store, 1)
    now = 400.0
    while states(store) in ([], ["PENDING"]) and now < 400 + 3 * 86_400:
        made.step(now)
        now += 3700
    assert states(store) == ["FAILED"]
    assert 47 < len(hook.got) < 52


def test_a_mail_server_that_cannot_now_gets_the_same_mail_later(store, keys, mail):
    made = notifier(store, settings(store, keys, {"on": ["positive"]}, mail=mail))
    analysed(store, 1)
    mail.say("busy")
    made.step(400)
    assert (mail.raw, states(store)) == ([], ["PENDING"])
    mail.say("cut")  # it has the mail, and we do not know
    made.step(1000)
    assert (len(mail.raw), states(store)) == (1, ["PENDING"])
    mail.say("take")
    made.step(3000)
    first, second = mail.raw
    assert first == second
    assert "Message-ID: <" in first.decode()
    assert states(store) == ["SENT"]


def test_a_mail_server_that_refuses_is_given_up_and_one_that_is_away_is_not(store, keys, mail, hook):
    made = notifier(store, settings(store, keys, {"on": ["positive"]}, mail=mail))
    analysed(store, 1)
    mail.say("refuse")
    for now in (400, 1000, 3000):
        made.step(now)
    assert states(store) == ["FAILED"]
    gone = settings(store, keys, {"on": ["positive"]}, mail=Hook(port=1))
    analysed(store, 2, now=4000)
    for now in (5000, 6000, 9000, 14_000):
        Notifier(gone, store.database, list).step(now)
    assert states(store) == ["FAILED", "PENDING"]


def test_one_bad_address_does_not_keep_the_others_from_their_mail(store, keys, mail):
    rule = {"on": ["positive"], "mail_to": ["nobody@hospital.example", "a@hospital.example"]}
    made = notifier(store, settings(store, keys, rule, mail=mail))
    analysed(store, 1)
    made.step(400)
    assert (len(mail.raw), states(store)) == (1, ["SENT"])
    assert store.rows("SELECT error FROM notifications") == [{"error": "1 recipients are not accepted"}]


def test_a_wrong_password_and_a_strange_certificate_are_told_and_tried_again(store, keys, mail, tmp_path):
    given = settings(store, keys, {"on": ["positive"]}, mail=mail)
    (tmp_path / "wrong").write_text("wrong")
    strange = Authority("strange", time.time()).write(tmp_path / "strange.pem")
    made = notifier(store, given)
    analysed(store, 1)
    for change, what in (({"credentials": tmp_path / "wrong"}, "login"), ({"tls_authorities": strange}, "not trusted")):
        wrong = given.model_copy(update={"mail": given.mail.model_copy(update=change)})
        Notifier(wrong, store.database, list).step(400 if "login" in what else 2000)
        assert what in str(store.rows("SELECT error FROM notifications")[0]["error"])
    made.step(9000)
    assert (len(mail.raw), states(store)) == (1, ["SENT"])


@contextmanager
def odd_mail_server(*answers: bytes) -> Iterator[int]:
    """One that gives these answers, whatever it is told, and the last one without end. Yields its port."""

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listening.accept()
            with connection:
                for answer in answers[:-1]:
                    connection.sendall(answer)
                    connection.recv(1 << 12)
                while True:
                    connection.sendall(answers[-1])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive()


GREETING, LOGIN = b"220 mail\r\n", b"250-mail\r\n250 AUTH CRAM-MD5 PLAIN\r\n"


@pytest.mark.parametrize(
    ("password", "answers", "what"),
    [
        (PASSWORD, (b"220-welcome\r\n" * 1000,), "no answer"),
        (PASSWORD, (b"2" * 1000,), "SMTP status 500"),
        (PASSWORD, (GREETING, b"250 mail\r\n"), "does not offer"),
        ("pässwort", (GREETING, LOGIN, b"334 bm8=\r\n"), "ASCII"),
        (PASSWORD, (GREETING, LOGIN, b"334 abcde\r\n"), "cannot be understood"),
    ],
)
def test_a_mail_server_that_answers_oddly_holds_up_nothing(tmp_path, password, answers, what):
    (tmp_path / "password").write_text(password)
    with odd_mail_server(*answers) as port:
        more = {"host": "127.0.0.1", "port": port, "security": "none", "user": USER, "timeout_s": 3}
        made = MailSettings(**more, credentials=tmp_path / "password")
        verdict = mail_message.send(b"Subject: x\r\n\r\nx\r\n", made, ["a@hospital.example"])
    assert verdict.outcome != AttemptOutcome.DELIVERED and what in verdict.text


def test_a_mail_server_that_answers_drop_by_drop_is_given_up(monkeypatch):
    monkeypatch.setattr(mail_message, "SESSION_S", 0.0)
    with odd_mail_server(b"2") as port:
        made = MailSettings(host="127.0.0.1", port=port, security="none")
        assert mail_message.send(b"x", made, ["a@hospital.example"]).outcome == AttemptOutcome.UNANSWERED


def test_authorities_that_are_not_there_are_named_with_their_file(tmp_path):
    with odd_mail_server(GREETING, b"250-mail\r\n250 STARTTLS\r\n") as port:
        made = MailSettings(host="127.0.0.1", port=port, tls_authorities=tmp_path / "gone.pem")
        said = mail_message.send(b"x", made, ["a@hospital.example"]).text
    assert str(tmp_path / "gone.pem") in said and "No such file" in said


def test_a_process_killed_between_sending_and_noting_it_sends_the_same_again_when_its_lease_is_over(
    store, keys, hook, monkeypatch
):
    class Killed(BaseException):
        pass

    def dies(*_: object) -> None:
        raise Killed

    made = notifier(store, settings(store, keys, WEBHOOK, hook=hook))
    analysed(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Notifier, "_settle", dies)
        with pytest.raises(Killed):
            made.step(400)
    assert states(store) == ["SENDING"]
    again = Notifier(settings(store, keys, WEBHOOK, hook=hook), store.database, list)
    again.step(410)
    assert len(hook.got) == 1, "somebody may still be sending it"
    again.step(401 + LEASE_S)
    (first, body), (second, repeated) = hook.got
    assert (body, first["Idempotency-Key"]) == (repeated, second["Idempotency-Key"])
    assert states(store) == ["SENT"]


def test_a_process_killed_while_it_makes_messages_makes_each_once(store, keys, hook, monkeypatch):
    class Killed(BaseException):
        pass

    made = notifier(store, settings(store, keys, WEBHOOK, hook=hook))
    analysed(store, 1)
    analysed(store, 2, now=300)

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(notifications, "keep_state", dies)
        with pytest.raises(Killed):
            made.step(400)
    assert states(store) == []
    Notifier(settings(store, keys, WEBHOOK, hook=hook), store.database, list).step(410)
    assert [one["series"] for one in bodies(hook)] == [1, 2]


def test_two_nodes_on_an_index_tell_each_event_once(store, keys, hook):
    first, second = (notifier(store, settings(store, keys, WEBHOOK, hook=hook)) for _ in range(2))
    analysed(store, 1)
    with store.database.read() as tx:
        look = first._gathering._look(tx, [], 400)
    second.step(400)
    with pytest.raises(StaleLease), store.database.transaction() as tx:
        first._gathering._tell(tx, first._settings.notifications[0], look, 400)
        notifications.keep_state(tx, look.raw, look.state)
    first.step(405)
    assert len(hook.got) == 1


def test_a_rule_that_is_gone_tells_nobody(store, keys, hook):
    hook.statuses = [503]
    made = notifier(store, settings(store, keys, WEBHOOK, hook=hook))
    analysed(store, 1)
    made.step(400)
    Notifier(settings(store, keys), store.database, list).step(3000)
    assert (len(hook.got), states(store)) == (1, ["FAILED"])


def test_while_all_is_quiet_nothing_is_written(store, keys, hook):
    made = notifier(store, settings(store, keys, WEBHOOK, hook=hook))
    store.receive(1, 2, now=10)
    with store.database.read() as tx:
        before = notifications.read_state(tx)
    for now in range(20, 60):
        made.step(now)
    with store.database.read() as tx:
        assert notifications.read_state(tx) == before


def test_rules_that_reach_nobody_or_over_an_open_line_are_mistakes(tmp_path):
    def mistakes(lines: str) -> list[str]:
        (tmp_path / "node.toml").write_text(lines)
        return [str(one) for one in read(tmp_path / "node.toml")[1]]

    rule = '[[notifications]]\nname = "a"\non = ["health"]\n'
    assert "tells nobody" in mistakes(rule)[0]
    assert "needs a mail server" in mistakes(rule + 'mail_to = ["a@b.example"]')[0]
    assert "to sign what it gets" in mistakes(rule + 'webhook = "https://a.example/x"')[0]
    hook = 'credentials = "s"\nwebhook = "http://a.example/x"'
    assert "must begin with https://" in mistakes(rule + hook)[0]
    mail = '[mail]\nhost = "mail.example"\nsecurity = "none"\n'
    assert "this machine only" in mistakes(mail)[0]
    good = '[mail]\nhost = "mail.example"\n' + rule + 'mail_to = ["a@b.example"]'
    assert mistakes(good) == []
    assert MODEL.name not in at_work.__doc__


def test_the_commands_list_rules_and_messages_and_send_a_test(store, keys, hook, mail, tmp_path, capsys):
    import sys

    from dicom_node.cli.app import main

    folder = keys[0]
    (tmp_path / "node.toml").write_text(
        f'data_dir = "{tmp_path}"\n[storage]\ndatabase_url = "{store.url}"\n[mail]\nhost = "127.0.0.1"\n'
        f'port = {mail.port}\ntls_authorities = "{folder}/ca.pem"\nuser = "{USER}"\ncredentials = "{folder}/password"\n'
        f'[[notifications]]\nname = "rule"\non = ["health"]\nmail_to = ["a@hospital.example"]\n'
        f'webhook = "http://127.0.0.1:{hook.port}/n"\ncredentials = "{folder}/secret"\n'
    )

    def command(*arguments: str) -> dict:
        sys.argv = ["dicom-node", *arguments, "--config", str(tmp_path / "node.toml"), "--json"]
        with pytest.raises(SystemExit):
            main()
        return json.loads(capsys.readouterr().out)

    said = command("notify", "test", "rule")
    assert {channel: one["outcome"] for channel, one in said.items()} == {"mail": "DELIVERED", "webhook": "DELIVERED"}
    assert mail.mails[0]["Subject"] == "[DICOM_NODE] test"
    assert bodies(hook)[0]["kind"] == "test"
    assert command("notify", "list")["rules"][0]["on"] == ["health"]
