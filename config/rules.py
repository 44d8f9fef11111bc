"""Rules that tie several settings together, checked on the values as they were given.

They take plain tables, not `Settings`, so that they can be checked even if other values have mistakes. A value of the
wrong type is passed over here: the settings' own types report it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

Location = tuple[str | int, ...]
"""Path of keys to a value, with indices for arrays: ("destinations", 1, "port")."""
Table = Mapping[str, object]


@dataclass(frozen=True)
class Broken:
    """One rule that the settings break: where, and what is wrong in words."""

    location: Location
    message: str


Rule = Callable[[Table], Iterator[Broken]]
TLS_FILES = ("tls_certificate", "tls_key", "tls_authorities")
S3_FILES = ("credentials", "authorities")


def broken_rules(values: Table) -> list[Broken]:
    """All rules that these settings break. values: the top-level table; a missing key counts as its default."""
    return [broken for rule in _RULES for broken in rule(values)]


def section(values: Table, key: str) -> Table:
    """A table in a table; an empty one if it is missing or of another type."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def entries(values: Table, key: str) -> list[tuple[int, Table]]:
    """The tables of an array, each with its index."""
    found = values.get(key)
    items = enumerate(found) if isinstance(found, list | tuple) else ()
    return [(index, item) for index, item in items if isinstance(item, Mapping)]


def _names_differ(values: Table) -> Iterator[Broken]:
    for array, key, word, advice in (
        ("destinations", "name", "name", "each destination needs a name of its own"),
        ("sources", "ae_title", "AE title", "one source names all its addresses"),
        ("notifications", "name", "name", "each rule needs a name of its own"),
        ("models", "name", "name", "a model analyses a series once"),
    ):
        first: dict[str, int] = {}
        for index, item in entries(values, array):
            name = str(item.get(key, "")).strip()
            if name and first.setdefault(name, index) != index:
                message = f"{array}[{first[name]}] has the same {word}, {name!r}: {advice}"
                yield Broken((array, index, key), message)


def _names_are_known(values: Table) -> Iterator[Broken]:
    known = list(dict.fromkeys(str(item.get("name")) for _, item in entries(values, "destinations")))
    there = f"there are: {', '.join(known)}" if known else "there are no [[destinations]]"
    for index, source in entries(values, "sources"):
        names = source.get("destinations")
        for position, name in enumerate(names if isinstance(names, list | tuple) else ()):
            if name not in known:
                location = ("sources", index, "destinations", position)
                yield Broken(location, f"{name!r} is not the name of a destination; {there}")
    name = section(values, "completion").get("query_destination")
    if name and name not in known:
        yield Broken(("completion", "query_destination"), f"{name!r} is not the name of a destination; {there}")
    for _, item in entries(values, "destinations"):
        kind = item.get("kind", "dicom")
        if not name or item.get("name") != name:
            continue
        if kind not in ("dicom", "stow"):
            message = f'{name!r} can count no slices: it is no DICOM peer, and not of kind "stow"'
            yield Broken(("completion", "query_destination"), message)
        if kind == "stow" and section(values, "iocm").get("poll_hours"):
            yield Broken(("iocm", "poll_hours"), f"{name!r} is asked by DICOMweb, and this needs C-FIND")
        if kind == "stow" and section(values, "completion").get("retrieve") == "move":
            yield Broken(("completion", "retrieve"), f'{name!r} has no C-MOVE: say "get" for WADO-RS')


def _the_pacs_can_be_asked(values: Table) -> Iterator[Broken]:
    if section(values, "iocm").get("poll_hours") and not section(values, "completion").get("query_destination"):
        yield Broken(("iocm", "poll_hours"), "needs query_destination in [completion]: the PACS that is asked")


def _canaries_meet_no_results(values: Table) -> Iterator[Broken]:
    """A place that takes canaries must not be one that a clinician looks at."""
    canary, where = section(values, "canary"), ("canary", "destination")
    name = canary.get("destination")
    if not name:
        return
    found = next((item for _, item in entries(values, "destinations") if item.get("name") == name), None)
    if found is None:
        yield Broken(where, f"{name!r} is not the name of a destination")
    elif found.get("kind", "dicom") not in ("dicom", "stow"):
        yield Broken(where, f'{name!r} takes no objects: name a DICOM peer, or one of kind "stow"')
    elif found.get("send_results", True) is not False:
        yield Broken(where, f"{name!r} gets results too: say send_results = false there")
    elif section(values, "completion").get("query_destination") == name:
        yield Broken(where, f"{name!r} is the PACS that is asked about patients' series: name another one")


def _gateways_are_safe(values: Table) -> Iterator[Broken]:
    """What a destination that is reached by HTTP needs to say who it is, over lines that nobody else can read."""
    for index, item in entries(values, "destinations"):
        where: Location = ("destinations", index)
        for key in ("url", "token_url"):
            address = str(item.get(key) or "")
            if address.startswith("http://") and not is_private_url(address) and item.get("plain") is not True:
                yield Broken((*where, key), "would cross the network readable: use https://, or say plain = true")
        auth = item.get("auth", "none")
        secrets = [key for key in ("credentials", "credentials_variable") if item.get(key)]
        if auth in ("basic", "bearer", "oauth2") and len(secrets) != 1:
            yield Broken((*where, "auth"), f'"{auth}" needs credentials or credentials_variable, and not both')
        if auth in ("basic", "oauth2") and not item.get("user"):
            yield Broken((*where, "auth"), f'"{auth}" needs user')
        if auth == "oauth2" and not item.get("token_url"):
            yield Broken((*where, "auth"), '"oauth2" needs token_url')


def _fhir_servers_know_who_is_meant(values: Table) -> Iterator[Broken]:
    for index, item in entries(values, "destinations"):
        if item.get("kind") != "fhir":
            continue
        where: Location = ("destinations", index)
        missing = [key for key in ("user", "key", "key_id", "token_url") if not item.get(key)]
        if item.get("auth") == "smart" and missing:
            yield Broken((*where, "auth"), f'"smart" needs {", ".join(missing)}')
        if item.get("patient") != "contained" and not item.get("patient_systems"):
            message = 'name the system of Patient IDs, such as { "" = "urn:oid:1.2.3" }, or say patient = "contained"'
            yield Broken((*where, "patient_systems"), message)


def _worklists_say_what_is_wanted(values: Table) -> Iterator[Broken]:
    """A node that claims every step of a worklist would take other performers' work."""
    kinds = {item.get("name"): item.get("kind", "dicom") for _, item in entries(values, "destinations")}
    names: set[object] = set()
    for array in ("worklists", "rs_worklists"):
        for index, item in entries(values, array):
            where: Location = (array, index)
            if not any(item.get(key) for key in ("label", "stations", "codes")):
                message = "say which steps are meant for this node: name label, stations or codes"
                yield Broken((*where, "label"), message)
            if item.get("fetch_from") and kinds.get(item["fetch_from"]) != "dicom":
                there = ", ".join(str(name) for name, kind in kinds.items() if kind == "dicom") or "none"
                message = f"{item['fetch_from']!r} is not the name of a DICOM destination; there are: {there}"
                yield Broken((*where, "fetch_from"), message)
            if item.get("server") and kinds.get(item["server"]) != "stow":
                yield Broken((*where, "server"), f'{item["server"]!r} is not the name of a destination of kind "stow"')
            if item.get("name") in names:
                yield Broken((*where, "name"), "each worklist needs a name of its own")
            names.add(item.get("name"))


def _receiver_can_be_reached(values: Table) -> Iterator[Broken]:
    receiver = section(values, "receiver")
    missing = [name for name in TLS_FILES if not receiver.get(name)]
    if missing and len(missing) < len(TLS_FILES):
        given = next(name for name in TLS_FILES if receiver.get(name))
        message = f"{', '.join(TLS_FILES)} belong together; missing: {', '.join(missing)}"
        yield Broken(("receiver", given), message)
    elif missing and receiver.get("plain") is False:
        message = f"false needs TLS, or the node listens nowhere: name {', '.join(TLS_FILES)}"
        yield Broken(("receiver", "plain"), message)
    elif missing and receiver.get("tls_peers"):
        yield Broken(("receiver", "tls_peers"), f"needs TLS: name {', '.join(TLS_FILES)}")
    if receiver.get("users") and (missing or receiver.get("plain", True) is not False):
        message = "users need TLS and plain = false: without TLS, anyone on the line can read a passcode"
        yield Broken(("receiver", "users"), message)


def _commitment_has_its_files(values: Table) -> Iterator[Broken]:
    receiver, commitment = section(values, "receiver"), section(section(values, "sender"), "commitment")
    if commitment.get("tls") and not all(receiver.get(name) for name in TLS_FILES):
        yield Broken(("sender", "commitment", "tls"), f"true needs {', '.join(TLS_FILES)} in [receiver]")


def _certificates_have_keys(values: Table) -> Iterator[Broken]:
    for array in ("destinations", "worklists"):
        for index, item in entries(values, array):
            given = [key for key in ("tls_certificate", "tls_key") if item.get(key)]
            if len(given) == 1:
                yield Broken((array, index, given[0]), "tls_certificate and tls_key belong together")


def _tls_files_are_used(values: Table) -> Iterator[Broken]:
    """Who names them believes that patient data go encrypted."""
    for array in ("destinations", "worklists"):
        for index, item in entries(values, array):
            given = [key for key in TLS_FILES if item.get(key)]
            if given and not item.get("tls") and (array == "worklists" or item.get("kind") == "hl7"):
                yield Broken((array, index, given[0]), "is not used, and nothing is encrypted, without tls = true")


def _ports_differ(values: Table) -> Iterator[Broken]:
    receiver, sender, metrics = (section(values, key) for key in ("receiver", "sender", "metrics"))
    listening: list[tuple[Location, object]] = []
    if receiver.get("plain", True) is not False:
        listening.append((("receiver", "port"), receiver.get("port", 11112)))
    if all(receiver.get(name) for name in TLS_FILES):
        listening.append((("receiver", "tls_port"), receiver.get("tls_port", 2762)))
    listening.append((("sender", "commitment", "port"), section(sender, "commitment").get("port", 0)))
    listening.append((("metrics", "port"), metrics.get("port", 0)))
    listening.append((("web", "port"), section(values, "web").get("port", 0)))
    for index, item in entries(values, "worklists"):
        listening.append((("worklists", index, "event_port"), item.get("event_port", 0)))
    taken: dict[object, Location] = {}
    for location, port in listening:
        if port and taken.setdefault(port, location) != location:
            yield Broken(location, f"port {port} is already that of {'.'.join(map(str, taken[port]))}")


def _audit_messages_are_private(values: Table) -> Iterator[Broken]:
    """They name patients: over no line that others can read, unless the site says so."""
    syslog = section(section(values, "audit"), "syslog")
    given = [key for key in ("tls_certificate", "tls_key") if syslog.get(key)]
    if len(given) == 1:
        yield Broken(("audit", "syslog", given[0]), "tls_certificate and tls_key belong together")
    plain = syslog.get("tls", True) is False and not syslog.get("plain_beyond_this_machine")
    if plain and syslog.get("host") and not is_this_machine(syslog.get("host")):
        message = "without TLS, audit messages go to this machine only; they name patients"
        yield Broken(("audit", "syslog", "tls"), message)


def _notifications_reach_somebody(values: Table) -> Iterator[Broken]:
    """Each rule has an address, over a line that others cannot read."""
    mail = section(values, "mail")
    if mail.get("security") == "none" and mail.get("host") and not is_this_machine(mail.get("host")):
        yield Broken(("mail", "security"), '"none" is for this machine only: use "starttls" or "tls"')
    if mail.get("user") and not (mail.get("credentials") or mail.get("credentials_variable")):
        yield Broken(("mail", "user"), "needs credentials or credentials_variable")
    for index, rule in entries(values, "notifications"):
        where, webhook = ("notifications", index), str(rule.get("webhook") or "")
        if not rule.get("mail_to") and not webhook:
            yield Broken((*where, "name"), "tells nobody: name mail_to or webhook")
        if rule.get("mail_to") and not mail.get("host"):
            yield Broken((*where, "mail_to"), "needs a mail server: name host in [mail]")
        if webhook and not (rule.get("credentials") or rule.get("credentials_variable")):
            yield Broken((*where, "webhook"), "needs credentials or credentials_variable, to sign what it gets")
        if webhook.startswith("http://") and not is_private_url(webhook):
            yield Broken((*where, "webhook"), "beyond this machine, it must begin with https://")


def _pages_are_private(values: Table) -> Iterator[Broken]:
    """Passwords and patient data go over no line that others can read."""
    web = section(values, "web")
    given = [key for key in ("tls_certificate", "tls_key") if web.get(key)]
    if len(given) == 1:
        yield Broken(("web", given[0]), "tls_certificate and tls_key belong together")
    if given and web.get("behind_proxy"):
        yield Broken(("web", "behind_proxy"), "the proxy does TLS: leave out tls_certificate and tls_key")
    if not web.get("port") or is_this_machine(web.get("host", "127.0.0.1")):
        return
    if not given and not web.get("behind_proxy"):
        message = "beyond this machine, the pages need tls_certificate and tls_key, or behind_proxy"
        yield Broken(("web", "host"), message)
    if not web.get("names"):
        yield Broken(("web", "names"), "name what browsers call this machine, such as node.hospital.example")


def is_this_machine(host: object) -> bool:
    """Whether what listens there can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(str(host)).is_loopback
    except ValueError:
        return False


def is_private_url(address: str) -> bool:
    """Whether an address is https, or on this machine, so that nobody on the way can read or change what it answers."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_this_machine(host)))


def _provider_is_safe(values: Table) -> Iterator[Broken]:
    """An identity provider is asked over lines that nobody else can read, and by everything that it needs."""
    oidc, where = section(section(values, "web"), "oidc"), ("web", "oidc")
    if not oidc.get("issuer"):
        return
    for key in ("issuer", "address"):
        address = str(oidc.get(key) or "")
        if not is_private_url(address) or re.search(r"[?#@\s]", address):
            yield Broken((*where, key), f"{key} must begin with https:// (http:// for this machine only)")
    if re.search(r"[^/]/[^/]", str(oidc.get("address") or "")):
        yield Broken((*where, "address"), "address has no path: write one such as https://node.hospital.example:8443")
    if not oidc.get("client_id"):
        yield Broken((*where, "client_id"), "the identity provider needs client_id")
    if not oidc.get("roles"):
        yield Broken((*where, "roles"), 'without roles nobody may log in: write roles = { "radiology" = "viewer" }')


def _models_are_named_once(values: Table) -> Iterator[Broken]:
    models, single = entries(values, "models"), section(values, "model")
    if not models:
        return
    for key in ("name", "version", "shadow", "shadow_version"):
        if single.get(key):
            yield Broken(("model", key), "[[models]] names the models: move it there, or leave [[models]] out")
    shadows = [index for index, item in models if item.get("shadow") is True]
    if len(shadows) > 1:
        yield Broken(("models", shadows[1], "shadow"), "one model at most may be the shadow")
    if len(shadows) == len(models):
        yield Broken(("models", shadows[0], "shadow"), "one model at least must report")
    known = [str(item.get("ae_title", "")).strip() for _, item in entries(values, "sources")]
    for index, item in models:
        sources = item.get("sources")
        for position, name in enumerate(sources if isinstance(sources, list | tuple) else ()):
            if name not in known:
                yield Broken(("models", index, "sources", position), f"{name!r} is not the AE title of a source")


def _images_are_encrypted(values: Table) -> Iterator[Broken]:
    s3 = section(section(values, "storage"), "s3")
    endpoint = str(s3.get("endpoint") or "")
    is_here = re.match(r"http://(127\.[\d.]+|localhost|\[::1\])(:\d+)?/?$", endpoint)
    plain = str(s3.get("plain")).lower() in ("true", "1")  # a variable of the environment is text
    if endpoint.startswith("http://") and not is_here and not plain:
        message = "images would cross the network readable: use https://, or say plain = true"
        yield Broken(("storage", "s3", "endpoint"), message)


def _series_numbers_differ(values: Table) -> Iterator[Broken]:
    taken: dict[int, int] = {}
    reporting = [(index, item) for index, item in entries(values, "models") if item.get("shadow") is not True]
    for place, (index, item) in enumerate(reporting):
        own = item.get("series_numbers")
        number = own if isinstance(own, int) else 9000 + 10 * place
        other = next((first for first in taken if abs(first - number) < 10), None)
        if other is not None:
            message = f"models[{taken[other]}] has numbers from {other + 1}: leave 10 between two models"
            yield Broken(("models", index, "series_numbers"), message)
        taken[number] = index


def _cluster_is_safe(values: Table) -> Iterator[Broken]:
    """Whoever reaches a Ray cluster without a token may run programs on its hosts."""
    cluster = section(values, "cluster")
    address = str(cluster.get("address") or "")
    given = [key for key in TLS_FILES if cluster.get(key)]
    if 0 < len(given) < len(TLS_FILES):
        yield Broken(("cluster", given[0]), f"{', '.join(TLS_FILES)} belong together")
    if not address or is_this_machine(address.rpartition(":")[0].strip("[]")):
        return
    if not cluster.get("credentials"):
        yield Broken(("cluster", "credentials"), "beyond this machine, a cluster needs a token: name its file")
    if not given and cluster.get("plain") is not True:
        message = f"the token would cross the network readable: name {', '.join(TLS_FILES)}, or say plain = true"
        yield Broken(("cluster", "address"), message)


def _cluster_can_work(values: Table) -> Iterator[Broken]:
    """What workers on other hosts need: pools, paths that mean the same everywhere, and an index that they reach."""
    cluster = section(values, "cluster")
    address = str(cluster.get("address") or "")
    names = [str(pool.get("name")) for _, pool in entries(cluster, "pools")]
    if len(set(names)) < len(names):
        yield Broken(("cluster", "pools"), "each pool needs a name of its own")
    if not address:
        return
    if not names:
        yield Broken(("cluster", "pools"), 'name at least one pool, such as { name = "main", workers = 2 }')
    for location, path in (
        (("data_dir",), values.get("data_dir", "var")),
        (("cluster", "configuration"), cluster.get("configuration", "/")),
    ):
        if not str(path).startswith("/"):
            yield Broken(location, "with a cluster, this must be a whole path: workers run in other folders")
    storage = section(values, "storage")
    url = str(getattr(storage.get("database_url"), "get_secret_value", lambda: storage.get("database_url") or "")())
    if not is_this_machine(address.rpartition(":")[0].strip("[]")) and not url.startswith("postgresql"):
        message = "hosts of a cluster cannot share an index in SQLite, which is a file of one machine: use PostgreSQL"
        yield Broken(("storage", "database_url"), message)


_RULES: tuple[Rule, ...] = (
    _names_differ,
    _names_are_known,
    _receiver_can_be_reached,
    _commitment_has_its_files,
    _certificates_have_keys,
    _tls_files_are_used,
    _ports_differ,
    _audit_messages_are_private,
    _notifications_reach_somebody,
    _pages_are_private,
    _provider_is_safe,
    _models_are_named_once,
    _series_numbers_differ,
    _images_are_encrypted,
    _canaries_meet_no_results,
    _gateways_are_safe,
    _the_pacs_can_be_asked,
    _fhir_servers_know_who_is_meant,
    _worklists_say_what_is_wanted,
    _cluster_is_safe,
    _cluster_can_work,
)
