"""How often somebody may try a password.

Guessing is slowed down by where it comes from: one account from one address, and all accounts from one address. No
number of wrong passwords locks an account: an attacker could keep its owner out with that.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

FREE_TRIES, FREE_TRIES_OF_ADDRESS = 5, 30
LONGEST_WAIT_S = 900.0
FORGOTTEN_AFTER_S = 3600.0
MOST_KEPT = 20_000


class LoginThrottle:
    """Counts wrong passwords. clock: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def wait_s(self, name: str, address: str) -> float:
        """Seconds until this address may try this account again; 0 if now."""
        with self._lock:
            return max(self._wait(key, free) for key, free in self._keys(name, address))

    def failed(self, name: str, address: str) -> None:
        """It was the wrong password."""
        with self._lock:
            for key, _ in self._keys(name, address):
                self._failures[key] = (self._count(key) + 1, self._clock())
                self._failures.move_to_end(key)
            while len(self._failures) > MOST_KEPT:
                self._failures.popitem(last=False)

    def succeeded(self, name: str, address: str) -> None:
        """It was the right one: what this account did wrong from there is forgotten, what the address did is not."""
        with self._lock:
            self._failures.pop(self._keys(name, address)[0][0], None)

    def _keys(self, name: str, address: str) -> list[tuple[tuple[str, str], int]]:
        whence = _network(address)
        return [((name.casefold()[:64], whence), FREE_TRIES), (("", whence), FREE_TRIES_OF_ADDRESS)]

    def _count(self, key: tuple[str, str]) -> int:
        count, last = self._failures.get(key, (0, 0.0))
        return count if self._clock() - last < FORGOTTEN_AFTER_S else 0

    def _wait(self, key: tuple[str, str], free: int) -> float:
        count = self._count(key)
        if count < free:
            return 0.0
        # Doubles with each failure beyond the free ones.
        wait = min(2.0 ** min(count - free, 20), LONGEST_WAIT_S)
        return max(0.0, self._failures[key][1] + wait - self._clock())


def _network(address: str) -> str:
    """An address, or the /64 of an IPv6 one: whoever has one address of it has all."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(int(parsed) >> 64) + "/64" if isinstance(parsed, IPv6Address) else address
