"""TLS certificates: when they expire, and whether each belongs to its key."""

import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from config.settings import Settings
from dicom_node.runtime.certificate_expiry import Expiry, expiries
from dicom_node.runtime.installation.found import Found, good, look, wrong
from dicom_node.runtime.installation.permissions import named_files

CERTIFICATE, KEY = "tls_certificate", "tls_key"
RENEW = "put a renewed one in its place: the next connection uses it"


def certificates(settings: Settings) -> Iterator[Found]:
    """Nothing if the settings name none."""
    yield from (_expiry(one) for one in expiries(settings, time.time()))
    files = dict(named_files(settings))
    for name, certificate in files.items():
        key = files.get(name.removesuffix(CERTIFICATE) + KEY) if name.endswith(CERTIFICATE) else None
        if key is not None and not _belong_together(certificate, key):
            do = "name the key that the certificate was made for, in PEM and without a password"
            yield wrong("certificate", f"{name}: {certificate} does not belong to the key {key}", do)


def _expiry(one: Expiry) -> Found:
    part, says = "certificate", f"{one.use}: {one.file}"
    if one.days_left is None:
        return wrong(part, f"{says} is no readable PEM certificate", "correct the path, or its owner and mode")
    if one.days_left < 0:
        return wrong(part, f"{says} expired {-one.days_left:.0f} days ago", RENEW)
    if one.is_urgent:
        return look(part, f"{says} expires in {one.days_left:.0f} days", RENEW)
    return good(part, f"{says} is valid for {one.days_left:.0f} days")


def _belong_together(certificate: Path, key: Path) -> bool:
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        # The first certificate of the file is the node's own; those of its chain follow.
        public = x509.load_pem_x509_certificates(certificate.read_bytes())[0].public_key()
    except (OSError, ValueError, TypeError):
        return False
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(*form) == public.public_bytes(*form)
