"""The node's settings: one TOML file and environment variables, read once into typed frozen sections.

An environment variable wins over the file: `DICOM_NODE_RECEIVER__PORT=11112` sets `port` in `[receiver]`.
Each part of the program is handed its own section; no other module reads configuration.
"""

from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


def _ae_title(value: object) -> object:
    """An AE title per PS3.5: 1 to 16 printable ASCII characters, no backslash, not only spaces."""
    if not isinstance(value, str):
        return value
    title = value.strip()
    if not 1 <= len(title) <= 16 or not all(" " <= c <= "~" and c != "\\" for c in title):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


def _ae_title_or_none(value: object) -> object:
    return "" if value == "" else _ae_title(value)


AETitle = Annotated[str, BeforeValidator(_ae_title)]
AETitleOrNone = Annotated[str, BeforeValidator(_ae_title_or_none)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    """Base of the sections: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReceiverSettings(Section):
    """[receiver]: the Storage SCP that the PACS sends to."""

    ae_title: AETitle = "DICOM_NODE"
    host: str = "127.0.0.1"
    """Address to listen on. Loopback until a site opens it on purpose."""
    port: Port = 11112
    check_called_ae: bool = True
    """Refuse an association that calls another AE title than ours."""
    max_associations: int = Field(default=320, ge=1)
    """All associations together; one more is refused as transient. Each may hold about 0.4 MiB."""
    max_associations_per_address: int = Field(default=240, ge=1)
    """One sender cannot take every association."""
    max_pdu_bytes: int = Field(default=131072, ge=4096, le=1048576)
    """Largest PDU that is read into memory: bounds what one connection can hold."""
    pdu_deadline_s: float = Field(default=5.0, gt=0)
    """A PDU that was begun arrives whole within this time; cuts off slow drips."""
    acse_timeout_s: float = Field(default=5.0, gt=0)
    """From connection to association request."""
    idle_timeout_s: float = Field(default=60.0, gt=0)
    """An association on which nothing arrives is aborted."""
    max_instance_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    """Largest data set that is accepted."""
    max_associations_per_ae: int = Field(default=240, ge=1)
    """One AE title cannot take every association either."""
    max_waiting_connections: int = Field(default=512, ge=2)
    """Connections without an association; beyond that the oldest of the address with most of them is cut."""
    max_waiting_connections_per_address: int = Field(default=256, ge=1)
    """Beyond that the address's oldest is cut, so that silent connections cannot keep a sender out."""
    max_associations_per_minute: int = Field(default=12_000, ge=1)
    """Of one AE title, and of one address; some senders open one for every instance. More are refused as transient."""
    max_instances_per_minute: int = Field(default=60_000, ge=1)
    """As above; twice what a fast one reaches. A runaway sender gets A700 before the disk is full."""
    max_mb_per_minute: int = Field(default=61_440, ge=1)
    """As above: 1 GiB a second."""
    min_kib_per_s: float = Field(default=4.0, ge=0)
    """A data set that comes slower is cut off after `slow_patience_s`: who drips holds an association for ever."""
    slow_patience_s: float = Field(default=60.0, gt=0)
    max_queued_series: int = Field(default=1000, ge=1)
    """While more than this wait to be analysed, associations are refused as transient: the sender's own queue keeps
    what the node would not get to for hours."""
    processes: int = Field(default=1, ge=1, le=16)
    """Receiver processes on the port; for machines with cores to spare. Every limit here is that of one process."""
    plain: bool = True
    """Listen on `port` without TLS. False once every sender uses TLS."""
    tls_port: Port = 2762
    """The port with TLS, DICOM's own for it; used when the three files below are named."""
    tls_certificate: Path | None = None
    """PEM: this node's certificate and its chain."""
    tls_key: Path | None = None
    tls_authorities: Path | None = None
    """PEM: the authorities that senders' certificates must come from."""
    tls_peers: dict[str, tuple[str, ...]] = {}
    """By AE title: the certificates it may show, each by common name, DNS name or "sha256:" and its hex digest. An
    AE title alone authenticates nobody. Empty: any certificate of the authorities may use any AE title."""
    users: dict[str, SecretStr] = {}
    """Passcode by user name. With any, an association must bring one of them by user identity negotiation, over TLS.
    Empty: an identity that a sender brings is ignored."""
    closing_timeout_s: float = Field(default=5.0, gt=0)
    """A peer has this long to close the connection after our last word."""
    drain_s: float = Field(default=45.0, ge=0)
    """When the node stops, running associations have this long to end; less than the supervisor's patience."""

    @model_validator(mode="after")
    def _passcodes_are_encrypted(self) -> Self:
        if self.users and (self.plain or self.tls_certificate is None):
            raise ValueError("users need TLS and plain = false: a passcode on a line without TLS is everybody's")
        return self


ImageClass = Literal["ct", "enhanced-ct", "legacy-enhanced-ct", "results"]
"""What a source may store. "results": SR, SEG, secondary captures and key objects, for a PACS that routes the node's
own results back and fails where they are refused: they are kept, and never analysed."""


class SeriesFilter(Section):
    """[sources.series]: which series of a source are analysed, by what their first instance says of them.

    The others are kept, with the reason in the audit trail, and make no report. In a pattern, * stands for any
    characters and ? for one; case does not matter. Empty: every series.
    """

    descriptions: tuple[str, ...] = ()
    """Patterns, one of which Series Description matches."""
    not_descriptions: tuple[str, ...] = ()
    """Patterns that Series Description matches none of."""
    body_parts: tuple[str, ...] = ()
    """Body Part Examined is one of these, or is empty: many scanners leave it out."""

    def wants(self, description: str, body_part: str) -> bool:
        """True where a series with this Series Description and Body Part Examined is to be analysed."""

        def matches(text: str, patterns: tuple[str, ...]) -> bool:
            return any(fnmatchcase(text.casefold(), pattern.casefold()) for pattern in patterns)

        if self.descriptions and not matches(description, self.descriptions):
            return False
        if matches(description, self.not_descriptions):
            return False
        return not self.body_parts or not body_part or matches(body_part, self.body_parts)


class Source(Section):
    """[[sources]]: a sender that may store here. With none configured, only loopback may."""

    ae_title: AETitle
    addresses: tuple[str, ...] = ()
    """IP addresses or networks (CIDR) that this AE title may come from; empty means any."""
    quiet_s: float | None = Field(default=None, gt=0)
    """Quiet time of series from this source, instead of the one in [completion]."""
    classes: tuple[ImageClass, ...] = ("ct", "enhanced-ct", "legacy-enhanced-ct")
    """SOP classes that it may store; presentation contexts of the others are refused."""
    series: SeriesFilter = SeriesFilter()
    own_images: Literal["store", "refuse"] = "store"
    """CT images that this node had a part in: kept without being analysed, or refused with a status."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Its series are analysed before those of a lower priority, which wait as long as there are any."""
    destinations: tuple[str, ...] = ()
    """Names of the destinations that its results go to; empty: all that take results."""


class CompletionSettings(Section):
    """[completion]: when is a series complete."""

    quiet_s: float = Field(default=30.0, gt=0)
    """A series is closed when no new slice came for this long."""
    query_destination: str = ""
    """Name of the destination whose PACS is asked how many slices the series has; empty: none is asked."""
    settle_s: float = Field(default=1.0, gt=0)
    """With a query destination: ask this long after the last slice."""
    query_timeout_s: float = Field(default=10.0, gt=0)
    """A PACS that takes longer to answer counts as one that cannot: the quiet time decides."""
    silence_s: float = Field(default=30.0, ge=0)
    """After that it is not asked again for this long."""
    retrieve: Literal["get", "move", "none"] = "get"
    """How instances that the PACS holds and the node does not are fetched: C-GET, C-MOVE to the node's own AE title
    (which the PACS must know), or not at all."""
    fetch_attempts: int = Field(default=3, ge=1)
    """Fetches without gain until the series is given up as incomplete."""
    select: Literal["all", "best"] = "all"
    """"all": every series is analysed. "best": one of each study, chosen once no instance of the study came for the
    quiet time of each of its series."""


class WorkerSettings(Section):
    """[worker]: the processes that analyse."""

    devices: tuple[str, ...] = ("auto",)
    """One worker process per entry: "auto", "cpu", "cuda", "cuda:0", ..."""
    precision: Literal["exact", "fast"] = "exact"
    """"exact": float32. "fast": lower precision where the model card allows it."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of one worker; 0: as many as there are cores."""
    lease_s: float = Field(default=60.0, gt=1)
    """A worker that is silent for this long has lost its job to the next one."""
    max_attempts: int = Field(default=3, ge=1)
    """A series that ends its worker this many times is FAILED."""
    retry_delay_s: float = Field(default=30.0, ge=0)
    """Wait before a job that failed is tried again."""
    poll_s: float = Field(default=0.5, gt=0)
    """How often an idle worker looks for a job."""
    nice: int = Field(default=15, ge=0, le=19)
    """How much a worker gives way to the other processes: images must be taken as fast while one is analysed."""
    read_ahead_mb: int = Field(default=512, ge=0)
    """Memory for slices of the next series, read and decoded while this one is computed or slices still arrive; 0:
    none are."""
    drain_s: float = Field(default=45.0, ge=0)
    """When the node stops, a running analysis has this long to end; then its job is handed back. Less than the
    supervisor's patience."""


class ModelSettings(Section):
    """[model]: which model analyses."""

    name: str = ""
    """Name of an imported model; empty: the one imported last, else the demonstration model."""
    version: str = ""
    shadow: str = ""
    """Name of a second model that analyses every series too: computed and audited, never sent. Empty: none."""
    shadow_version: str = ""
    """Its version, where several models have that name."""
    allow_demonstration_model: bool = False
    """Allow results of the demonstration model to leave for destinations other than loopback."""


class ReportSettings(Section):
    """[report]: what is sent for a series."""

    report_not_analysed: bool = False
    """Also send a report that says why a series was not analysed."""
    segmentation: bool = True
    """Also send the segmentation (SEG) of the lungs and, where the result is positive, of what drove the model."""
    summary: bool = True
    """Also send the summary image (Secondary Capture)."""
    display: bool = False
    """Also send the display report, for viewers that show a report's values only beside a region, such as OHIF."""
    key_objects: bool = False
    """Also send the slices with most of what drove the model as key objects (KO), where the result is positive."""
    manufacturer: str = "DICOM AI node"
    device_name: str = "DICOM AI node"
    device_serial: str = "0"
    institution: str = ""
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    """Share of the scanned patients who have the disease at this site; with it, reports state PPV and NPV."""


class Destination(Section):
    """[[destinations]]: a PACS that results go to."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
    ae_title: AETitle
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    send_results: bool = True
    """False for a PACS that is only queried."""
    commitment: Literal["none", "request", "query"] = "none"
    """After sending: "request": ask the PACS for storage commitment, and by C-FIND where it offers none; "query": ask
    by C-FIND whether it holds the objects; "none": its success answer is enough."""

    answers_as: AETitleOrNone = ""
    """AE title as which it brings its answers to storage commitment requests, if it is not `ae_title`."""
    tls: bool = False
    """Connect with TLS 1.2 or later, and check the PACS's certificate against `tls_authorities`."""
    tls_authorities: Path | None = None
    """PEM: the authorities that the PACS's certificate must come from; empty: those of the operating system."""
    tls_certificate: Path | None = None
    """PEM: the certificate that the node shows, with its chain; empty: it shows none."""
    tls_key: Path | None = None
    tls_check_host: bool = True
    """The PACS's certificate must name `host`. False where certificates name something else."""

    @model_validator(mode="after")
    def _tls_files_agree(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together")
        return self

    @property
    def is_loopback(self) -> bool:
        """True when results sent there stay on this machine."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


class CommitmentSettings(Section):
    """[sender.commitment]: how destinations are asked whether they keep what they took.

    Asking ends: after `max_questions` without an answer the delivery stays SENT and counts as unconfirmed, after
    `max_resends` answers of "not there" it is FAILED.
    """

    ae_title: AETitleOrNone = ""
    """AE title that asks for storage commitment, if it is not `calling_ae_title`: a PACS sends its answer to the
    address that it knows this title by."""
    port: Port = 0
    """Port that takes a PACS's answers to storage commitment requests on associations of its own; 0: none, the
    answer has to come on ours, or C-FIND decides."""
    tls: bool | None = None
    """Take the answers at that port with TLS only, with the three files of [receiver]. Left out: as [receiver] does,
    that is with TLS if `plain` is false there."""
    max_connections: int = Field(default=16, ge=1)
    """At that port, at once: each has two threads that poll. Only hosts of destinations get that far."""
    max_connections_per_address: int = Field(default=4, ge=1)
    """Of those, from one address: a host that has gone wrong must not keep the others' answers out."""
    pdu_deadline_s: float = Field(default=10.0, gt=0)
    """For a PDU's header there, and for its rest: a few hundred bytes."""
    association_s: float = Field(default=60.0, gt=0)
    """For an association there as a whole; an answer takes a fraction of a second."""
    max_kib: int = Field(default=4096, ge=64)
    """All that may come on such an association: an answer has about 200 bytes for each object. It is kept in memory."""
    wait_s: float = Field(default=2.0, ge=0)
    """Keep the association open for the commitment's answer for this long; later it comes on one of the PACS's own."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Ask again after this long without an answer. Doubles with each question, up to `longest_retry_s`."""
    attempts: int = Field(default=3, ge=1)
    """Unanswered this often, C-FIND decides instead of storage commitment."""
    max_questions: int = Field(default=24, ge=1)
    """Questions without an answer until asking ends; about a day with the defaults."""
    resend_s: float = Field(default=60.0, gt=0)
    """Wait before objects that the PACS does not keep are sent again. Doubles each time, up to `longest_retry_s`."""
    max_resends: int = Field(default=4, ge=0)
    """A PACS that renames objects gets one more copy of them each time."""


class SenderSettings(Section):
    """[sender]: the outbox.

    A destination that is away is tried as long as it takes, at waits of up to `longest_retry_s`.
    """

    calling_ae_title: AETitle = "DICOM_NODE"
    connect_timeout_s: float = Field(default=10.0, gt=0)
    response_timeout_s: float = Field(default=60.0, gt=0)
    first_retry_s: float = Field(default=10.0, gt=0)
    """Wait after the first failure; doubles with each further one."""
    longest_retry_s: float = Field(default=3600.0, gt=0)
    max_permanent_failures: int = Field(default=3, ge=1)
    """A PACS that answers with a final failure is asked this often before the delivery is FAILED."""
    lease_s: float = Field(default=30.0, gt=1)
    """A sender that died gives what it was sending back after this time; a living one renews its lease."""
    commitment: CommitmentSettings = CommitmentSettings()
    poll_s: float = Field(default=0.5, gt=0)


class StorageSettings(Section):
    """[storage]: files and index."""

    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite in the data folder."""
    pseudonym_key: SecretStr = SecretStr("")
    """With a key (16 characters or more), index and audit trail hold keyed hashes of Patient ID and Accession Number,
    and no names and birth dates. Who loses it can ask about no patient any more; a new one begins new patients."""
    low_disk_mb: int = Field(default=1024, ge=0)
    """Below this much free space new associations are refused as transient."""
    retention_days: float | None = Field(default=None, gt=0)
    """Images may go this long after their results were delivered; empty: never."""

    @field_validator("pseudonym_key")
    @classmethod
    def _is_long(cls, key: SecretStr) -> SecretStr:
        if 0 < len(key.get_secret_value()) < 16:
            raise ValueError("a pseudonym key has 16 characters or more")
        return key


class MetricsSettings(Section):
    """[metrics]: Prometheus metrics and a health check over HTTP, without patient data."""

    host: str = "127.0.0.1"
    """Whoever can connect here can read them."""
    port: Port = 0
    """0: none."""


class LoggingSettings(Section):
    """[logging]: one line an event, without patient identifiers."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    json_lines: bool = False


class Settings(BaseSettings):
    """All settings of the node. Build with `config.load.load_settings`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="DICOM_NODE_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Path("var")
    """Folder of the index, the stored files and the imported models; relative to the working folder."""
    receiver: ReceiverSettings = ReceiverSettings()
    sources: tuple[Source, ...] = ()
    completion: CompletionSettings = CompletionSettings()
    worker: WorkerSettings = WorkerSettings()
    model: ModelSettings = ModelSettings()
    report: ReportSettings = ReportSettings()
    destinations: tuple[Destination, ...] = ()
    sender: SenderSettings = SenderSettings()
    storage: StorageSettings = StorageSettings()
    metrics: MetricsSettings = MetricsSettings()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = [destination.name for destination in self.destinations]
        if len(set(names)) != len(names):
            raise ValueError("two destinations have the same name")
        senders = [source.ae_title for source in self.sources]
        if len(set(senders)) != len(senders):
            raise ValueError("two sources have the same AE title; one source names all its addresses")
        for source in self.sources:
            for name in source.destinations:
                if name not in names:
                    raise ValueError(f"source {source.ae_title!r}: {name!r} is not the name of a destination")
        query = self.completion.query_destination
        if query and query not in names:
            raise ValueError(f"completion.query_destination {query!r} is not the name of a destination")
        receiver = self.receiver
        if self.sender.commitment.tls and None in (
            receiver.tls_certificate,
            receiver.tls_key,
            receiver.tls_authorities,
        ):
            raise ValueError("sender.commitment.tls needs tls_certificate, tls_key and tls_authorities in [receiver]")
        return self

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the index."""
        return self.storage.database_url or f"sqlite:///{self.data_dir.resolve() / 'node.db'}"

    @property
    def files_dir(self) -> Path:
        """Root of the stored DICOM files."""
        return self.data_dir / "files"

    @property
    def metrics_dir(self) -> Path:
        """Folder in which the running processes count for [metrics]."""
        return self.data_dir / "metrics"

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

    def destinations_of(self, calling_ae: str) -> tuple[Destination, ...]:
        """Where results of series that this AE title sent go."""
        source = self.source(calling_ae)
        wanted = source.destinations if source else ()
        return tuple(d for d in self.destinations if d.send_results and (not wanted or d.name in wanted))

    def may_leave(self, destination: Destination, demonstration: bool) -> bool:
        """Whether a result may go to a destination. demonstration: a demonstration model made it; those stay here."""
        return not demonstration or destination.is_loopback or self.model.allow_demonstration_model

    def destination(self, name: str) -> Destination | None:
        """The destination of this name, or None."""
        return next((d for d in self.destinations if d.name == name), None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
