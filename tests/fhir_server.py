"""A FHIR R4 server on a real socket: transactions, conditional create and update, tokens by SMART backend services.

It holds a client to the rules of the standard, which lenient servers do not: a transaction is done whole or not at all,
a condition that several resources meet fails it (412), two entries must not mean one resource, a reference must lead
somewhere, and a resource must be valid by the classes of `fhir.resources`.
"""

import contextlib
import copy
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl

from fhir.resources.R4B import get_fhir_model_class
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, RSAKey
from pydantic import ValidationError

Resource = dict[str, Any]
JSON = "application/fhir+json"
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Failed(Exception):
    """A transaction that is not done."""

    def __init__(self, status: int, code: str, diagnostics: str) -> None:
        super().__init__(diagnostics)
        self.status, self.code, self.diagnostics = status, code, diagnostics


class Store:
    """Resources by type and id. versions: how often each was written."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, Resource]] = {}
        self.versions: dict[str, int] = {}

    def all(self, kind: str) -> list[Resource]:
        """The resources of a type."""
        return list(self.held.get(kind, {}).values())

    def search(self, kind: str, query: str) -> list[Resource]:
        """Those that meet every parameter; only identifiers are searched. Raises Failed for any other parameter."""
        wanted = [one for one in parse_qsl(query, keep_blank_values=True, strict_parsing=True) if one[0] != "_summary"]
        if not wanted or any(name != "identifier" for name, _ in wanted):
            raise Failed(400, "not-supported", f"cannot search {kind} by {query}")
        return [found for found in self.all(kind) if all(_matches(found, value) for _, value in wanted)]

    def only(self, kind: str, query: str) -> Resource | None:
        """The one that meets a condition, or None. Raises Failed if several do."""
        found = self.search(kind, query)
        if len(found) > 1:
            raise Failed(412, "multiple-matches", f"{len(found)} of {kind} match {query}")
        return found[0] if found else None

    def write(self, resource: Resource) -> None:
        """Create or update; an update without a change makes no version."""
        kind, key = resource["resourceType"], resource["id"]
        if self.held.setdefault(kind, {}).get(key) != resource:
            self.held[kind][key] = resource
            self.versions[f"{kind}/{key}"] = self.versions.get(f"{kind}/{key}", 0) + 1


def _matches(resource: Resource, value: str) -> bool:
    """Whether an identifier is one of the token's alternatives, which commas separate."""
    return any(_has(resource, one) for one in _split(value, ","))


def _has(resource: Resource, token: str) -> bool:
    system, *rest = _split(token, "|")
    named = [(one.get("system", ""), one["value"]) for one in resource.get("identifier", [])]
    if not rest:
        return any(value == _plain(system) for _, value in named)
    return (_plain(system), _plain(rest[0])) in named


def _split(text: str, mark: str) -> list[str]:
    """At marks that no backslash escapes."""
    return re.split(rf"(?<!\\){re.escape(mark)}", text)


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


class Transaction:
    """One bundle on a copy of the store, which takes the place of the store only if all goes well."""

    def __init__(self, store: Store, bundle: Resource, new_id: Callable[[], str]) -> None:
        self._store = copy.deepcopy(store)
        self._bundle, self._new_id = bundle, new_id
        self._places: dict[str, str] = {}
        self._touched: set[str] = set()

    def done(self) -> tuple[Store, Resource]:
        """The store afterwards, and the answer. Raises Failed."""
        entries = self._bundle.get("entry", [])
        urls = [entry["fullUrl"] for entry in entries]
        if len(set(urls)) != len(urls):
            raise Failed(400, "invalid", "two entries have one fullUrl")
        planned = [(entry, *self._target(entry)) for entry in entries]
        # The order of the standard: creations, then updates; conditions are judged before any of them.
        for entry, key, writes in sorted(planned, key=lambda one: one[0]["request"]["method"]):
            if writes:
                self._store.write({**self._resolved(entry["resource"]), "id": key})
        answers = [self._answer(entry, key, writes) for entry, key, writes in planned]
        return self._store, {"resourceType": "Bundle", "type": "transaction-response", "entry": answers}

    def _target(self, entry: Resource) -> tuple[str, bool]:
        """The id that an entry is about, and whether it writes it."""
        request, kind = entry["request"], entry["resource"]["resourceType"]
        method, query = request["method"], request["url"].partition("?")[2]
        if request["url"].split("?")[0] != kind or method not in ("POST", "PUT") or (method == "PUT") != bool(query):
            raise Failed(400, "invalid", f"cannot do {method} {request['url']}")
        found = self._store.only(kind, query or request["ifNoneExist"]) if query or "ifNoneExist" in request else None
        key = found["id"] if found else self._new_id()
        place = f"{kind}/{key}"
        if place in self._touched:
            raise Failed(400, "invalid", f"two entries are about {place}")
        self._touched.add(place)
        self._places[entry["fullUrl"]] = place
        return key, found is None or method == "PUT"

    def _resolved(self, resource: Resource) -> Resource:
        contained = {f"#{one['id']}" for one in resource.get("contained", [])}

        def follow(value: Any) -> Any:
            if isinstance(value, list):
                return [follow(one) for one in value]
            if not isinstance(value, dict):
                # Some servers do so in every text, where the standard means addresses.
                return self._places.get(value, value) if isinstance(value, str) else value
            found = {name: follow(one) for name, one in value.items()}
            if isinstance(value.get("reference"), str) and value["reference"] not in contained:
                found["reference"] = self._place(value["reference"])
            return found

        return {**follow({k: v for k, v in resource.items() if k != "contained"}), **_contained(resource)}

    def _place(self, reference: str) -> str:
        if reference in self._places:
            return self._places[reference]
        kind, _, query = reference.partition("?")
        if query:
            found = self._store.only(kind, query)
            if found is None:
                raise Failed(412, "not-found", f"nothing matches {reference}")
            return f"{kind}/{found['id']}"
        kind, _, key = reference.partition("/")
        if key not in self._store.held.get(kind, {}):
            raise Failed(400, "not-found", f"{reference} is not there")
        return reference

    def _answer(self, entry: Resource, key: str, writes: bool) -> Resource:
        place = f"{entry['resource']['resourceType']}/{key}"
        version = self._store.versions[place]
        created = writes and version == 1
        location = f"{place}/_history/{version}"
        return {"response": {"status": "201 Created" if created else "200 OK", "location": location}}


def _contained(resource: Resource) -> Resource:
    return {"contained": resource["contained"]} if "contained" in resource else {}


class FhirServer:
    """What is held, what was asked, and how to misbehave.

    answers: (status, body) in place of what the next requests deserve; None: as they deserve, for those in between.
    silent: done, but the connection is cut without an answer, so many times. on_done: called after each transaction,
    before its answer. tokens: those that are good, with the time at which they end; None: everybody may write.
    """

    def __init__(self) -> None:
        self.store = Store()
        self.port = 0
        self.requests: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[tuple[int, Any] | None] = []
        self.silent = 0
        self.on_done: Callable[[], None] = lambda: None
        self.tokens: dict[str, float] | None = None
        self.client, self.keys = "", KeySet([])
        self.used: set[str] = set()
        self.token_requests = 0
        self.refuses_tokens: tuple[int, Any] | None = None
        self._count = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its base."""
        return f"http://127.0.0.1:{self.port}/fhir"

    @property
    def token_url(self) -> str:
        """Where tokens are given."""
        return f"http://127.0.0.1:{self.port}/token"

    def all(self, kind: str) -> list[Resource]:
        """The resources of a type that it holds."""
        return self.store.all(kind)

    def add_patient(self, system: str, value: str) -> None:
        """A patient, as the hospital registered it."""
        with self._lock:
            patient = {
                "resourceType": "Patient",
                "id": self._next(),
                "identifier": [{"system": system, "value": value}],
            }
            self.store.write(patient)

    def require_tokens(self, client: str, key: RSAKey | ECKey) -> None:
        """From now on only this client may write. key: with which it signs; the public part is enough."""
        self.client, self.keys, self.tokens = client, KeySet([key]), {}

    def end_tokens(self) -> None:
        """As if the server had forgotten them."""
        self.tokens = {}

    def _next(self) -> str:
        self._count += 1
        return str(self._count)

    def post(self, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        """The answer to what was posted to the base."""
        with self._lock:
            self.requests.append(body)
            self.headers.append(headers)
            forced = self.answers.pop(0) if self.answers else None
            if forced is not None:
                return forced
            if not self._is_known(headers.get("authorization", "")):
                return 401, _outcome("login", "no good token")
            try:
                if not headers.get("content-type", "").startswith(JSON):
                    raise Failed(415, "not-supported", "not FHIR JSON")
                self.store, answer = Transaction(self.store, _checked(body), self._next).done()
            except Failed as failed:
                return failed.status, _outcome(failed.code, failed.diagnostics)
        self.on_done()
        return 200, answer

    def _is_known(self, authorization: str) -> bool:
        if self.tokens is None:
            return True
        kind, _, token = authorization.partition(" ")
        return kind == "Bearer" and self.tokens.get(token, 0) > time.time()

    def token(self, body: bytes) -> tuple[int, Any]:
        """A token for a client assertion that is signed and meant as SMART says."""
        self.token_requests += 1
        if self.refuses_tokens is not None:
            return self.refuses_tokens
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        if form.get("grant_type") != "client_credentials" or form.get("client_assertion_type") != ASSERTION:
            return 400, {"error": "unsupported_grant_type"}
        try:
            self._check(form["client_assertion"])
        except (JoseError, KeyError, ValueError) as error:
            return 401, {"error": "invalid_client", "error_description": str(error)}
        token = f"token-{self.token_requests}"
        assert self.tokens is not None
        self.tokens[token] = time.time() + 300
        return 200, {"access_token": token, "token_type": "bearer", "expires_in": 300, "scope": form.get("scope", "")}

    def _check(self, assertion: str) -> None:
        found = jwt.decode(assertion, self.keys, algorithms=["RS384", "ES384"])
        claims, now = found.claims, time.time()
        if not found.header.get("kid") or found.header.get("typ") != "JWT":
            raise ValueError("header")
        if (claims["iss"], claims["sub"], claims["aud"]) != (self.client, self.client, self.token_url):
            raise ValueError("names")
        if not now < claims["exp"] <= now + 301 or claims["jti"] in self.used:
            raise ValueError("times")
        self.used.add(claims["jti"])


def _checked(body: bytes) -> Resource:
    """A transaction whose resources are valid. Raises Failed."""
    try:
        bundle: Resource = json.loads(body)
        get_fhir_model_class("Bundle").model_validate_json(body)
    except ValidationError as error:
        raise Failed(422, "structure", f"{error.error_count()} mistakes in {json.loads(body)}") from None
    except ValueError:
        raise Failed(400, "structure", "not JSON") from None
    if bundle["type"] != "transaction":
        raise Failed(400, "invalid", "not a transaction")
    return bundle


def _outcome(code: str, diagnostics: str) -> Resource:
    """As servers answer what they do not do; the diagnostics quote what was sent, patients included."""
    issue = {"severity": "error", "code": code, "diagnostics": diagnostics}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def _handler(server: FhirServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind, _, query = self.path.removeprefix("/fhir/").partition("?")
            if kind == "metadata":
                self._send(200, {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"})
                return
            if not server._is_known(self.headers.get("authorization", "")):
                self._send(401, _outcome("login", "no good token"))
                return
            found = [{"resource": one} for one in server.store.search(kind, query)]
            self._send(200, {"resourceType": "Bundle", "type": "searchset", "total": len(found), "entry": found})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answer = server.token(body) if self.path == "/token" else server.post(body, headers)
            if self.path != "/token" and server.silent:
                server.silent -= 1
                self.close_connection = True
                return
            self._send(status, answer)

        def _send(self, status: int, answer: Any) -> None:
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(answer, bytes) else JSON)
            self.send_header("Content-Length", str(len(body)))
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def fhir_server(port: int = 0, held: FhirServer | None = None) -> Iterator[FhirServer]:
    """A server that listens while the body runs. held: what it holds already, if it comes back."""
    found = held or FhirServer()
    listener = ThreadingHTTPServer(("127.0.0.1", port), _handler(found))
    listener.daemon_threads = True
    found.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join(20)
