"""Who may ask, from which viewers, and the audit row of what they saw.

Either a login to the pages, whose cookie no other site's request brings, or the bearer token of the settings.
"""

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from config.rules import is_this_machine
from dicom_node.web.context import context_of
from dicom_node.web.security import logins
from dicom_node.web.security.audited import audited
from dicom_node.web.security.guard import Guarded, address_of, marked
from dicom_node.web.security.roles import Role, User
from inference.errors import InferenceError
from inference.models.registry import is_demonstration
from storage import audit
from storage.errors import CorruptFile, NotFound, StorageError

log = structlog.get_logger()

TOKEN_USER = "(token of [web.dicomweb])"
"""A name that no account can have."""
SHORTEST_TOKEN, LONGEST_TOKEN = 32, 4096
FOLD_S = 600.0
"""One row tells what somebody sees of a study within this time."""
MOST_KEPT = 10_000
NO_LOGIN = {"WWW-Authenticate": 'Bearer realm="dicom-node"'}


class Folded:
    """What was audited lately. clock: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._noted: OrderedDict[Hashable, float] = OrderedDict()

    def once(self, key: Hashable, note: Callable[[], None]) -> None:
        """Write this row unless it was written within FOLD_S. Raises what `note` raises; then it counts as not
        written."""
        with self._lock:
            if self._clock() - self._noted.get(key, float("-inf")) < FOLD_S:
                return
            note()
            self._noted[key] = self._clock()
            self._noted.move_to_end(key)
            while len(self._noted) > MOST_KEPT:
                self._noted.popitem(last=False)


def for_viewers(endpoint: Callable[[Request], Response]) -> Guarded:
    """An endpoint for whoever may see the pages, and for the token. Its errors are plain words, not a page."""

    async def guarded(request: Request) -> Response:
        response = await run_in_threadpool(_answer, request, endpoint)
        response.headers.update(_for_origin(request))
        return response

    return marked(guarded, endpoint, str(Role.VIEWER))


def _answer(request: Request, endpoint: Callable[[Request], Response]) -> Response:
    if request.method == "OPTIONS":  # a browser asks whether a script may ask; it sends no login
        return Response(status_code=204)
    try:
        user = _user(request)
        if user is None:
            return PlainTextResponse("Log in, or send the bearer token.\n", 401, NO_LOGIN)
        request.state.user = user
        return endpoint(request)
    except HTTPException as error:
        return PlainTextResponse(f"{error.detail}\n", error.status_code)
    except NotFound:
        return PlainTextResponse("That is not there, or no longer.\n", 404)
    except CorruptFile:
        return PlainTextResponse("An object's file is missing or cannot be read.\n", 410)
    except StorageError as error:
        log.warning("the index does not answer a viewer", error=type(error).__name__)
        return PlainTextResponse("The index or the store does not answer. Try again in a moment.\n", 503)


def _user(request: Request) -> User | None:
    given = request.headers.get("authorization")
    if given is None:
        user = logins.user_of(request)
        return user if user is not None and user.may(Role.VIEWER) else None
    scheme, _, token = given.partition(" ")
    expected = token_in(context_of(request).settings.web.dicomweb.credentials)
    if scheme.casefold() == "bearer" and expected and hmac.compare_digest(token.strip().encode(), expected.encode()):
        return User(0, TOKEN_USER, frozenset({Role.VIEWER}), "")
    folded_of(request).once(("refused", address_of(request)), lambda: _note_refusal(request))
    return None


def token_in(path: Path | None) -> str:
    """The token in a file, read anew each time so that it can be exchanged; empty if there is none that counts."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            token = file.read(LONGEST_TOKEN).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        log.warning("the token of [web.dicomweb] cannot be read")
        return ""
    if len(token) < SHORTEST_TOKEN:
        log.warning("the token of [web.dicomweb] is too short, so nobody is let in by it", needs=SHORTEST_TOKEN)
        return ""
    return token


def _note_refusal(request: Request) -> None:
    peer = audit.Peer(address=address_of(request))
    with context_of(request).database.transaction() as tx:
        audit.append(tx, time.time(), "web.login-refused", peer=peer, outcome="REFUSED", detail={"by": "dicomweb"})


def _for_origin(request: Request) -> dict[str, str]:
    """What lets a viewer of another origin read the answer. Never with its cookies."""
    origin = request.headers.get("origin", "")
    if origin not in context_of(request).settings.web.dicomweb.origins:
        return {"Vary": "Origin"}
    return {
        "Vary": "Origin",
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET",
        "Access-Control-Allow-Headers": "Authorization, Accept",
        "Access-Control-Expose-Headers": "Warning",
        "Access-Control-Max-Age": "600",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }


def folded_of(request: Request) -> Folded:
    """Of this process."""
    found: Folded = request.app.state.dicomweb_folded
    return found


def may_leave(request: Request, model_name: str, model_digest: str) -> bool:
    """Whether results of a model may go to where the request comes from: a demonstration model's stay on this
    machine, as with destinations."""
    settings = context_of(request).settings
    if settings.model.allow_demonstration_model or is_this_machine(address_of(request)):
        return True
    try:
        return not is_demonstration(settings.models_dir, model_name, model_digest)
    except InferenceError as error:
        log.error("the card of a model cannot be read, so results stay here", error=type(error).__name__)
        return False


def note_look(request: Request, what: str, study_pk: int, study_uid: str, patient_id: str) -> None:
    """The audit row about a look at a study, once within FOLD_S for each person, address and kind of look. Raises
    StorageError: then nothing is shown."""
    about = audit.Subject(study_uid=study_uid, patient_id=patient_id)
    row = partial(audited, request, "web.read", about, page="dicomweb", what=what)
    folded_of(request).once((*_who(request), study_pk, what), row)


def note_search(request: Request, study_uids: Sequence[str]) -> None:
    """The same about a search, unless it showed the same studies."""
    row = partial(audited, request, "web.read", page="dicomweb", what="search", studies=list(study_uids))
    folded_of(request).once((*_who(request), *study_uids), row)


def _who(request: Request) -> tuple[str, str]:
    return request.state.user.name, address_of(request)
