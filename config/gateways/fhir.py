"""Settings of a FHIR server that is told results."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from config.gateways.http import HttpDestination, HttpUrl

Uri = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:[!-~]+$")]


class FhirDestination(HttpDestination):
    """[[destinations]], kind "fhir": a FHIR R4 server that is told each result in one transaction.

    Needs the extra: dicom-node[gateways].
    """

    kind: Annotated[Literal["fhir"], Field(examples=["fhir"])]
    """What it is."""
    url: Annotated[HttpUrl, Field(examples=["https://fhir.hospital.example/r4"])]
    """The server's base, without user and password."""
    auth: Literal["none", "basic", "bearer", "oauth2", "smart"] = "none"  # type: ignore[assignment] # one more
    """How the node says who it is: as above, or "smart": SMART backend services, by a signed JWT: `user` is the client
    ID, `token_url` gives the tokens, `key` signs."""
    key: Path | None = Field(default=None, examples=["/etc/dicom-node/fhir.key"])
    """PEM: the private key for "smart": RSA (RS384) or P-384 (ES384). Only the node's user should be able to read
    it."""
    key_id: str = ""
    """The key's name (kid) in the key set that the server has of this client."""
    patient: Literal["reference", "identifier", "contained"] = "reference"
    """How the patient is named: "reference": by Patient ID, and the server must know exactly one such patient;
    "identifier": by Patient ID alone, whether it knows the patient or not; "contained": with name, birth date and sex
    in each resource."""
    patient_systems: dict[str, Uri] = Field(default={})
    """The system of Patient IDs by Issuer of Patient ID, "" for IDs without one: { "" = "urn:oid:1.2.3", "CITY" =
    "urn:oid:1.2.4" }. A result whose issuer is not named here is not sent, except with patient = "contained"."""
    accession_system: Uri | Literal[""] = ""
    """The system of accession numbers; empty: none is named."""
    coding_systems: dict[str, Uri] = Field(default={})
    """URIs of coding schemes that begin with 99, such as { "99DICOMNODE" = "https://hospital.example/codes" }. One that
    is not named here gets a URI made from its name."""
    tell_not_analysed: bool = True
    """Also tell that a series was not analysed, and why, if report_not_analysed in [report] makes a report of it. That
    an earlier result does not stand is told in any case."""
