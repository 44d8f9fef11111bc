"""Sending with TLS to DCMTK's storescp, which demands a certificate of us."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.settings import Destination, SenderSettings
from dicom_node.scu.store import StoreOutcome, echo, read_instance, store
from tests.conftest import require_program
from tests.outbox import destination, encoded, instance, write_all
from tests.programs import storescp

pytestmark = pytest.mark.peer
IMPATIENT = SenderSettings(connect_timeout_s=5.0, response_timeout_s=5.0)


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """Its own certificate."""
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """A key and a certificate for a host of this name and for 127.0.0.1."""
        key, request, certificate = (self.folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
        _openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        (self.folder / "san").write_text(f"subjectAltName=DNS:{name},IP:127.0.0.1\n")
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.folder / "ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", self.folder / "san", "-out", certificate,
        )  # fmt: skip
        return key, certificate


def _openssl(*arguments: object) -> None:
    subprocess.run([require_program("openssl"), *map(str, arguments)], check=True, capture_output=True)


def authority(folder: Path) -> Authority:
    """A new authority."""
    folder.mkdir(parents=True)
    _openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={folder.name}",
        "-keyout", folder / "ca.key", "-out", folder / "ca.pem",
    )  # fmt: skip
    return Authority(folder)


@contextmanager
def tls_pacs(folder: Path, ours: Authority) -> Iterator[int]:
    """storescp with TLS that trusts this authority. Yields its port."""
    key, certificate = ours.issue("pacs.example")
    with storescp(folder, "+tls", str(key), str(certificate), "+cf", str(ours.certificate)) as port:
        yield port


def test_tls_with_the_right_certificates_stores_and_every_other_way_does_not(tmp_path: Path) -> None:
    ours, theirs = authority(tmp_path / "ours"), authority(tmp_path / "theirs")
    key, certificate = ours.issue("node.example")
    other_key, other_certificate = theirs.issue("node.example")
    (path,) = write_all([instance()], tmp_path / "files")
    with tls_pacs(tmp_path / "scp", ours) as port:

        def outcome(**tls: object) -> StoreOutcome:
            (result,) = store(destination(port, **tls), IMPATIENT, [read_instance(path)])
            return result.outcome

        right = {"tls": True, "tls_authorities": ours.certificate, "tls_certificate": certificate, "tls_key": key}
        assert outcome() == StoreOutcome.TRANSIENT  # plaintext
        assert outcome(tls=True, tls_authorities=ours.certificate) == StoreOutcome.TRANSIENT  # we show nothing
        assert (
            outcome(**{**right, "tls_certificate": other_certificate, "tls_key": other_key}) == StoreOutcome.TRANSIENT
        )
        assert outcome(**{**right, "tls_authorities": theirs.certificate}) == StoreOutcome.TRANSIENT  # a false PACS
        assert outcome(**{**right, "tls_authorities": None}) == StoreOutcome.TRANSIENT  # the system trusts it not
        assert outcome(**{**right, "tls_authorities": tmp_path / "absent.pem"}) == StoreOutcome.TRANSIENT
        assert list((tmp_path / "scp").iterdir()) == []
        assert outcome(**right) == StoreOutcome.STORED
        assert echo(destination(port, **right), IMPATIENT).ok
    (received,) = (tmp_path / "scp").iterdir()
    assert encoded(received) == encoded(path)


def test_a_certificate_for_another_host_is_refused_unless_the_site_says_so(tmp_path: Path) -> None:
    ours = authority(tmp_path / "ours")
    key, certificate = ours.issue("node.example")
    tls = {"tls": True, "tls_authorities": ours.certificate, "tls_certificate": certificate, "tls_key": key}
    with tls_pacs(tmp_path / "scp", ours) as port:
        # "localhost" is this machine, but the certificate names pacs.example and 127.0.0.1.
        by_name = Destination(name="pacs", ae_title="STORESCP", host="localhost", port=port, **tls)
        assert not echo(by_name, IMPATIENT).ok
        assert echo(by_name.model_copy(update={"tls_check_host": False}), IMPATIENT).ok
