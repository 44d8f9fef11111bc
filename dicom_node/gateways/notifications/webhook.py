"""A notification as a POST with JSON: the same body at each attempt, signed, with an ID that tells a repeated one.

Idempotency-Key: the message's ID, also "id" in the body
Dicom-Node-Timestamp: Unix seconds of the attempt
Dicom-Node-Signature: sha256=hex(HMAC-SHA-256(secret, timestamp "." body))
"""

import hashlib
import hmac
import json

from config.gateways.http import HttpDestination
from config.gateways.notifications import NotificationRule
from config.settings import SenderSettings
from dicom_node.gateways.identities import NoSecret, read_secret
from dicom_node.gateways.verdict import AttemptOutcome, Verdict
from storage.notifications import Notification


def compose(one: Notification, node: str) -> bytes:
    """The body."""
    whole = {"id": one.uid, "kind": one.kind, "rule": one.rule, "node": node, "at": one.created_at}
    return json.dumps({**whole, **json.loads(one.content)}, ensure_ascii=False, sort_keys=True).encode()


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What the receiver computes as well."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def send(body: bytes, uid: str, rule: NotificationRule, sender: SenderSettings, now: float) -> Verdict:
    """One attempt."""
    try:
        from dicom_node.gateways.http import HttpPeer, NoAnswer
    except ModuleNotFoundError:
        return Verdict(AttemptOutcome.TRANSIENT, "httpx is not installed: pip install 'dicom-node[gateways]'")
    peer = HttpDestination(name=rule.name, url=rule.webhook, tls_authorities=rule.tls_authorities)
    try:
        timestamp = str(int(now))
        signed = signature(read_secret(rule.credentials, rule.credentials_variable), timestamp, body)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Idempotency-Key": uid,
            "Dicom-Node-Timestamp": timestamp,
            "Dicom-Node-Signature": signed,
        }
        return HttpPeer(peer, sender).exchange("POST", rule.webhook, body, headers).verdict
    except NoSecret as error:
        return Verdict(AttemptOutcome.TRANSIENT, str(error))
    except NoAnswer as error:
        return error.verdict
