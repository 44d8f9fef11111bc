"""Settings of an interface engine or RIS that gets results as HL7 v2 messages."""

import re
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator

from config.gateways.destination import CommonDestination
from config.values import Host

CharacterSet = Literal[
    "UNICODE UTF-8", "ASCII", "8859/1", "8859/2", "8859/3", "8859/4", "8859/5", "8859/6", "8859/7", "8859/8", "8859/9"
]
"""Names of HL7 table 0211."""
MAPPED_SEGMENTS = ("MSH", "PID", "PV1", "ORC", "OBR")
"""Segments that a message has at most once, in their order."""
FIXED_FIELDS = ("MSH-1", "MSH-2", "MSH-7", "MSH-9", "MSH-10", "MSH-12", "MSH-18", "PID-1", "PV1-1", "OBR-1", "OBR-25")
"""What the message would no longer be itself without."""
PLACEHOLDERS = (
    "accession_issuer",
    "accession_number",
    "birth_date",
    "family_name",
    "filler_order_number",
    "given_name",
    "model_name",
    "model_version",
    "patient_id",
    "patient_id_issuer",
    "placer_order_number",
    "referring_physician",
    "report_uid",
    "reported_at",
    "result_id",
    "series_uid",
    "sex",
    "study_at",
    "study_description",
    "study_uid",
)
"""What a field of the map may name in braces."""
_FIELD = re.compile(r"([A-Z][A-Z0-9]{2})-([1-9]\d?)(?:\.([1-9]\d?))?(?:\.([1-9]\d?))?")


class FieldAddress(NamedTuple):
    """Where a text goes. component, subcomponent: None for all of the field or component."""

    segment: str
    field: int
    component: int | None
    subcomponent: int | None


def field_address(text: str) -> FieldAddress:
    """From text such as "PID-3.4". Raises ValueError with what is wrong."""
    match = _FIELD.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a field such as "PID-3", "PID-3.4" or "PID-3.4.2"')
    segment, field = match[1], f"{match[1]}-{match[2]}"
    if segment not in MAPPED_SEGMENTS:
        raise ValueError(f"{text} is in a segment that cannot be mapped; these can: {', '.join(MAPPED_SEGMENTS)}")
    if field in FIXED_FIELDS:
        raise ValueError(f"{text}: {field} is set by the node")
    component, subcomponent = (int(part) if part else None for part in (match[3], match[4]))
    return FieldAddress(segment, int(match[2]), component, subcomponent)


def _check_template(place: str, template: str) -> None:
    """Raises ValueError if a text of the map names what is unknown."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{place}: {error}; write {{{{ or }}}} for a brace") from None
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in PLACEHOLDERS or form or conversion:
            raise ValueError(f"{place}: {{{name}}} is not a placeholder; there are: {', '.join(PLACEHOLDERS)}")


class Hl7Destination(CommonDestination):
    """[[destinations]], kind "hl7": a RIS or interface engine that takes results as HL7 v2.5.1 ORU^R01 over MLLP.

    See docs/gateways/hl7.md. `dicom-node gateway preview NAME RESULT` prints a message.
    """

    kind: Annotated[Literal["hl7"], Field(examples=["hl7"])]
    """What it is."""
    host: Annotated[Host, Field(examples=["10.20.30.50"])]
    """Its IP address or host name."""
    port: Annotated[int, Field(ge=1, le=65535, examples=[2575])]
    """Its port."""
    connect_timeout_s: float = Field(default=10.0, gt=0)
    """Time for the connection."""
    response_timeout_s: float = Field(default=30.0, gt=0)
    """Time for the acknowledgement. Without one the same message is sent again later."""
    sending_application: str = Field(default="DICOM_NODE", max_length=180)
    """MSH-3, who the message is from."""
    sending_facility: str = Field(default="", max_length=180)
    """MSH-4, where that is."""
    receiving_application: str = Field(default="", max_length=180)
    """MSH-5, who it is for."""
    receiving_facility: str = Field(default="", max_length=180)
    """MSH-6, where that is."""
    processing_id: Literal["P", "T", "D"] = "P"
    """MSH-11: "P": production; "T": training; "D": debugging."""
    character_set: CharacterSet = "UNICODE UTF-8"
    """MSH-18, how the text is written."""
    unfit_characters: Literal["refuse", "escape"] = "refuse"
    """A character that `character_set` does not have: "refuse": the message is not sent and the delivery fails with the
    field's name; "escape": it goes as the hexadecimal escape of its UTF-8 bytes."""
    not_analysed: bool = True
    """Send results of series that were not analysed, with the reason. One that takes a former result back is sent
    anyway. Results are made for them with report_not_analysed in [report]."""
    fields: dict[str, str] = Field(default={})
    """Fields of the message that the site wants otherwise: by field, component or subcomponent, the text it gets. In
    braces it may name what docs/gateways/hl7.md lists.
    An entry: { "PID-3.4" = "HOSPITAL", "PV1-2" = "O", "OBR-3.1" = "{accession_number}" }"""
    tls: bool = False
    """Connect with TLS 1.2 or later, and check the peer's certificate against `tls_authorities`."""
    tls_authorities: Path | None = Field(default=None, examples=["authorities.pem"])
    """PEM: the authorities that may have issued the peer's certificate; empty: those of the operating system."""
    tls_certificate: Path | None = Field(default=None, examples=["node.pem"])
    """PEM: the certificate that the node shows, with its chain; empty: it shows none."""
    tls_key: Path | None = Field(default=None, examples=["node.key"])
    """PEM: its private key."""
    tls_check_host: bool = True
    """The peer's certificate must name `host`. False if certificates name something else."""

    @field_validator("fields")
    @classmethod
    def _fields_can_be_filled(cls, fields: dict[str, str]) -> dict[str, str]:
        for place, template in fields.items():
            field_address(place)
            _check_template(place, template)
        return fields

    def wants(self, analysed: bool) -> bool:
        """Whether results of this sort go there: those of series that were analysed, or that were not."""
        return analysed or self.not_analysed

    @property
    def peer_host(self) -> str:
        """Its host."""
        return self.host

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def is_encrypted(self) -> bool:
        """True with TLS."""
        return self.tls

    @property
    def certificate_files(self) -> tuple[Path | None, Path | None]:
        """The node's certificate, and the authorities of the peer's."""
        return (self.tls_certificate, self.tls_authorities) if self.tls else (None, None)
