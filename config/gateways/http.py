"""What destinations that are reached by HTTP have in common: address, TLS and authentication."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from config.gateways.destination import CommonDestination


def _http_url(value: str) -> str:
    """An http or https address without user, query and fragment: no secret can be in it."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = None
    if not usable or any(mark in value for mark in "@?# \\") or not value.isascii() or not value.isprintable():
        raise ValueError("is not an address such as https://pacs.hospital.example/dicom-web, without user and query")
    return value.rstrip("/")


def _url_or_none(value: str) -> str:
    return _http_url(value) if value else ""


HttpUrl = Annotated[str, AfterValidator(_http_url)]
HttpUrlOrNone = Annotated[str, AfterValidator(_url_or_none)]


class HttpDestination(CommonDestination):
    """A destination that is reached by HTTP."""

    url: Annotated[HttpUrl, Field(examples=["https://pacs.hospital.example/dicom-web"])]
    """Its address, without user and password."""
    plain: bool = False
    """Use an address that begins with http:// and is not on this machine. Patient data then cross the network
    readable."""
    tls_authorities: Path | None = Field(default=None, examples=["authorities.pem"])
    """PEM: the authorities that may have issued the server's certificate; empty: those of the operating system."""
    tls_certificate: Path | None = Field(default=None, examples=["node.pem"])
    """PEM: the certificate that the node shows, with its chain; empty: it shows none."""
    tls_key: Path | None = Field(default=None, examples=["node.key"])
    """PEM: its private key."""
    auth: Literal["none", "basic", "bearer", "oauth2"] = "none"
    """How the node says who it is, beside a client certificate: "basic": user and password; "bearer": a token from a
    file; "oauth2": a token of the server at token_url, by client credentials."""
    user: str = ""
    """The user for "basic", or the client ID for "oauth2"."""
    credentials: Path | None = Field(default=None, examples=["/etc/dicom-node/pacs-credentials"])
    """File with nothing but the password, the bearer token or the client's secret. It is read each time one is needed;
    only the node's user should be able to read it."""
    credentials_variable: str = Field(default="", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$|^$")
    """Name of the environment variable that holds it, in place of a file."""
    token_url: HttpUrlOrNone = ""
    """Address that gives tokens, for "oauth2"."""
    scope: str = ""
    """Scope to ask for there; empty: none is named."""
    token_by: Literal["basic", "post"] = "basic"
    """How the client's secret goes to token_url: "basic": as a header, "post": in the form."""

    @property
    def peer_host(self) -> str:
        """Host name or IP address of the server."""
        return urlsplit(self.url).hostname or ""

    @property
    def address(self) -> str:
        """Its URL; it holds no secret."""
        return self.url

    @property
    def is_encrypted(self) -> bool:
        """True for https."""
        return self.url.startswith("https://")

    @property
    def certificate_files(self) -> tuple[Path | None, Path | None]:
        """The node's certificate, and the authorities of the server's."""
        return self.tls_certificate, self.tls_authorities
