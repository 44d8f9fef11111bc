"""SMART backend services: the node proves who it is by a signed JWT, and gets a token for a short time.

Source: HL7 SMART App Launch 2, "Backend Services" and "Client Authentication: Asymmetric"; RFC 7523.
"""

import secrets
from pathlib import Path

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from config.gateways.fhir import FhirDestination
from dicom_node.errors import NodeError

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
LIFE_S = 240
"""How long an assertion is valid; a server need not take one that is valid for more than five minutes."""
MAX_KEY_BYTES = 65536
DEFAULT_SCOPE = " ".join(
    [
        *(f"system/{kind}.crus" for kind in ("Device", "DiagnosticReport", "ImagingStudy", "Observation")),
        "system/Patient.rs",
    ]
)
"""Create, read, update and search what a bundle holds; read and search patients."""

SigningKey = RSAKey | ECKey


class UnusableKey(NodeError):
    """The private key cannot be read, or is none that SMART allows."""


def read_key(path: Path) -> SigningKey:
    """The private key of a PEM file: RSA of 2048 bits or more (RS384), or of the curve P-384 (ES384).

    Raises UnusableKey.
    """
    try:
        with path.open("rb") as file:
            pem = file.read(MAX_KEY_BYTES)
        key = _imported(pem)
    except OSError as error:
        raise UnusableKey(f"the private key cannot be read: {error.strerror}") from None
    except (JoseError, ValueError, TypeError):
        raise UnusableKey(
            "the private key is not one of RSA or of the curve P-384, as PEM without a password"
        ) from None
    too_small = isinstance(key, RSAKey) and key.private_key is not None and key.private_key.key_size < 2048
    wrong_curve = isinstance(key, ECKey) and key.curve_name != "P-384"
    if not key.is_private or too_small or wrong_curve:
        raise UnusableKey("the key must be a private one: RSA of 2048 bits or more, or of the curve P-384")
    return key


def _imported(pem: bytes) -> SigningKey:
    try:
        return RSAKey.import_key(pem)
    except (JoseError, ValueError, TypeError):
        return ECKey.import_key(pem)


def assertion(key: SigningKey, key_id: str, client: str, audience: str, now: float) -> str:
    """A JWT that says who asks for a token; each can be used once.

    key_id: under which the server knows the public key.  audience: the address that gives tokens.  now: Unix seconds.
    """
    header = {"alg": "RS384" if isinstance(key, RSAKey) else "ES384", "typ": "JWT", "kid": key_id}
    claims = {"iss": client, "sub": client, "aud": audience, "exp": int(now) + LIFE_S, "iat": int(now)}
    return jwt.encode(header, {**claims, "jti": secrets.token_urlsafe(24)}, key, algorithms=[header["alg"]])


def token_request(destination: FhirDestination, now: float) -> dict[str, str]:
    """The form that asks for a token. now: Unix seconds. Raises UnusableKey."""
    if destination.key is None:
        raise UnusableKey("the settings name no private key")
    signed = assertion(read_key(destination.key), destination.key_id, destination.user, destination.token_url, now)
    form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE, "client_assertion": signed}
    return {**form, "scope": destination.scope or DEFAULT_SCOPE}
