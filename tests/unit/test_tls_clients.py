"""The one place where the node's clients get their TLS from."""

import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from dicom_node.scu import tls
from dicom_node.scu.tls import client_context, connect

ROOT = Path(__file__).resolve().parents[2]


def test_no_other_module_makes_a_context_for_a_client() -> None:
    makers = {"create_default_context", "PROTOCOL_TLS_CLIENT", "_create_unverified_context"}
    files = [path for package in ("dicom_node", "storage", "inference") for path in (ROOT / package).rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in files if any(word in path.read_text() for word in makers)]
    assert found == ["dicom_node/scu/tls.py"]


def test_a_peer_that_sends_its_handshake_byte_by_byte_is_given_up() -> None:
    listening, given_up = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip() -> None:
        line, _ = listening.accept()
        line.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB, which would take 27 minutes
        while not given_up.wait(0.1):
            line.send(b"\x02")

    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    with pytest.raises(TimeoutError):
        connect("127.0.0.1", listening.getsockname()[1], client_context(None), 0.5)
    given_up.set()
    dripping.join()
    listening.close()


def test_what_the_node_asks_of_a_peer() -> None:
    context = client_context(None, ciphers="ECDHE+AESGCM")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert all("GCM" in one["name"] for one in context.get_ciphers() if one["protocol"] == "TLSv1.2")


def test_all_addresses_of_a_host_share_the_time_and_a_silent_one_leaves_some(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    class Line(socket.socket):
        """Addresses but the last one say nothing for as long as one waits."""

        def connect(self, address: tuple[str, int]) -> None:  # type: ignore[override]
            if address[1] != listening.getsockname()[1]:
                waited.append(float(self.gettimeout() or 1e9))
                raise TimeoutError
            super().connect(address)

    listening = socket.create_server(("127.0.0.1", 0))
    ports = (1, 2, listening.getsockname()[1])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(socket, "socket", Line)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(tls, "time", SimpleNamespace(monotonic=lambda: sum(waited)))
    with listening, connect("pacs", 104, None, 9.0) as line:
        assert line.getpeername() == listening.getsockname() and line.gettimeout() == 9.0
    assert waited == [3.0, 3.0]
