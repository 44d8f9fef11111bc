"""Certificates: when they expire, whom they name, and how to make some for a test installation."""

import datetime
import hashlib
import os
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def expires_at(certificate: Path) -> float:
    """When the first of a PEM file's certificates expires, Unix seconds. Raises OSError; ValueError without one."""
    found = x509.load_pem_x509_certificates(certificate.read_bytes())
    return min(each.not_valid_after_utc for each in found).timestamp()


def names_in(der: bytes) -> frozenset[str]:
    """What a certificate can be bound to an AE title by: its common names, DNS names, and "sha256:" with the hex
    digest of the certificate itself.

    der: the certificate. Raises ValueError.
    """
    certificate = x509.load_der_x509_certificate(der)
    names = {f"sha256:{hashlib.sha256(der).hexdigest()}"}
    names.update(str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names.update(alternatives.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        pass
    return frozenset(names)


class Authority:
    """A certificate authority for tests and demonstrations; its key is kept in memory only.

    now: Unix seconds.
    """

    def __init__(self, name: str, now: float, days: int = 365) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._now = datetime.datetime.fromtimestamp(now, datetime.UTC)
        self._subject = _name(name)
        self.certificate = (
            self._builder(self._subject, self._key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def write(self, path: Path) -> Path:
        """Write the authority's own certificate."""
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(
        self, folder: Path, name: str, days: int = 365, hosts: Sequence[str] = ("127.0.0.1",)
    ) -> tuple[Path, Path]:
        """Write a certificate and its key for `name` into a folder. Returns their paths.

        days: negative for an expired one. hosts: addresses and DNS names that it is for.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            self._builder(_name(name), key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        paths = folder / f"{name}.crt", folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_private(
            paths[1],
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        return paths

    def _builder(self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
        day = datetime.timedelta(days=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - day * (1 if days > 0 else 2 - days))
            .not_valid_after(self._now + day * days)
        )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _write_private(path: Path, content: bytes) -> None:
    """Readable by its owner only, from the first instant."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
