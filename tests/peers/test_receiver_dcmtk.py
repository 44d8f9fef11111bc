"""DCMTK's storescu, DCMTK's TLS and Orthanc send to the receiver."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select

from dicom_node.receiver.certificates import Authority
from storage.models import audit, instances
from tests.conftest import require_program
from tests.programs import orthanc
from tests.receiving import Node, ct_slice

pytestmark = pytest.mark.peer

# What DCMTK's encoders and storescu's proposal are called for one transfer syntax.
SYNTAXES = [
    pytest.param([], "-xe", "1.2.840.10008.1.2.1", id="explicit VR"),
    pytest.param(["dcmconv", "+ti"], "-xi", "1.2.840.10008.1.2", id="implicit VR"),
    pytest.param(["dcmcrle"], "-xr", "1.2.840.10008.1.2.5", id="RLE"),
    pytest.param(["dcmcjpeg", "+e1"], "-xs", "1.2.840.10008.1.2.4.70", id="JPEG lossless SV1"),
    pytest.param(["dcmcjpls", "+el"], "-xt", "1.2.840.10008.1.2.4.80", id="JPEG-LS lossless"),
]


def storescu(port: int, *options: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [require_program("storescu"), "-v", "-aec", "DICOM_NODE", *options, "127.0.0.1", str(port), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def received(node: Node) -> list[Any]:
    with node.database.read() as tx:
        return list(tx.execute(select(instances)).all())


def encoded_data_set(path: Path) -> bytes:
    """A file's bytes after its file meta information."""
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path / "node") as running:
        yield running


@pytest.mark.parametrize(("encode", "propose", "syntax"), SYNTAXES)
def test_what_storescu_sends_is_kept_byte_for_byte(
    tmp_path: Path, node: Node, encode: list[str], propose: str, syntax: str
) -> None:
    sent = tmp_path / "slice.dcm"
    ct_slice().save_as(sent, enforce_file_format=True)
    if encode:
        plain, sent = sent, tmp_path / "encoded.dcm"
        subprocess.run([require_program(encode[0]), *encode[1:], str(plain), str(sent)], check=True)
    result = storescu(node.port, propose, path=sent)
    assert result.returncode == 0, result.stderr
    (row,) = received(node)
    assert row.transfer_syntax_uid == syntax
    kept = node.files.absolute(row.path)
    assert encoded_data_set(kept) == encoded_data_set(sent)
    checked = subprocess.run([require_program("dcmftest"), str(kept)], capture_output=True, text=True)
    assert checked.stdout.startswith("yes")


def test_a_real_series_in_the_syntax_it_came_in(node: Node, shared: Path) -> None:
    folder = shared / "data" / "dicom" / "MD04_every2nd"
    result = storescu(node.port, "-xs", "+sd", "+r", path=folder)
    assert result.returncode == 0, result.stderr
    sent = {dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in folder.rglob("*.dcm")}
    rows = received(node)
    assert {row.sop_instance_uid for row in rows} == set(sent)
    for row in rows:
        kept = dcmread(node.files.absolute(row.path))
        assert kept == dcmread(sent[row.sop_instance_uid])


def test_echoscu_is_answered(node: Node) -> None:
    command = [require_program("echoscu"), "-aec", "DICOM_NODE", "127.0.0.1", str(node.port)]
    assert subprocess.run(command, timeout=30).returncode == 0


def test_storescu_sees_a_refusal_with_its_comment(tmp_path: Path, node: Node) -> None:
    bad = ct_slice()
    del bad.SeriesInstanceUID
    bad.save_as(tmp_path / "bad.dcm", enforce_file_format=True)
    result = storescu(node.port, "-xe", "-d", path=tmp_path / "bad.dcm")
    assert "Series Instance UID is missing" in result.stderr
    assert "0xc000" in result.stderr.lower()
    assert received(node) == []


def test_orthanc_routes_a_series_to_the_receiver(tmp_path: Path, node: Node) -> None:
    slices = [ct_slice(number, series_uid="1.2.826.0.1.3680043.8.498.77") for number in range(5)]
    with orthanc(tmp_path / "orthanc", {"DICOM_NODE": node.port}) as pacs:
        for number, each in enumerate(slices):
            path = tmp_path / f"{number}.dcm"
            each.save_as(path, enforce_file_format=True)
            pacs.upload(path)
        (series,) = pacs.call("/series")
        answer = pacs.call("/modalities/DICOM_NODE/store", series.encode())
        assert answer["FailedInstancesCount"] == 0
    assert {row.sop_instance_uid for row in received(node)} == {each.SOPInstanceUID for each in slices}


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("Hospital CA", time.time())


@pytest.fixture
def tls(tmp_path: Path, authority: Authority) -> Iterator[Node]:
    """A node with TLS only, that knows PACS by its certificate's name."""
    certificate, key = authority.issue(tmp_path, "node")
    settings = {
        "plain": False,
        "tls_port": 0,
        "tls_certificate": certificate,
        "tls_key": key,
        "tls_authorities": authority.write(tmp_path / "ca.crt"),
        "tls_peers": {"PACS": ["pacs.hospital"]},
    }
    (tmp_path / "node").mkdir()
    with Node(tmp_path / "node", settings) as running:
        yield running


def send_over_tls(node: Node, folder: Path, certificate: tuple[Path, Path] | None, ae: str = "PACS") -> bool:
    """storescu over TLS. Returns whether it could store."""
    path = folder / "slice.dcm"
    ct_slice(syntax=ExplicitVRLittleEndian).save_as(path, enforce_file_format=True)
    identity = ["+tls", str(certificate[1]), str(certificate[0])] if certificate else ["+tla"]
    result = storescu(node.port, *identity, "+cf", str(folder / "ca.crt"), "-aet", ae, path=path)
    return result.returncode == 0


def reasons(node: Node) -> str:
    node.stop()
    with node.database.read() as tx:
        return " ".join(detail or "" for detail in tx.scalars(select(audit.c.detail)))


def test_the_right_certificate_may_store(tls: Node, tmp_path: Path, authority: Authority) -> None:
    assert send_over_tls(tls, tmp_path, authority.issue(tmp_path, "pacs.hospital"))
    assert len(received(tls)) == 1


def test_no_certificate_is_refused(tls: Node, tmp_path: Path) -> None:
    assert not send_over_tls(tls, tmp_path, None)
    assert "tls-peer-did-not-return-a-certificate" in reasons(tls)


def test_an_untrusted_certificate_is_refused(tls: Node, tmp_path: Path) -> None:
    stranger = Authority("Somebody's CA", time.time())
    assert not send_over_tls(tls, tmp_path, stranger.issue(tmp_path, "pacs.hospital"))
    assert "certificate-untrusted" in reasons(tls)


def test_an_expired_certificate_is_refused(tls: Node, tmp_path: Path, authority: Authority) -> None:
    assert not send_over_tls(tls, tmp_path, authority.issue(tmp_path, "pacs.hospital", days=-1))
    assert "certificate-expired" in reasons(tls)


def test_an_ae_title_that_is_bound_to_another_certificate_is_refused(
    tls: Node, tmp_path: Path, authority: Authority
) -> None:
    assert not send_over_tls(tls, tmp_path, authority.issue(tmp_path, "workstation.hospital"))
    assert not send_over_tls(tls, tmp_path, authority.issue(tmp_path, "pacs.hospital"), ae="OTHER")
    assert "certificate-not-of-this-ae" in reasons(tls)


def test_plaintext_is_refused_on_the_tls_port(tls: Node, tmp_path: Path) -> None:
    path = tmp_path / "slice.dcm"
    ct_slice().save_as(path, enforce_file_format=True)
    assert storescu(tls.port, "-aet", "PACS", path=path).returncode != 0
    assert "tls-" in reasons(tls)


def test_tls_1_1_is_refused(tls: Node) -> None:
    command = [require_program("openssl"), "s_client", "-tls1_1", "-connect", f"127.0.0.1:{tls.port}"]
    result = subprocess.run(
        [*command, "-cipher", "ALL:@SECLEVEL=0"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30
    )
    assert result.returncode != 0
    assert "tls-unsupported-protocol" in reasons(tls)


def test_an_exchanged_certificate_is_used_from_the_next_connection_on(
    tls: Node, tmp_path: Path, authority: Authority
) -> None:
    pacs = authority.issue(tmp_path, "pacs.hospital")
    assert send_over_tls(tls, tmp_path, pacs)
    other = Authority("Next CA", time.time())
    other.write(tmp_path / "ca.crt")
    assert not send_over_tls(tls, tmp_path, pacs)
    other.issue(tmp_path, "node")
    assert send_over_tls(tls, tmp_path, other.issue(tmp_path, "pacs.hospital"))
