"""Notifications at work: look what happened, then send what is due."""

import json
import time
from uuid import uuid4

import structlog
from sqlalchemy import Connection

from config.gateways.notifications import NotificationRule
from config.settings import Settings
from dicom_node.gateways.notifications import mail, webhook
from dicom_node.gateways.notifications.gathering import Gathering, Problems, channels
from dicom_node.gateways.verdict import AttemptOutcome, Verdict
from dicom_node.waits import doubling_s
from storage import notifications
from storage.database import Database
from storage.notifications import Notification, NotificationState

log = structlog.get_logger()

FIRST_RETRY_S, LONGEST_RETRY_S = 30.0, 3600.0
GIVE_UP_S = 48 * 3600.0
"""A message that has not got through for this long is given up: it is no longer news."""
MOST_REFUSALS = 3
LEASE_S = 300.0
AT_ONCE = 20


class Notifier:
    """Makes and sends the messages of all rules. problems: the words of `/health`."""

    def __init__(self, settings: Settings, database: Database, problems: Problems) -> None:
        self._settings = settings
        self._database = database
        self._gathering = Gathering(settings, database, problems)

    def step(self, now: float) -> None:
        """Make the messages of what happened, and send what is due."""
        self._gathering.gather(now)
        started = time.monotonic()
        for _ in range(AT_ONCE):
            if not self.send_one(now + time.monotonic() - started):
                return

    def send_one(self, now: float) -> bool:
        """Send the next message that is due. False if there is none."""
        with self._database.read() as tx:
            if not notifications.has_work(tx, now):
                return False
        with self._database.transaction() as tx:
            one = notifications.claim(tx, now, LEASE_S)
        if one is None:
            return False
        started = time.monotonic()
        verdict = self._attempt(one, now)
        self._settle(one, verdict, now + time.monotonic() - started)
        return True

    def _attempt(self, one: Notification, now: float) -> Verdict:
        rule = next((rule for rule in self._settings.notifications if rule.name == one.rule), None)
        if rule is None or one.channel not in channels(rule):
            return Verdict(AttemptOutcome.WITHHELD, "the settings no longer have this rule")
        return send(self._settings, rule, one, now)

    def _settle(self, one: Notification, verdict: Verdict, now: float) -> None:
        refusals = one.refusals + (verdict.outcome == AttemptOutcome.REFUSED)
        over = verdict.outcome == AttemptOutcome.WITHHELD or refusals >= MOST_REFUSALS
        over = over or abs(now - one.created_at) > GIVE_UP_S
        with self._database.transaction() as tx:
            if verdict.outcome == AttemptOutcome.DELIVERED:
                self._end(tx, one, NotificationState.SENT, now, verdict, refusals)
            elif over:
                self._end(tx, one, NotificationState.FAILED, now, verdict, refusals)
            else:
                due = now + doubling_s(FIRST_RETRY_S, one.attempts, LONGEST_RETRY_S)
                notifications.settle(tx, one, NotificationState.PENDING, now, verdict.text, refusals, due)
        if verdict.outcome != AttemptOutcome.DELIVERED:
            log.warning("notification not sent", rule=one.rule, channel=one.channel, reason=verdict.text, given_up=over)

    @staticmethod
    def _end(
        tx: Connection, one: Notification, to: NotificationState, now: float, said: Verdict, refusals: int
    ) -> None:
        patient = "patient" in json.loads(one.content)
        if notifications.settle(tx, one, to, now, said.text or None, refusals):
            notifications.note_end(tx, one, to, now, {"reason": said.text, "patient_data": patient})


def send(settings: Settings, rule: NotificationRule, one: Notification, now: float) -> Verdict:
    """One attempt at one message."""
    node = settings.receiver.ae_title
    if one.channel == "mail":
        return mail.send(mail.compose(one, settings.mail, rule.mail_to, node), settings.mail, rule.mail_to)
    return webhook.send(webhook.compose(one, node), one.uid, rule, settings.sender, now)


def test_message(rule: NotificationRule, channel: str, now: float) -> Notification:
    """A message that says that it is a test; it is in no table."""
    content = {"what": "This is a test of the node's notifications.", "to_do": "nothing"}
    return Notification(0, str(uuid4()), rule.name, channel, "test", json.dumps(content), now, 1, 0)
