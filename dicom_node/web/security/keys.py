"""The secret of this machine's pages: it signs cookies and makes the tokens of forms."""

import hashlib
import hmac
import os
from pathlib import Path

from itsdangerous import BadSignature, TimestampSigner

KEY_FILE = "web.key"
KEY_BYTES = 32


class Keys:
    """Signs and checks. secret: KEY_BYTES random bytes."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._signer = TimestampSigner(secret, salt="dicom-node login", digest_method=hashlib.sha256)

    @classmethod
    def of(cls, data_dir: Path) -> "Keys":
        """The key in the data folder, made if there is none; only the node's user may read it."""
        path = data_dir / KEY_FILE
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(os.urandom(KEY_BYTES))
        except FileExistsError:
            path.chmod(0o600)
        secret = path.read_bytes()
        if len(secret) < KEY_BYTES:  # a crash between making and writing
            path.unlink()
            return cls.of(data_dir)
        return cls(secret)

    def sign(self, token: str) -> str:
        """A token with the time and a signature."""
        return self._signer.sign(token).decode()

    def token(self, signed: str, max_age_s: float) -> str | None:
        """What was signed, if it was signed here and not longer ago than that."""
        try:
            return self._signer.unsign(signed, max_age=int(max_age_s)).decode()
        except BadSignature:
            return None

    def form_token(self, of: str) -> str:
        """What a form must bring back to be one that this node gave to this visitor."""
        return hmac.new(self._secret, b"form " + of.encode(), hashlib.sha256).hexdigest()

    def is_form_token(self, given: str, of: str) -> bool:
        """Compared in constant time."""
        return hmac.compare_digest(given.encode(), self.form_token(of).encode())
