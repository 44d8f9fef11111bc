"""Passwords as argon2id hashes. Checking one takes memory and time on purpose, so few are checked at once."""

import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

SHORTEST, LONGEST = 12, 256
AT_ONCE = 2
PATIENCE_S = 5.0


class TooBusy(Exception):
    """More passwords wait to be checked than this machine gets to."""


class Passwords:
    """Makes and checks hashes. OWASP's second argon2id profile and more: 19 MiB, two passes."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=3, memory_cost=32 * 1024, parallelism=1, type=Type.ID)
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        # Checked for a name without an account, so that the time taken tells nobody which names there are.
        self._nobodys = self._hasher.hash("no account has this password")

    def hash(self, password: str) -> str:
        """The hash of a new password. Raises ValueError with what is wrong with it."""
        wrong = what_is_wrong(password)
        if wrong:
            raise ValueError(wrong)
        return self._hasher.hash(password)

    def check(self, password: str, held: str | None) -> bool:
        """Whether this is the password with that hash. held: None without an account. Raises TooBusy."""
        if not self._slots.acquire(timeout=PATIENCE_S):
            raise TooBusy
        try:
            return self._hasher.verify(held or self._nobodys, password[: LONGEST + 1]) and held is not None
        except (VerificationError, InvalidHashError):
            return False
        finally:
            self._slots.release()


def what_is_wrong(password: str) -> str:
    """Why a password may not be one; empty if it may."""
    if len(password) < SHORTEST:
        return f"a password has {SHORTEST} characters or more"
    if len(password) > LONGEST:
        return f"a password has {LONGEST} characters at most"
    return "a password needs more than one or two different characters" if len(set(password)) < 4 else ""
