"""`dicom-node web`: accounts, what `config check` refuses, and the process beside a running node."""

import io
import json
import os
import re
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
import structlog
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from dicom_node.cli.app import app
from dicom_node.demo.pages import Pages
from dicom_node.receiver.certificates import Authority
from tests.programs import free_port, listening, wait_for
from tests.running import Node, running
from tests.web_pages import PASSWORD, Visitor

BEYOND = '[web]\nport = 8443\nhost = "0.0.0.0"\n'


class Site:
    """A data folder, and commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str, typed: str = "", status: int = 0) -> Result:
        """Run a command that must end with this status."""
        environment = {"DICOM_NODE_DATA_DIR": str(self.folder)}
        done = CliRunner().invoke(app, list(arguments), input=typed, env=environment)
        structlog.reset_defaults()
        assert done.exit_code == status, (done.output, done.exception)
        return done


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "node")


def test_accounts_are_added_changed_and_removed_and_each_act_is_audited(site: Site) -> None:
    site.run("web", "user", "add", "ada", "--role", "reader", "--role", "viewer", typed=PASSWORD + "\n")
    site.run("web", "user", "role", "ada", "--role", "operator")
    site.run("web", "user", "passwd", "ada", typed="another good one\n")
    [found] = json.loads(site.run("web", "user", "list", "--json").stdout)
    assert (found["name"], found["roles"]) == ("ada", ["operator"])
    assert "argon2" not in str(found)
    site.run("web", "user", "remove", "ada")
    assert json.loads(site.run("web", "user", "list", "--json").stdout) == []
    trail = json.loads(site.run("audit", "--event", "operator", "--json").stdout)
    assert [row["event"] for row in trail] == [
        f"operator.web-user-{what}" for what in ("added", "roles", "password", "removed")
    ]
    assert all(row["detail"]["account"] == "ada" and row["detail"]["user"] for row in trail)
    assert PASSWORD not in str(trail)


@pytest.mark.parametrize(
    ("name", "role", "password", "says"),
    [
        ("ada", "viewer", "short", "12 characters or more"),
        ("ada", "viewer", "aaaaaaaaaaaaaaaa", "different characters"),
        ("ada", "king", PASSWORD, "no role 'king'"),
        ("../ada", "viewer", PASSWORD, "letters, digits"),
        ("<b>", "viewer", PASSWORD, "letters, digits"),
        ("", "viewer", PASSWORD, "letters, digits"),
    ],
)
def test_an_account_that_will_not_do_is_refused_in_words(
    site: Site, name: str, role: str, password: str, says: str
) -> None:
    done = site.run("web", "user", "add", name, "--role", role, typed=password + "\n", status=1)
    assert says in str(done.exception)


def test_a_name_that_is_taken_or_unknown_is_refused(site: Site) -> None:
    site.run("web", "user", "add", "ada", "--role", "viewer", typed=PASSWORD + "\n")
    taken = site.run("web", "user", "add", "ada", "--role", "viewer", typed=PASSWORD + "\n", status=1)
    assert "already" in str(taken.exception)
    unknown = site.run("web", "user", "passwd", "eve", typed=PASSWORD + "\n", status=1)
    assert "'eve'" in str(unknown.exception)


def test_a_password_is_no_argument(site: Site) -> None:
    assert "password" not in site.run("web", "user", "add", "--help").output.lower().replace("its password", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BEYOND, "tls_certificate and tls_key, or behind_proxy"),
        (BEYOND, "name what browsers call this machine"),
        (BEYOND + 'behind_proxy = ["10.0.0.1"]\nnames = ["node.example"]\n', "nobody may log in yet"),
        (BEYOND + 'tls_certificate = "web.pem"\n', "belong together"),
        ('[web]\nport = 8443\ntls_certificate = "no.pem"\ntls_key = "no.key"\n', "cannot be read"),
        ("[web]\nport = 11112\n", "already that of receiver.port"),
        ('[web]\nport = 1\nbehind_proxy = ["::1"]\ntls_certificate = "a"\ntls_key = "b"\n', "the proxy does TLS"),
    ],
)
def test_pages_that_others_could_read_are_refused_by_config_check(site: Site, text: str, says: str) -> None:
    site.folder.mkdir()
    file = site.folder / "node.toml"
    file.write_text(text)
    done = site.run("config", "check", str(file), status=78)
    assert says in done.output.replace("\n", " ") + done.stderr.replace("\n", " ")


def test_pages_beyond_this_machine_are_fine_with_tls_and_an_account(site: Site) -> None:
    site.folder.mkdir()
    certificate, key = Authority("site", time.time()).issue(site.folder, "web")
    file = site.folder / "node.toml"
    file.write_text(BEYOND + f'names = ["node.example"]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n')
    site.run("web", "user", "add", "ada", "--role", "viewer", typed=PASSWORD + "\n")
    site.run("config", "check", str(file))


def test_the_pages_run_beside_a_node_and_come_back_when_their_process_dies(tmp_path: Path) -> None:
    """As `dicom-node demo --keep` leaves them."""
    pages, said = Pages(tmp_path), io.StringIO()
    more = {"DICOM_NODE_WEB__MONITORING": "true", "DICOM_NODE_WORKER__DEVICES": '["cpu"]'}
    node = Node(tmp_path, free_port(), **pages.prepare(), **more)
    with running(node):
        wait_for(lambda: listening(pages.port), 60, "the pages listen")
        stays = threading.Thread(target=pages.stay, args=(Console(file=said), node.process))
        stays.start()
        wait_for(lambda: "Ctrl-C" in said.getvalue(), 10, "it is said how to open them")
        found = re.search(rf"http://localhost:{pages.port}\n *name (\S+), password (\S+);", said.getvalue())
        assert found
        with Visitor(pages.port) as visitor:
            assert visitor.log_in(found[1], found[2]).status_code == 303
            assert "The node does not run" not in visitor.get("/").text
            assert visitor.get("/health").text == "ok\n"
            assert "dicom_node_receivers 1.0" in visitor.get("/metrics").text
            pid = process_of(node, "web")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: process_of(node, "web") not in (None, pid) and listening(pages.port), 60, "they are back")
            assert visitor.get("/").status_code == 200  # the login outlived the process
    stays.join(10)
    assert not stays.is_alive()
    assert stat.S_IMODE((tmp_path / "web.key").stat().st_mode) == 0o600


def process_of(node: Node, name: str) -> int | None:
    """The process of a running node that has this command."""
    assert node.process is not None
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    for child in children:
        try:
            if Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[3] == name.encode():
                return int(child)
        except (OSError, IndexError):
            continue
    return None
