"""What the receiver relies on in pynetdicom 3.0.4 and in socketserver; a new version that changes it shows here."""

import inspect
import socketserver

import pynetdicom
from pynetdicom.transport import AssociationServer

from dicom_node.receiver.server import Server


def test_this_is_the_version_that_was_read() -> None:
    assert pynetdicom.__version__ == "3.0.4"


def test_the_server_is_socketservers_and_binds_when_made() -> None:
    assert issubclass(AssociationServer, socketserver.TCPServer)
    assert "bind_and_activate=True" in inspect.getsource(AssociationServer.__init__)


def test_our_hooks_replace_the_servers_own() -> None:
    for name in ("get_request", "process_request", "server_bind", "service_actions", "shutdown"):
        assert name in vars(AssociationServer)
        assert name in vars(Server)
    assert "handle_error" in vars(socketserver.BaseServer)


def test_the_accept_loop_calls_get_request_then_verify_then_process() -> None:
    source = inspect.getsource(vars(socketserver.BaseServer)["_handle_request_noblock"])
    assert source.index("get_request") < source.index("verify_request") < source.index("process_request")
    # An error in accepting is skipped, which is why ours must not return at once.
    assert "except OSError" in source


def test_pynetdicoms_own_get_request_still_shakes_hands_in_the_accept_loop() -> None:
    assert "wrap_socket" in inspect.getsource(AssociationServer.get_request)
