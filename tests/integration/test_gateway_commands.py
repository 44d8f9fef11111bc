"""The commands, settings and pages about destinations that are no DICOM peers."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from config.gateways.hl7 import Hl7Destination
from config.gateways.stow import StowDestination
from config.load import read
from config.settings import Destination, Settings
from dicom_node.cli.app import app
from dicom_node.receiver.certificates import Authority
from dicom_node.runtime.certificate_expiry import expiries
from tests import stow_server as server
from tests.outbox import make_node
from tests.web_pages import serving

STOW = '[[destinations]]\nkind = "stow"\nname = "archive"\nurl = "{url}"\n'
PACS = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 9\n'


def run(file: Path, *arguments: str):
    result = CliRunner().invoke(app, [*arguments, "--config", str(file)])
    return result.exit_code, result.output + str(result.exception or "")


@pytest.fixture
def configured(tmp_path):
    """A configuration with a PACS and an archive that answers, and a result in the index."""
    with server.archive() as archive:
        file = tmp_path / "node.toml"
        file.write_text(f'data_dir = "{tmp_path / "node"}"\n{PACS}{STOW.format(url=archive.url)}')
        node = make_node(tmp_path / "node", StowDestination(kind="stow", name="archive", url=archive.url))
        node.add_result(time.time(), ["report", "summary"])
        yield file, node, archive


def test_the_list_names_what_is_no_dicom_peer(configured):
    file, _, archive = configured
    code, said = run(file, "gateway", "list", "--json")
    assert code == 0
    assert json.loads(said) == [{"name": "archive", "kind": "stow", "address": archive.url, "gets_results": "yes"}]


def test_a_preview_shows_what_would_go_sends_nothing_and_is_audited(configured):
    file, node, archive = configured
    code, said = run(file, "gateway", "preview", "archive", "1")
    assert code == 0
    assert all(one.sop_instance_uid in said for one in node.objects())
    assert not archive.requests and node.states() == {"archive": "PENDING"}
    (row,) = node.audited("operator.read")
    assert (row["result_id"], row["detail"]["destination"]) == (1, "archive")
    code, said = run(file, "gateway", "preview", "archive", "99")
    assert code == 1 and "no result 99" in said


def test_the_test_asks_and_tells_nothing(configured):
    file, _, archive = configured
    code, said = run(file, "gateway", "test", "archive")
    assert code == 0 and "HTTP status 200" in said
    assert not archive.held


def test_one_that_does_not_answer_is_said_so(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text(STOW.format(url="http://127.0.0.1:9"))
    code, said = run(file, "gateway", "test", "archive")
    assert code == 3 and "cannot be connected to: nothing listens at its port" in said
    file.write_text(STOW.format(url="https://no-such-host.invalid"))
    code, said = run(file, "gateway", "test", "archive")
    assert code == 3 and "the name of its host is not known here" in said


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[mail]\nhost = "mail.example"\nuser = "node"\ncredentials = "FILE"\n', "mail.credentials"),
        (
            '[[notifications]]\nname = "it"\non = ["health"]\nwebhook = "https://board/"\ncredentials = "FILE"\n',
            "notifications[0].credentials",
        ),
        ('[audit.syslog]\nhost = "127.0.0.1"\ntls_authorities = "FILE"\n', "audit.syslog.tls_authorities"),
        (
            '[[worklists]]\nname = "ris"\nae_title = "W"\nhost = "127.0.0.1"\nport = 9\nlabel = "AI"\ntls = true\n'
            'tls_authorities = "FILE"\n',
            "worklists[0].tls_authorities",
        ),
        (
            '[[destinations]]\nkind = "fhir"\nname = "fhir"\nurl = "https://fhir.example"\npatient = "contained"\n'
            'auth = "smart"\nuser = "node"\nkey_id = "1"\ntoken_url = "https://login.example"\nkey = "FILE"\n',
            "destinations[0].key",
        ),
    ],
)
def test_a_file_that_is_not_there_is_a_mistake(tmp_path, text, key):
    file = tmp_path / "node.toml"
    file.write_text(text.replace("FILE", str(tmp_path / "missing.pem")))
    done = CliRunner().invoke(app, ["config", "check", str(file)])
    assert done.exit_code == 78
    assert f"{key}: {tmp_path / 'missing.pem'} cannot be read: No such file or directory" in done.output


def test_a_file_that_holds_no_certificate_or_key_and_a_variable_that_is_not_set_are_mistakes(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN", "secret")
    for name in ("ca.pem", "node.key"):
        (tmp_path / name).write_text("no PEM\n")
    file = tmp_path / "node.toml"
    stow = '[[destinations]]\nkind = "stow"\nname = "a"\nurl = "https://a.example"\nauth = "bearer"\n'
    hl7 = '[[destinations]]\nkind = "hl7"\nname = "ris"\nhost = "h"\nport = 9\ntls = true\n'
    hl7 += f'tls_authorities = "{tmp_path / "ca.pem"}"\ntls_key = "{tmp_path / "node.key"}"\n'
    file.write_text(f'{stow}credentials_variable = "NO_SUCH_TOKEN"\n{hl7}')
    said = CliRunner().invoke(app, ["config", "check", str(file)]).output
    assert "destinations[0].credentials_variable: the environment variable NO_SUCH_TOKEN is not set here" in said
    assert f"tls_authorities: {tmp_path / 'ca.pem'} holds no certificate in PEM form" in said
    assert f"tls_key: {tmp_path / 'node.key'} holds no private key without a password in PEM form" in said
    file.write_text(f'{stow}credentials_variable = "TOKEN"\n')
    assert CliRunner().invoke(app, ["config", "check", str(file)]).exit_code == 0


@pytest.mark.parametrize(
    "text",
    [
        '[[destinations]]\nkind = "hl7"\nname = "ris"\nhost = "h"\nport = 9\n',
        '[[worklists]]\nname = "ris"\nae_title = "W"\nhost = "h"\nport = 9\nlabel = "AI"\n',
    ],
)
def test_files_for_tls_without_tls_are_a_mistake(tmp_path, text):
    (tmp_path / "ca.pem").write_text("")
    file = tmp_path / "node.toml"
    said = []
    for tls in ("false", "true"):
        file.write_text(f'{text}tls_authorities = "{tmp_path / "ca.pem"}"\ntls = {tls}\n')
        said.append(CliRunner().invoke(app, ["config", "check", str(file)]).output)
    assert "tls_authorities: is not used, and nothing is encrypted, without tls = true" in said[0]
    assert "nothing is encrypted" not in said[1]


def test_a_worklist_that_names_no_pacs_is_told_which_there_are(tmp_path):
    file = tmp_path / "node.toml"
    worklist = (
        '[[worklists]]\nname = "ris"\nae_title = "W"\nhost = "127.0.0.1"\nport = 9\nlabel = "AI"\nfetch_from = "no"\n'
    )
    file.write_text(PACS + worklist)
    done = CliRunner().invoke(app, ["config", "check", str(file)])
    assert "'no' is not the name of a DICOM destination; there are: pacs" in done.output


def test_each_kind_is_asked_by_its_own_command(configured):
    file, *_ = configured
    assert "dicom-node gateway test archive" in run(file, "echo", "archive")[1]
    assert "dicom-node echo pacs" in run(file, "gateway", "test", "pacs")[1]
    assert "destinations: pacs, archive" in run(file, "gateway", "test", "nobody")[1]


def test_the_peers_page_shows_and_asks_it_too(tmp_path):
    with server.archive() as archive:
        stow = StowDestination(kind="stow", name="archive", url=archive.url)
        pacs = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=9)
        with serving(tmp_path, destinations=(pacs, stow)) as pages:
            operator = pages.logged_in("operator")
            page = operator.get("/peers").text
            assert archive.url in page and "127.0.0.1:9" in page
            assert '<span class="mono">DICOMweb</span>' in page and '<span class="mono">PACS</span>' in page
            assert "HTTP status 200" in operator.fill("/peers/echo", destination="archive").text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('kind = "stow"\nname = "a"\n', "destinations[0].url"),
        ('kind = "stow"\nname = "a"\nurl = "https://h"\nport = 1\n', "destinations[0].port"),
        ('kind = "stow"\nname = "a"\nurl = "https://user:secret@h"\n', "destinations[0].url"),
        ('kind = "stow"\nname = "a"\nurl = "https://h/x?y=z"\n', "destinations[0].url"),
        ('kind = "stow"\nname = "a"\nurl = "http://pacs.example"\n', "destinations[0].url"),
        ('kind = "stow"\nname = "a"\nurl = "https://h"\nauth = "basic"\nuser = "u"\n', "destinations[0].auth"),
        ('kind = "stow"\nname = "a"\nurl = "https://h"\nauth = "bearer"\n', "destinations[0].auth"),
        (
            'kind = "stow"\nname = "a"\nurl = "https://h"\nauth = "oauth2"\nuser = "u"\ncredentials = "f"\n',
            "destinations[0].auth",
        ),
        ('kind = "stow"\nname = "a"\nurl = "https://h"\ntls_key = "k"\n', "destinations[0].tls_key"),
        ('kind = "fax"\nname = "a"\n', "destinations[0].kind"),
        ('name = "a"\nurl = "https://h"\nae_title = "A"\nhost = "h"\nport = 1\n', "destinations[0].url"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_line(tmp_path, text, key):
    file = tmp_path / "node.toml"
    file.write_text("[[destinations]]\n" + text)
    settings, mistakes = read(file)
    assert key in [one.key for one in mistakes] and all(one.line for one in mistakes)
    assert settings is None or mistakes
    assert "secret" not in str(mistakes)


def test_a_library_that_is_missing_is_named_before_the_node_starts(tmp_path, monkeypatch):
    file = tmp_path / "node.toml"
    file.write_text(STOW.format(url="https://h"))
    monkeypatch.setattr("dicom_node.cli.configure.find_spec", lambda name: None)
    code, said = run(file, "config", "check")
    assert code != 0 and "pip install 'dicom-node[gateways]'" in said


def test_the_end_of_its_certificates_is_watched(tmp_path):
    certificate, key = Authority("ca", time.time()).issue(tmp_path, "node", days=10)
    stow = StowDestination(
        kind="stow", name="archive", url="https://h", tls_certificate=certificate, tls_key=key,
        tls_authorities=tmp_path / "gone.pem",
    )  # fmt: skip
    ris = Hl7Destination(kind="hl7", name="ris", host="h", port=1, tls=True, tls_certificate=certificate, tls_key=key)
    found = {one.use: one for one in expiries(Settings(destinations=(stow, ris)), time.time())}
    assert round(found["destination ris"].days_left) == 10
    assert round(found["destination archive"].days_left) == 10
    assert found["destination archive authorities"].days_left is None
