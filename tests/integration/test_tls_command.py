"""`tls self-signed`: certificates that work at once, and whose end shows in `status`."""

import json
import subprocess
import sys
from pathlib import Path

from dicom_node.scu.association import Address
from dicom_node.scu.store import read_instance, store
from tests.receiving import Node, ct_slice


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    run = [sys.executable, "-m", "dicom_node", *arguments]
    return subprocess.run(run, capture_output=True, text=True, timeout=120)


def test_its_certificates_carry_an_association_in_both_directions(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    made = command("tls", "self-signed", "--output", str(folder), "--peer", "pacs", "--host", "127.0.0.1")
    assert made.returncode == 0, made.stderr
    assert (folder / "node.key").stat().st_mode & 0o077 == 0
    receiver = {
        "plain": False,
        "tls_port": 0,
        "tls_certificate": folder / "node.crt",
        "tls_key": folder / "node.key",
        "tls_authorities": folder / "ca.crt",
        "tls_peers": {"PACS": ["pacs"]},
    }
    ct_slice().save_as(tmp_path / "slice.dcm", enforce_file_format=True)
    with Node(tmp_path / "node", receiver) as node:
        peer = Address(
            "DICOM_NODE", "127.0.0.1", node.port, True, folder / "ca.crt", folder / "pacs.crt", folder / "pacs.key"
        )
        caller = node.settings.sender.model_copy(update={"calling_ae_title": "PACS"})
        (result,) = store(peer, caller, [read_instance(tmp_path / "slice.dcm")])
    assert result.outcome.name == "STORED"
    again = command("tls", "self-signed", "--output", str(folder))
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_status_says_how_long_the_certificates_are_valid(tmp_path: Path) -> None:
    assert command("tls", "self-signed", "--output", str(tmp_path / "tls"), "--days", "20").returncode == 0
    (tmp_path / "node.toml").write_text(
        f'data_dir = "{tmp_path / "var"}"\n[receiver]\ntls_certificate = "{tmp_path}/tls/node.crt"\n'
        f'tls_key = "{tmp_path}/tls/node.key"\ntls_authorities = "{tmp_path}/gone.crt"\n'
    )
    shown = command("status", "--json", "--config", str(tmp_path / "node.toml"))
    found = {each["use"]: each["days_left"] for each in json.loads(shown.stdout)["certificates"]}
    assert 19 < found["receiver"] <= 20
    assert found["receiver authorities"] is None
    assert "20" in command("status", "--config", str(tmp_path / "node.toml")).stdout


def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    refused = command("tls", "self-signed", "--output", str(tmp_path / "tls"), "--peer", "../pacs")
    assert refused.returncode == 1
    assert not (tmp_path / "tls").exists()
