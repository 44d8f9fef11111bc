"""A mail server in a process of its own: aiosmtpd with STARTTLS and a login. It keeps each mail in a folder.

The file `mode` in the folder says what it does with a mail: "take", "busy" (451), "refuse" (550), or "cut": it takes
the mail and ends the connection without an answer.

python -m tests.mail_server PORT FOLDER CERTIFICATE KEY
"""

import contextlib
import ssl
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from tests.programs import free_port, running

USER, PASSWORD = "node", "tr0ub4dor"


class Box:
    """Handles what aiosmtpd receives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody@"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        mode = (self._folder / "mode").read_text()
        if mode == "busy":
            return "451 come later"
        if mode == "refuse":
            return "550 not here"
        number = len(list(self._folder.glob("*.eml")))
        (self._folder / f"{number:03}.eml").write_bytes(envelope.content)
        if mode == "cut":
            server.transport.abort()
        return "250 OK"


def main(port: str, folder: str, certificate: str, key: str) -> None:
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import AuthResult, LoginPassword

    def knows(server, session, envelope, mechanism, given):
        right = isinstance(given, LoginPassword) and (given.login, given.password) == (
            USER.encode(),
            PASSWORD.encode(),
        )
        return AuthResult(success=right)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    Controller(
        Box(Path(folder)), hostname="127.0.0.1", port=int(port), tls_context=context, require_starttls=True,
        authenticator=knows, auth_required=True,
    ).start()  # fmt: skip
    threading.Event().wait()


@dataclass
class MailServer:
    """The running server."""

    port: int
    folder: Path

    def say(self, mode: str) -> None:
        """What to do with mails from now on."""
        (self.folder / "mode").write_text(mode)

    @property
    def mails(self) -> list[EmailMessage]:
        return [message_from_bytes(raw, policy=policy.default) for raw in self.raw]

    @property
    def raw(self) -> list[bytes]:
        return [file.read_bytes() for file in sorted(self.folder.glob("*.eml"))]


@contextlib.contextmanager
def mail_server(folder: Path, certificate: Path, key: Path) -> Iterator[MailServer]:
    """A server in a process of its own."""
    made = MailServer(free_port(), folder)
    made.say("take")
    command = [sys.executable, "-m", "tests.mail_server", str(made.port), str(folder), str(certificate), str(key)]
    with running(command, made.port, Path(__file__).resolve().parents[1]):
        yield made


if __name__ == "__main__":
    main(*sys.argv[1:])
