"""Settings of worklists whose steps the node performs."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from config.section import Section
from config.values import AETitle, Host, Port

CodeText = Annotated[str, Field(pattern=r"^[^\\^]{1,16}\^[^\\^]{1,16}\^[^\\^]{1,64}$")]


class WorklistRules(Section):
    """What worklists have in common, however they are reached."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$", examples=["ris"])]
    """Its name in this file, in the index and on the command line: letters, digits, - and _."""
    label: str = Field(default="", max_length=64)
    """Only steps with this Worklist Label; empty: with any. One of label, stations and codes must be given."""
    stations: tuple[CodeText, ...] = ()
    """Only steps scheduled for one of these stations, such as "AI1^99HOSP^Chest CT AI"; empty: for any. The first one
    is what the node calls itself in a step that it performed."""
    codes: tuple[CodeText, ...] = ()
    """Only steps with one of these workitem codes, such as "110004^DCM^Computer Aided Detection"; empty: with any."""
    fetch_from: str = ""
    """Name of the DICOM destination whose PACS the images are fetched from; empty: the one with the AE title that the
    step names."""
    poll_s: float = Field(default=30.0, gt=0)
    """How often the worklist is asked for new steps."""
    claims: int = Field(default=4, ge=1, le=100)
    """Steps in hand at once; others on the worklist may take the rest."""
    fetch_attempts: int = Field(default=4, ge=1)
    """Fetches that leave images of a step missing, at growing waits, until it is given up as incomplete."""
    patience_hours: float = Field(default=24.0, gt=0)
    """How long a PACS that is away is waited for, until a step is given up."""


class RsWorklistEntry(WorklistRules):
    """[[rs_worklists]]: a worklist of Unified Procedure Steps, by DICOMweb (UPS-RS), whose steps this node performs.

    Needs the extra: pip install 'dicom-node[gateways]'.
    """

    server: Annotated[str, Field(min_length=1, examples=["archive"])]
    """Name of the destination of kind "stow" whose `url` has /workitems below it. With `send_results = false` there, it
    is used for the worklist alone. Its images come from there by WADO-RS, unless `fetch_from` names a PACS."""


class WorklistEntry(WorklistRules):
    """[[worklists]]: a worklist of Unified Procedure Steps, by DIMSE, whose steps this node performs."""

    ae_title: Annotated[AETitle, Field(examples=["WORKLIST"])]
    """Its AE title."""
    host: Annotated[Host, Field(examples=["10.20.30.50"])]
    """Its IP address or host name."""
    port: Annotated[int, Field(ge=1, le=65535, examples=[11112])]
    """Its port."""
    event_port: Port = 0
    """Port on which it may tell of new steps and of requests to cancel one; the node subscribes to that. 0: none; new
    steps are found by asking, and requests to cancel a step that is in hand are not heard."""
    tls: bool = False
    """Connect with TLS 1.2 or later, and check its certificate against `tls_authorities`."""
    tls_authorities: Path | None = Field(default=None, examples=["authorities.pem"])
    """PEM: the authorities that may have issued its certificate; empty: those of the operating system."""
    tls_certificate: Path | None = Field(default=None, examples=["node.pem"])
    """PEM: the certificate that the node shows, with its chain; empty: it shows none."""
    tls_key: Path | None = Field(default=None, examples=["node.key"])
    """PEM: its private key."""
    tls_check_host: bool = True
    """Its certificate must name `host`. False if certificates name something else."""
