"""The node's settings: one TOML file and environment variables, read once into typed frozen sections.

An environment variable wins over the file: `DICOM_NODE_RECEIVER__PORT=11112` sets `port` in `[receiver]`.
Each part of the program is handed its own section; no other module reads configuration. The text below each setting is
also its description in `config/node.toml`, which `python -m config.example` writes.
"""

import socket
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, SecretStr, Tag, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from config.canary import CanarySettings
from config.cluster import ClusterSettings
from config.gateways.audit_messages import AuditSettings
from config.gateways.destination import CommonDestination
from config.gateways.dicomweb_server import DicomwebSettings
from config.gateways.fhir import FhirDestination
from config.gateways.hl7 import Hl7Destination
from config.gateways.iocm import IocmSettings
from config.gateways.notifications import MailSettings, NotificationRule
from config.gateways.stow import StowDestination
from config.gateways.worklist import RsWorklistEntry, WorklistEntry
from config.rules import broken_rules
from config.section import Section
from config.values import (
    AETitle,
    AETitleOrNone,
    BucketUrl,
    DatabaseUrl,
    Device,
    Endpoint,
    Host,
    IndexUrl,
    Network,
    Port,
)

ENV_PREFIX = "DICOM_NODE_"
ENV_DELIMITER = "__"


class ReceiverSettings(Section):
    """[receiver]: the Storage SCP that the PACS sends to."""

    ae_title: AETitle = "DICOM_NODE"
    """The AE title that senders call."""
    host: Host = "127.0.0.1"
    """Address to listen on: loopback until the site opens it, with "0.0.0.0", once [[sources]] names the senders."""
    port: Port = 11112
    """Port to listen on without TLS."""
    check_called_ae: bool = True
    """Refuse an association that calls an AE title other than ours."""
    max_associations: int = Field(default=320, ge=1)
    """Most associations at once; one more is refused as transient. Each may hold about 0.4 MiB of memory."""
    max_associations_per_address: int = Field(default=240, ge=1)
    """Of those, from one address, so that one sender cannot take them all."""
    max_associations_per_ae: int = Field(default=240, ge=1)
    """Of those, with one calling AE title."""
    max_pdu_bytes: int = Field(default=131072, ge=4096, le=1048576)
    """Largest PDU, in bytes. A PDU is read into memory whole, so this bounds what one connection can hold."""
    pdu_deadline_s: float = Field(default=5.0, gt=0)
    """A PDU must arrive whole within this time from its first byte; cuts off senders that drip."""
    acse_timeout_s: float = Field(default=5.0, gt=0)
    """Time from the connection to the association request, and for a TLS handshake."""
    idle_timeout_s: float = Field(default=60.0, gt=0)
    """An association on which nothing arrives for this long is aborted."""
    max_instance_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    """Largest data set that is accepted, in bytes."""
    max_waiting_connections: int = Field(default=512, ge=2)
    """Most connections without an association. Above that, the oldest silent one of the busiest address is closed."""
    max_waiting_connections_per_address: int = Field(default=256, ge=1)
    """Of those, from one address. Above that, its oldest silent one is closed: they cannot keep a sender out."""
    max_associations_per_minute: int = Field(default=12_000, ge=1)
    """From one AE title, and from one address. Some senders open an association for every instance. More are refused
    as transient."""
    max_instances_per_minute: int = Field(default=60_000, ge=1)
    """From one AE title, and from one address: twice what a fast sender reaches. A runaway sender gets A700 before the
    disk is full."""
    max_mb_per_minute: int = Field(default=61_440, ge=1)
    """The same in MiB: 1 GiB a second."""
    min_kib_per_s: float = Field(default=4.0, ge=0)
    """A data set that arrives more slowly on average is cut off once it has taken slow_patience_s."""
    slow_patience_s: float = Field(default=60.0, gt=0)
    """See min_kib_per_s."""
    max_queued_series: int = Field(default=1000, ge=1)
    """While more series than this wait to be analysed, associations are refused as transient: what the node would not
    get to for hours stays in the sender's own queue."""
    processes: int = Field(default=1, ge=1, le=16)
    """Receiver processes on the port, for machines with cores to spare. Each limit here applies to one process."""
    plain: bool = True
    """Listen on `port` without TLS. False once every sender uses TLS."""
    tls_port: Port = 2762
    """Port to listen on with TLS 1.2 or later, mutually authenticated; open once the three files below are named."""
    tls_certificate: Path | None = Field(default=None, examples=["node.pem"])
    """PEM: this node's certificate and its chain."""
    tls_key: Path | None = Field(default=None, examples=["node.key"])
    """PEM: its private key."""
    tls_authorities: Path | None = Field(default=None, examples=["authorities.pem"])
    """PEM: the authorities that must have issued senders' certificates."""
    tls_peers: dict[str, tuple[str, ...]] = Field(default={})
    """By AE title: the certificates it may show, each by common name, DNS name or "sha256:" and its hex digest. An
    AE title alone authenticates nobody. Empty: any certificate of the authorities may use any AE title.
    An entry: { PACS = ["pacs.hospital.example"] }"""
    users: dict[str, SecretStr] = Field(default={})
    """Passcode by user name. If there are any, an association must present one of them by user identity negotiation,
    over TLS. Empty: an identity that a sender presents is ignored."""
    closing_timeout_s: float = Field(default=5.0, gt=0)
    """Time for a peer to close the connection after our last message."""
    drain_s: float = Field(default=45.0, ge=0)
    """When the node stops, running associations have this long to end; less than the supervisor waits."""


ImageClass = Literal["ct", "enhanced-ct", "legacy-enhanced-ct", "results", "rejections"]
"""What a source may store. "results": SR, SEG, secondary captures and key objects, for a PACS that routes the node's
own results back and fails if they are refused. They are kept and never analysed. "rejections": rejection notes (IHE
IOCM), which take back the results on what they reject."""


class SeriesFilter(Section):
    """Which series of a source are analysed, by what their first instance says.

    The others are kept, with the reason in the audit trail, and make no report. In a pattern, * stands for any
    characters and ? for one; case does not matter. Empty: every series.
    """

    descriptions: tuple[str, ...] = ()
    """Patterns, one of which Series Description must match, such as "*chest*"."""
    not_descriptions: tuple[str, ...] = ()
    """Patterns, none of which Series Description may match, such as "*mip*"."""
    body_parts: tuple[str, ...] = ()
    """Body Part Examined must match one of these, or be empty: many scanners leave it out."""

    def wants(self, description: str, body_part: str) -> bool:
        """True if a series with this Series Description and Body Part Examined is to be analysed."""

        def matches(text: str, patterns: tuple[str, ...]) -> bool:
            return any(fnmatchcase(text.casefold(), pattern.casefold()) for pattern in patterns)

        if self.descriptions and not matches(description, self.descriptions):
            return False
        if matches(description, self.not_descriptions):
            return False
        return not self.body_parts or not body_part or matches(body_part, self.body_parts)


class Source(Section):
    """[[sources]]: a sender that may store here. If none is named, only this machine may."""

    ae_title: Annotated[AETitle, Field(examples=["PACS"])]
    """The AE title that it calls itself."""
    addresses: tuple[Network, ...] = ()
    """IP addresses or networks that it may come from, such as "10.20.30.40" or "10.20.31.0/24"; empty: any."""
    quiet_s: float | None = Field(default=None, gt=0, examples=[60.0])
    """Quiet time in seconds of its series, instead of the one in [completion]."""
    classes: tuple[ImageClass, ...] = ("ct", "enhanced-ct", "legacy-enhanced-ct")
    """What it may store: these, or "results" as well, for a PACS that routes the node's own results back and fails if
    they are refused, or "rejections", to take back the results on images that this source rejects (see
    docs/gateways/iocm.md). Presentation contexts of other SOP classes are refused."""
    series: SeriesFilter = SeriesFilter()
    """Which of its series are analysed."""
    own_images: Literal["store", "refuse"] = "store"
    """CT images that this node had a part in: "store": kept and not analysed; "refuse": refused with a status."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Its series are analysed before all those of a lower priority."""
    destinations: tuple[str, ...] = ()
    """Names of the [[destinations]] that its results go to; empty: all that take results."""


class CompletionSettings(Section):
    """[completion]: when is a series complete."""

    quiet_s: float = Field(default=30.0, gt=0)
    """A series is complete when no new slice has come for this many seconds."""
    query_destination: str = ""
    """Name of the destination whose PACS is asked how many slices the series has: a DICOM peer by C-FIND, one of kind
    "stow" by QIDO-RS. Empty: none is asked. With `send_results = false` there, it is asked and gets nothing."""
    settle_s: float = Field(default=1.0, gt=0)
    """With a query destination: seconds from the last slice until it is asked."""
    query_timeout_s: float = Field(default=10.0, gt=0)
    """A PACS that takes longer to answer counts as silent: the quiet time decides."""
    silence_s: float = Field(default=30.0, ge=0)
    """A PACS that was silent is not asked again for this many seconds."""
    retrieve: Literal["get", "move", "none"] = "get"
    """How slices that the PACS holds and the node does not are fetched: "get": C-GET, or WADO-RS from one of kind
    "stow"; "move": C-MOVE to the node's own AE title, which the PACS must know; "none": not at all."""
    fetch_attempts: int = Field(default=3, ge=1)
    """Fetches that bring no new slice until the series is given up as incomplete."""
    select: Literal["all", "best"] = "best"
    """Which series are analysed: "best": one of each study, chosen once each of its series has been quiet for its quiet
    time, or at once if the query destination lists no other CT series of the study; or "all", each by itself. Reports
    on several series of a study are then one statement: the later ones name the earlier ones."""


class WorkerSettings(Section):
    """[worker]: the processes that analyse."""

    devices: tuple[Device, ...] = ("auto",)
    """One worker process for each entry: "auto", "cpu", "cuda:0", "cuda:1", ..."""
    precision: Literal["exact", "fast"] = "exact"
    """"exact": float32. "fast": lower precision, if the model card allows it."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of one worker; 0: as many as there are cores."""
    lease_s: float = Field(default=60.0, gt=1)
    """A worker that has been silent for this long loses its job to another one."""
    longest_s: float = Field(default=3600.0, gt=0)
    """A job that takes longer hangs, such as in a GPU's driver: its worker's process ends, and it is tried again. More
    than twice what a third party's model may take (`time_s` of its card)."""
    max_attempts: int = Field(default=3, ge=1)
    """A job is FAILED after this many attempts, for example if its series kills the worker."""
    retry_delay_s: float = Field(default=30.0, ge=0)
    """Wait until a job that failed is tried again."""
    poll_s: float = Field(default=0.5, gt=0)
    """How often an idle worker looks for a job."""
    nice: int = Field(default=15, ge=0, le=19)
    """How much a worker yields to the other processes: the receiver must not wait for an analysis."""
    read_ahead_mb: int = Field(default=512, ge=0)
    """MiB of memory for slices of the next series, which are decoded while this one is computed; 0: none are."""
    ahead: bool = False
    """Whether an idle worker begins to analyse a series while its slices still arrive: its result is ready sooner, and
    the same. Needs read_ahead_mb above 0 and max_attempts above 1; and a query_destination to gain much."""
    unconfined_models: Literal["refuse", "allow"] = "refuse"
    """A third party's model where the kernel does not let it be cut off from the network, other processes and the
    node's files. "allow": it runs all the same, and could read whatever the node can."""
    drain_s: float = Field(default=45.0, ge=0)
    """When the node stops, a running analysis has this long to end; then its job is handed back. Less than the
    supervisor waits."""

    @model_validator(mode="after")
    def _ahead_reads_ahead(self) -> Self:
        if self.ahead and not (self.read_ahead_mb and self.max_attempts > 1):
            raise ValueError("ahead = true needs read_ahead_mb above 0 and max_attempts above 1")
        return self


class BatchSettings(Section):
    """[batch]: one model on many series (`dicom-node batch`), while no live series waits."""

    enabled: bool = False
    """Let workers take batches up. A live series then waits for no more than the batch's series in hand."""
    live_workers: int = Field(default=0, ge=0)
    """Of this machine's workers, the first so many never take a batch up: a live series does not even wait for that."""
    live_hours: tuple[Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")], ...] = ()
    """Hours of the day kept for live series, such as "07:00-19:00", in this machine's time zone. Nothing of a batch
    begins then; what is in hand is finished."""
    ahead: int = Field(default=20, ge=1, le=1000)
    """Series of a batch that are made ready ahead of the workers. This bounds the disk that images from a folder or a
    PACS take."""
    keep_images: bool = False
    """Keep images that were imported from a folder or a PACS. Otherwise they are deleted once they were analysed."""
    pacs_pause_s: float = Field(default=1.0, ge=0)
    """Pause between two series that are fetched from a PACS, and between two questions to it."""

    def may_begin(self, now: float) -> bool:
        """Whether a batch may begin anything at this moment. now: Unix seconds."""
        moment = time.strftime("%H:%M", time.localtime(now))
        return self.enabled and not any(_within(moment, *hours.split("-")) for hours in self.live_hours)


def _within(moment: str, begin: str, end: str) -> bool:
    """Whether a time of day is in hours that may go past midnight. Equal ends: the whole day."""
    return begin <= moment < end if begin < end else moment >= begin or moment < end


class ModelSettings(Section):
    """[model]: which model analyses."""

    name: str = ""
    """Name of the model; empty: the one imported last, or the demonstration model if none was imported."""
    version: str = ""
    """Its version, if several models have that name."""
    shadow: str = ""
    """Name of a second model that analyses every series as well. Its results are kept and audited, never sent."""
    shadow_version: str = ""
    """Its version, if several models have that name."""
    allow_demonstration_model: bool = False
    """Let results of the demonstration model leave this machine."""


class ModelEntry(Section):
    """[[models]]: models that analyse each series, if several do. They take the place of name and shadow in [model].

    Each has a job, a result and objects of its own; what goes wrong with one stops no other.
    """

    name: Annotated[str, Field(min_length=1, examples=["zheng2020-authors"])]
    """Its name."""
    version: str = ""
    """Its version, if several models have that name."""
    sources: tuple[str, ...] = ()
    """AE titles of the [[sources]] whose series it analyses; empty: all."""
    shadow: bool = False
    """True for one whose results are kept and audited, never sent; one at most."""
    series_numbers: int | None = Field(default=None, ge=1, le=999999990, examples=[9010])
    """The numbers of its objects' series follow this one; without it, 9000 for the first model, 9010 for the second."""


class ReportSettings(Section):
    """[report]: what is sent for a series."""

    report_not_analysed: bool = False
    """Also send a report that says why a series was not analysed, with a summary image if the pixels show why."""
    segmentation: bool = True
    """Also send the segmentation (SEG) of the lungs and, if the result is positive, of what drove the model."""
    summary: bool = True
    """Also send the summary image (Secondary Capture), for viewers that show no SR."""
    display: bool = False
    """Also send the display report, for viewers that show a value only beside a region, such as OHIF."""
    key_objects: bool = False
    """Also send the slices with most of what drove the model as key objects (KO), if the result is positive."""
    heat: bool = False
    """Also keep, if the result is positive, what drove the model as a map for the node's own pages. It is sent nowhere
    and takes some MiB for a series of thin slices."""
    manufacturer: str = "DICOM AI node"
    """Manufacturer in the objects that the node makes; with device_name, how it recognises its own images."""
    device_name: str = "DICOM AI node"
    """Manufacturer's Model Name in those objects."""
    device_serial: str = "0"
    """Device Serial Number in those objects."""
    institution: str = ""
    """Institution Name in those objects; empty: left out."""
    changes: bool = True
    """State the change since an earlier result of the same patient, if a model can: the lung densitometry does. Patient
    ID and its issuer, name, birth date and sex must agree. False if these do not tell patients apart at this site."""
    prevalence: float | None = Field(default=None, gt=0, lt=1, examples=[0.05])
    """Share of the scanned patients at this site who have COVID-19; with it, reports state PPV and NPV."""


class Destination(CommonDestination):
    """[[destinations]]: a PACS that results go to. Several are served in parallel."""

    kind: Literal["dicom"] = "dicom"
    """What it is: "dicom": a DICOM peer that takes the objects of results by C-STORE. Other kinds are below."""
    ae_title: Annotated[AETitle, Field(examples=["ORTHANC"])]
    """Its AE title."""
    host: Annotated[Host, Field(examples=["10.20.30.40"])]
    """Its IP address or host name."""
    port: Annotated[int, Field(ge=1, le=65535, examples=[4242])]
    """Its port."""
    send_results: bool = True
    """False for a PACS that is only queried."""
    commitment: Literal["none", "request", "query"] = "none"
    """After sending: "none": the PACS's success answer is enough; "request": ask it for storage commitment, or by
    C-FIND if it offers none; "query": ask by C-FIND whether it holds the objects."""

    answers_as: AETitleOrNone = ""
    """AE title that it uses when it answers storage commitment requests, if it is not ae_title."""
    tls: bool = False
    """Connect with TLS 1.2 or later, and check the PACS's certificate against `tls_authorities`."""
    tls_authorities: Path | None = Field(default=None, examples=["authorities.pem"])
    """PEM: the authorities that may have issued the PACS's certificate; empty: those of the operating system."""
    tls_certificate: Path | None = Field(default=None, examples=["node.pem"])
    """PEM: the certificate that the node shows, with its chain; empty: it shows none."""
    tls_key: Path | None = Field(default=None, examples=["node.key"])
    """PEM: its private key."""
    tls_check_host: bool = True
    """The PACS's certificate must name `host`. False if certificates name something else."""

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
        """The node's certificate, and the authorities of the PACS's, if it uses TLS."""
        return (self.tls_certificate, self.tls_authorities) if self.tls else (None, None)


def _kind_of(value: Any) -> str:
    """The kind of a destination, as it was given: a table, or a destination already. Left out, it is a DICOM peer."""
    kind = value.get("kind", "dicom") if isinstance(value, dict) else getattr(value, "kind", "dicom")
    return str(kind)


AnyDestination = Annotated[
    Annotated[Destination, Tag("dicom")]
    | Annotated[StowDestination, Tag("stow")]
    | Annotated[FhirDestination, Tag("fhir")]
    | Annotated[Hl7Destination, Tag("hl7")],
    Discriminator(_kind_of),
]
"""A destination of any kind."""
DESTINATION_KINDS: Mapping[str, type[CommonDestination]] = {
    "dicom": Destination,
    "stow": StowDestination,
    "fhir": FhirDestination,
    "hl7": Hl7Destination,
}


class CommitmentSettings(Section):
    """[sender.commitment]: how destinations are asked whether they keep what they took.

    Asking ends: after `max_questions` without an answer the delivery stays SENT and counts as unconfirmed, after
    `max_resends` answers of "not there" it is FAILED.
    """

    ae_title: AETitleOrNone = ""
    """AE title that asks for storage commitment, if it is not calling_ae_title. A PACS sends its answer to the address
    that it knows this title by."""
    port: Port = 0
    """Port for a PACS that opens an association of its own to answer a storage commitment request. 0: none; the answer
    must come on ours, or C-FIND decides."""
    tls: bool | None = Field(default=None, examples=[True])
    """Accept answers at that port only over TLS, with the three files of [receiver]. Left out: over TLS if plain is
    false in [receiver]."""
    max_connections: int = Field(default=16, ge=1)
    """Connections to that port at once; each has two threads that poll. Only hosts of destinations get that far."""
    max_connections_per_address: int = Field(default=4, ge=1)
    """Of those, from one address: a host that has gone wrong must not keep the others' answers out."""
    pdu_deadline_s: float = Field(default=10.0, gt=0)
    """Time for a PDU's header at that port, and for its rest: a few hundred bytes."""
    association_s: float = Field(default=60.0, gt=0)
    """Time for a whole association at that port; an answer takes a fraction of a second."""
    max_kib: int = Field(default=4096, ge=64)
    """Most that may arrive on such an association, in KiB; it is kept in memory. An answer has about 200 bytes for
    each object."""
    wait_s: float = Field(default=2.0, ge=0)
    """Time for which our association stays open for the answer; later it comes on one of the PACS's own."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Ask again after this time without an answer. Doubles with each question, up to longest_retry_s."""
    attempts: int = Field(default=3, ge=1)
    """After this many unanswered requests, C-FIND decides instead of storage commitment."""
    max_questions: int = Field(default=24, ge=1)
    """Questions without an answer until asking ends; about a day with the defaults."""
    resend_s: float = Field(default=60.0, gt=0)
    """Wait before objects that the PACS does not keep are sent again. Doubles each time, up to longest_retry_s."""
    max_resends: int = Field(default=4, ge=0)
    """Resends until the delivery is FAILED. A PACS that renames objects gets another copy of them each time."""


class SenderSettings(Section):
    """[sender]: the outbox.

    A destination that is away is tried until it is back, at waits of up to `longest_retry_s`.
    """

    calling_ae_title: AETitle = "DICOM_NODE"
    """The AE title that the node calls a PACS with."""
    connect_timeout_s: float = Field(default=10.0, gt=0)
    """Time for a PACS to take the connection and the association."""
    response_timeout_s: float = Field(default=60.0, gt=0)
    """Time for a PACS to answer a message."""
    first_retry_s: float = Field(default=10.0, gt=0)
    """Wait after the first failure; doubles with each further one."""
    longest_retry_s: float = Field(default=3600.0, gt=0)
    """The longest wait."""
    max_permanent_failures: int = Field(default=3, ge=1)
    """A delivery is FAILED after this many final refusals by the PACS."""
    lease_s: float = Field(default=30.0, gt=1)
    """After this time, another sender takes over from one that died; a living one renews its lease."""
    commitment: CommitmentSettings = CommitmentSettings()
    """How destinations are asked whether they keep what they took."""
    poll_s: float = Field(default=0.5, gt=0)
    """How often an idle sender looks for something to send, in seconds."""


class S3Settings(Section):
    """[storage.s3]: the object store of `bucket`, by the S3 API. Install the extra for it: dicom-node[s3].

    The access key is never in here: it comes from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from the file that
    `credentials` names, or from the role of the machine.
    """

    endpoint: Endpoint = ""
    """The server, such as https://s3.hospital.example:9000; empty: Amazon's of the region."""
    region: str = Field(default="us-east-1", pattern=r"^[A-Za-z0-9-]{1,40}$")
    """The region that requests are signed for; most servers of one's own take any."""
    credentials: Path | None = Field(default=None, examples=[Path("/etc/dicom-node/s3-credentials")])
    """File with the access key, as AWS's tools write it: [default] with aws_access_key_id and aws_secret_access_key.
    Only the node's user should be able to read it."""
    authorities: Path | None = Field(default=None, examples=[Path("/etc/dicom-node/s3-ca.pem")])
    """PEM file of certificate authorities that are trusted for the server besides those of the system."""
    plain: bool = False
    """Use an endpoint that begins with http:// and is not on this machine. Images then cross the network readable."""
    timeout_s: float = Field(default=15.0, gt=0)
    """Time for one request, in seconds; a request that fails is made three times at most, within twice this time."""
    create_only: bool = True
    """The server is told to refuse an object that is there already (If-None-Match). false: for one that cannot."""
    cache_mb: int = Field(default=4096, ge=0)
    """MiB of stored files that are kept on this machine as well, so that they need not be fetched to be read; fewer if
    less than twice low_disk_mb would be left free."""
    spool_mb: int = Field(default=4096, ge=1)
    """MiB that each receiver process may hold on this machine of what it receives and has not stored yet."""


class StorageSettings(Section):
    """[storage]: files and index."""

    bucket: BucketUrl = ""
    """Where received files and results are kept: empty: the folder files in data_dir; or a bucket, such as
    s3://bucket/prefix, which [storage.s3] says how to reach."""
    s3: S3Settings = S3Settings()
    database_url: IndexUrl = DatabaseUrl("")
    """Where the index is: empty: SQLite, node.db in data_dir; or postgresql+psycopg://user:password@host/name."""
    pseudonym_key: SecretStr = SecretStr("")
    """With a key of 16 characters or more, index and audit trail hold keyed hashes of Patient ID and Accession Number,
    and no names or birth dates. Keep it: without it, nobody can ask about a patient again."""
    low_disk_mb: int = Field(default=1024, ge=0)
    """Below this many MiB of free disk, new associations are refused as transient."""
    retention_days: float | None = Field(default=None, gt=0, examples=[30.0])
    """Images of a finished series are deleted this many days after its results were delivered, or after it ended
    without any to deliver (docs/guides/retention.md); without it, never."""
    quarantine_days: float = Field(default=14.0, gt=0)
    """Files that the index does not know are set aside, and deleted this many days later."""

    @field_validator("pseudonym_key")
    @classmethod
    def _is_long(cls, key: SecretStr) -> SecretStr:
        if 0 < len(key.get_secret_value()) < 16:
            raise ValueError("a pseudonym key has 16 characters or more")
        return key


class MetricsSettings(Section):
    """[metrics]: Prometheus metrics and a health check over HTTP, without patient data."""

    host: Host = "127.0.0.1"
    """Address to listen on; whoever can connect can read them."""
    port: Port = 0
    """Port to listen on, 9107 for example; 0: none."""


class WatchSettings(Section):
    """[watch]: compare what the models are given, and what they say, with how it was when they began to be used here.

    See docs/monitoring.md. An alarm never changes a result.
    """

    enabled: bool = False
    """Keep the facts of each result's scan, without the patient, and look for drift."""
    every_hours: float = Field(default=24.0, ge=1, le=168)
    """Time from one look to the next."""
    most_studies: int = Field(default=10_000, ge=1000, le=100_000)
    """Most results of a model, the latest ones, that a look takes in; of most sites those of 28 days are fewer."""


class OidcSettings(Section):
    """[web.oidc]: logins by the hospital's identity provider (OpenID Connect), beside the local accounts.

    They need the extra: pip install 'dicom-node[sso]'. Register the callback ADDRESS/login/oidc/callback there.
    """

    issuer: str = ""
    """The provider, exactly as it calls itself, such as https://login.hospital.example/realms/main; empty: none."""
    address: str = ""
    """The pages as browsers reach them, such as https://node.hospital.example:8443; the provider sends people back
    there and nowhere else."""
    client_id: str = ""
    """What the provider calls this node."""
    client_secret: SecretStr = SecretStr("")
    """The secret that goes with it; better in a file (credentials), or in the environment variable
    DICOM_NODE_WEB__OIDC__CLIENT_SECRET. Empty: the provider asks for none."""
    credentials: Path | None = Field(default=None, examples=[Path("/etc/dicom-node/oidc-credentials")])
    """File with nothing but the client's secret; it counts before client_secret. Only the node's user should be able to
    read it."""
    scopes: tuple[str, ...] = ("openid", "profile")
    """What the provider is asked for; some give groups only with one more."""
    name_claim: str = Field(default="preferred_username", min_length=1)
    """The claim of the ID token that names the account. It is "sso:" and that name, and no password opens it."""
    roles_claim: str = Field(default="groups", min_length=1)
    """The claim of the ID token that lists the person's groups or roles."""
    roles: dict[str, Literal["viewer", "reader", "operator", "auditor", "administrator"]] = Field(default={})
    """Which group has which role, such as { "radiology" = "reader" }. Whoever is in none of them is refused."""
    authorities: Path | None = Field(default=None, examples=[Path("/etc/dicom-node/login-ca.pem")])
    """PEM file of the certificate authorities that are trusted for the provider, in place of those of the system."""

    @field_validator("scopes")
    @classmethod
    def _asks_for_an_identity(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in scopes:
            raise ValueError('scopes need "openid"')
        return scopes


class WebSettings(Section):
    """[web]: the node's pages in a browser, for people with an account (`dicom-node web user add`).

    They need the extra: pip install 'dicom-node[web]'.
    """

    host: Host = "127.0.0.1"
    """Address to listen on. Beyond this machine only with TLS, or behind a reverse proxy that is named below."""
    port: Port = 0
    """Port to listen on, 8443 for example; 0: no pages."""
    names: tuple[Host, ...] = ()
    """Names and addresses by which browsers reach the pages; requests for any other are refused. Without one, only
    those of this machine, such as "localhost"."""
    tls_certificate: Path | None = Field(default=None, examples=["web.pem"])
    """PEM: the certificate for browsers, with its chain; TLS 1.2 or later."""
    tls_key: Path | None = Field(default=None, examples=["web.key"])
    """PEM: its private key."""
    behind_proxy: tuple[Network, ...] = ()
    """Addresses or networks of a reverse proxy that does TLS and alone can reach the port. What it says of a browser's
    address (X-Forwarded-For) is believed, and nobody else may connect."""
    session_hours: float = Field(default=12.0, gt=0, le=168)
    """A login ends after this many hours."""
    idle_minutes: float = Field(default=60.0, gt=0)
    """A login ends after this many minutes in which its user did nothing."""
    max_connections: int = Field(default=512, ge=8)
    """Most connections at once. Above that, the one that has waited longest without a request is closed."""
    max_streams: int = Field(default=64, ge=1)
    """Most pages that are kept up to date at once; others are as of when they were opened."""
    oidc: OidcSettings = OidcSettings()
    dicomweb: DicomwebSettings = DicomwebSettings()
    viewer_mb: int = Field(default=768, ge=16)
    """MiB of memory for images that people look at, whatever they open: the series opened last, ready for the next
    step. A series that needs more than half of it is shown in axial images only."""
    monitoring: bool = False
    """Also answer /metrics and /health here, without a login, as [metrics] does."""


class LoggingSettings(Section):
    """[logging]: one line for each event, without patient identifiers."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are written: "debug", "info", "warning" or "error"."""
    json_lines: bool = False
    """Each line as a JSON object."""


class Settings(BaseSettings):
    """All settings of the node. Build with `config.load.load_settings`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        nested_model_default_partial_update=True,
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path("var")
    """Folder of the index, the stored files and the imported models; relative to the working folder."""
    receiver: ReceiverSettings = ReceiverSettings()
    sources: tuple[Source, ...] = ()
    completion: CompletionSettings = CompletionSettings()
    worker: WorkerSettings = WorkerSettings()
    batch: BatchSettings = BatchSettings()
    model: ModelSettings = ModelSettings()
    models: tuple[ModelEntry, ...] = ()
    report: ReportSettings = ReportSettings()
    destinations: tuple[AnyDestination, ...] = ()
    sender: SenderSettings = SenderSettings()
    worklists: tuple[WorklistEntry, ...] = ()
    rs_worklists: tuple[RsWorklistEntry, ...] = ()
    storage: StorageSettings = StorageSettings()
    metrics: MetricsSettings = MetricsSettings()
    watch: WatchSettings = WatchSettings()
    web: WebSettings = WebSettings()
    iocm: IocmSettings = IocmSettings()
    audit: AuditSettings = AuditSettings()
    canary: CanarySettings = CanarySettings()
    cluster: ClusterSettings = ClusterSettings()
    mail: MailSettings = MailSettings()
    notifications: tuple[NotificationRule, ...] = ()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Self:
        broken = broken_rules(self.model_dump())
        if broken:
            raise ValueError("; ".join(one.message for one in broken))
        return self

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the index, with its password: not for a log."""
        return self.storage.database_url.get_secret_value() or f"sqlite:///{self.data_dir.resolve() / 'node.db'}"

    @property
    def files_dir(self) -> Path:
        """Root of the stored DICOM files."""
        return self.data_dir / "files"

    @property
    def metrics_dir(self) -> Path:
        """Folder in which the running processes of this machine count for [metrics]."""
        several_hosts = self.database_url.startswith("postgresql")
        return self.data_dir / (f"metrics-{socket.gethostname()}" if several_hosts else "metrics")

    @property
    def is_measured(self) -> bool:
        """Whether the processes count for a monitor, at [metrics] or on the pages."""
        return bool(self.metrics.port or (self.web.port and self.web.monitoring))

    @property
    def models_dir(self) -> Path:
        """Folder of the imported models."""
        return self.data_dir / "models"

    def quiet_s(self, calling_ae: str) -> float:
        """Quiet time in seconds of series sent by this AE title."""
        source = self.source(calling_ae)
        return self.completion.quiet_s if source is None or source.quiet_s is None else source.quiet_s

    def source(self, calling_ae: str) -> Source | None:
        """The source of this AE title, or None."""
        return next((source for source in self.sources if source.ae_title == calling_ae), None)

    def destinations_of(self, calling_ae: str) -> tuple[AnyDestination, ...]:
        """Where results of series that this AE title sent go."""
        source = self.source(calling_ae)
        wanted = source.destinations if source else ()
        return tuple(d for d in self.destinations if d.send_results and (not wanted or d.name in wanted))

    @property
    def destinations_of_canaries(self) -> tuple[AnyDestination, ...]:
        """Where results of canaries go: the one that takes nothing else, if there is one."""
        return tuple(d for d in self.destinations if d.name == self.canary.destination)

    def may_leave(self, destination: CommonDestination, demonstration: bool) -> bool:
        """Whether a result may go to a destination. demonstration: a demonstration model made it; those stay here."""
        return not demonstration or destination.is_loopback or self.model.allow_demonstration_model

    @property
    def model_entries(self) -> tuple[ModelEntry, ...]:
        """The models in use, those that report first: of [[models]], or else of [model]."""
        entries = self.models
        if not entries:
            entries = (ModelEntry.model_construct(name=self.model.name, version=self.model.version),)
            if self.model.shadow:
                entries += (ModelEntry(name=self.model.shadow, version=self.model.shadow_version, shadow=True),)
        return tuple(sorted(entries, key=lambda entry: entry.shadow))

    def series_numbers(self, model_name: str) -> int:
        """The number that those of a model's series follow.

        One that [[models]] no longer lists, with jobs from before, comes after those that it lists.
        """
        places = enumerate(self.model_entries)
        numbers = {entry.name: entry.series_numbers or 9000 + 10 * place for place, entry in places}
        return numbers.get(model_name, max(numbers.values()) + 10 if self.models else 9000)

    def destination(self, name: str) -> AnyDestination | None:
        """The destination of this name, of whatever kind, or None."""
        return next((d for d in self.destinations if d.name == name), None)

    @property
    def served_destinations(self) -> tuple[AnyDestination, ...]:
        """The destinations that anything is sent to: those that take results, and the one that takes canaries."""
        return tuple(d for d in self.destinations if d.send_results or d.name == self.canary.destination)

    @property
    def dicom_destinations(self) -> tuple[Destination, ...]:
        """The destinations that are DICOM peers."""
        return tuple(d for d in self.destinations if isinstance(d, Destination))

    def dicom_destination(self, name: str) -> Destination | None:
        """The DICOM peer of this name, or None."""
        return next((d for d in self.dicom_destinations if d.name == name), None)

    @property
    def worklist_names(self) -> tuple[str, ...]:
        """Names of the worklists whose steps the node performs."""
        return tuple(one.name for one in (*self.worklists, *self.rs_worklists))

    @property
    def queried_destination(self) -> Destination | StowDestination | None:
        """The PACS that is asked about open series, or None."""
        found = self.destination(self.completion.query_destination)
        return found if isinstance(found, Destination | StowDestination) else None
