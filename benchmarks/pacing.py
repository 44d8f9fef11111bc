"""A network that carries no more than a rate: a TCP proxy between a sender and a receiver on this machine."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

CHUNK = 65536


class PacedProxy:
    """Passes each connection's bytes to the receiver at a rate, and its answers back at once.

    The n-th byte passes n / bytes_per_s after the connection's first one, or as soon as the receiver takes it: a
    receiver that fell behind is given what has queued up as fast as it takes that, as from a scanner.
    """

    def __init__(self, target_port: int, bytes_per_s: float) -> None:
        self._target_port = target_port
        self._bytes_per_s = bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sender, _ = self._listener.accept()
            except OSError:
                return
            receiver = socket.create_connection(("127.0.0.1", self._target_port))
            for end in (sender, receiver):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass, args=(sender, receiver, self._bytes_per_s), daemon=True).start()
            threading.Thread(target=self._pass, args=(receiver, sender, None), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, bytes_per_s: float | None) -> None:
        """Pass everything that comes, until one side closes; then close the other's half."""
        begun, passed = 0.0, 0
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                begun, passed = begun or time.monotonic(), passed + len(data)
                if bytes_per_s:
                    time.sleep(max(0.0, begun + passed / bytes_per_s - time.monotonic()))
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def paced(target_port: int, bytes_per_s: float | None) -> Iterator[int]:
    """The port to send to: that of a proxy, or the receiver's own if there is no limit."""
    if not bytes_per_s:
        yield target_port
        return
    proxy = PacedProxy(target_port, bytes_per_s)
    try:
        yield proxy.port
    finally:
        proxy.close()
