"""What systemd is told of the node: that it is ready, that it lives, that it stops. See sd_notify(3).

If NOTIFY_SOCKET is not in the environment, as in a shell or a container, nobody is told anything.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable


class ServiceManager:
    """The service manager that started this process, if one did.

    address: of its socket; empty: there is none. A leading "@" stands for the zero byte of an abstract name.
    watchdog_s: a service that is silent for longer counts as dead; 0: it may be silent.
    """

    def __init__(
        self, address: str = "", watchdog_s: float = 0.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._every_s = watchdog_s / 3
        self._monotonic = monotonic
        self._said = ""
        self._is_ready = False
        self._alive_at = float("-inf")

    @classmethod
    def of_environment(cls) -> "ServiceManager":
        """The one that the environment names. Its variables are taken away: no child may speak for the node."""
        address, usec, pid = (os.environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        meant = usec.isdigit() and pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 1e6 if meant else 0.0)

    def ready(self) -> None:
        """The node does its work. Told once."""
        if not self._is_ready:
            self._is_ready = True
            self._tell("READY=1")

    def says(self, state: str) -> None:
        """One line for `systemctl status`; told when it changes."""
        if state != self._said:
            self._said = state
            self._tell(f"STATUS={state}")

    def alive(self) -> None:
        """Call it often: tells the watchdog, if there is one, three times within its patience."""
        now = self._monotonic()
        if self._every_s and now - self._alive_at >= self._every_s:
            self._alive_at = now
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The node ends what is under way."""
        self._tell("STOPPING=1")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        # A service manager that is away or busy must not stop the node.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)
