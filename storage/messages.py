"""What deliveries say to destinations that take no DICOM objects: composed once, and the same bytes at each attempt.

A message names the patient, as the files do. With a pseudonym key the index must not: messages are encrypted then.
"""

import hashlib
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, delete, insert, select

from storage.errors import CorruptFile
from storage.models import messages

NONCE_BYTES = 12


@dataclass(frozen=True)
class Message:
    """What a destination is sent. content_type: as MIME types are written.

    key: by which the destination's own protocol tells a repeated message from a new one, such as MSH-10.
    """

    content: bytes
    content_type: str
    key: str

    @property
    def sha256(self) -> str:
        """SHA-256 hex of the content."""
        return hashlib.sha256(self.content).hexdigest()


class Messages:
    """The kept messages of an index. pseudonym_key: that of the settings; empty: messages are readable."""

    def __init__(self, pseudonym_key: str) -> None:
        key = hashlib.sha256(b"messages:" + pseudonym_key.encode()).digest()
        self._cipher = AESGCM(key) if pseudonym_key else None

    def keep(self, tx: Connection, delivery_id: int, kind: str, message: Message, now: float) -> None:
        """Keep what a delivery will send, in place of one that was made for another kind of destination."""
        tx.execute(delete(messages).where(messages.c.delivery_id == delivery_id))
        nonce, content = None, message.content
        if self._cipher is not None:
            nonce = os.urandom(NONCE_BYTES)
            content = self._cipher.encrypt(nonce, content, _bound_to(delivery_id))
        values = {
            "delivery_id": delivery_id,
            "kind": kind,
            "key": message.key,
            "content_type": message.content_type,
            "content": content,
            "nonce": nonce,
            "sha256": message.sha256,
            "made_at": now,
        }
        tx.execute(insert(messages).values(values))

    def kept(self, tx: Connection, delivery_id: int, kind: str) -> Message | None:
        """What a delivery sends to this kind of destination; None if nothing was composed yet.

        Raises CorruptFile if it is not what was composed, or cannot be decrypted with the key.
        """
        row = tx.execute(select(messages).where(messages.c.delivery_id == delivery_id)).first()
        if row is None or row.kind != kind:
            return None
        message = Message(self._opened(delivery_id, row.content, row.nonce), row.content_type, row.key)
        if message.sha256 != row.sha256:
            raise CorruptFile(f"the message of delivery {delivery_id} is not what was composed")
        return message

    def _opened(self, delivery_id: int, content: bytes, nonce: bytes | None) -> bytes:
        if nonce is None:
            return content
        if self._cipher is None:
            raise CorruptFile(f"the message of delivery {delivery_id} is encrypted, and there is no pseudonym key")
        try:
            return self._cipher.decrypt(nonce, content, _bound_to(delivery_id))
        except InvalidTag:
            raise CorruptFile(f"the message of delivery {delivery_id} cannot be decrypted with this key") from None


def _bound_to(delivery_id: int) -> bytes:
    """What the encryption authenticates besides the content: no message can be put in another's place."""
    return str(delivery_id).encode()
