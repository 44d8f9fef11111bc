"""What a request asks for, in the words of PS3.18: matching keys, how many, from where on, in which media type.

Nothing of it is trusted: a value is checked against its pattern, and is a bound parameter of a query or compared in
memory, never part of a path. A key that cannot be matched is refused: to leave it out would show other patients than
were asked for.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException

from dicom_node.web.dicomweb.offered import DICOM, EXPLICIT_LE, JSON, LONGEST, MOST, MOST_KEYS, MOST_OFFSET

UID = re.compile(r"[0-9.]{1,64}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_DAY = re.compile(r"([0-9]{8})?(-)?([0-9]{8})?")
_OTHERS = {"limit", "offset", "fuzzymatching", "includefield"}
DAY_S = 86_400.0


@dataclass(frozen=True)
class Asked:
    """matches: what each key must be, by its keyword; those that match anything are left out. warnings: for the header
    of that name."""

    matches: Mapping[str, str]
    limit: int
    offset: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Days:
    """A range of Study Dates, YYYYMMDD, both included; None: open."""

    since: str | None
    until: str | None

    @property
    def reported_since(self) -> float | None:
        """No result on such a study is older, Unix seconds: a day is left for the scanner's time zone."""
        if self.since is None:
            return None
        return datetime.strptime(self.since, "%Y%m%d").replace(tzinfo=UTC).timestamp() - DAY_S


def asked(query: QueryParams, keys: Mapping[str, str]) -> Asked:
    """What the query of an address asks for. keys: those that can be matched, by tag. Raises HTTPException."""
    pairs = query.multi_items()
    if len(pairs) > MOST_KEYS or any(len(value) > LONGEST for _, value in pairs):
        raise HTTPException(400, "That is too much for one request.")
    given = {name: value.strip() for name, value in pairs if name != "includefield"}
    if len(given) != sum(name != "includefield" for name, _ in pairs):
        raise HTTPException(400, "A key may be there only once.")
    warnings = []
    if given.get("fuzzymatching", "false") != "false":
        warnings.append("The fuzzymatching parameter is not supported. Only literal matching has been performed.")
    return Asked(_matches(given, keys), _limit(given), _offset(given), tuple(warnings))


def _matches(given: Mapping[str, str], keys: Mapping[str, str]) -> dict[str, str]:
    names = {**keys, **{keyword: keyword for keyword in keys.values()}}
    found: dict[str, str] = {}
    for name, value in given.items():
        if name in _OTHERS or value in ("", "*"):
            continue
        keyword = names.get(name) or names.get(name.upper())
        if keyword is None:
            raise HTTPException(400, f"These keys can be matched here: {', '.join(sorted(keys.values()))}.")
        if "*" in value or "?" in value:
            raise HTTPException(400, "Wildcards are not supported.")
        if keyword.endswith("UID") and not all(UID.fullmatch(uid) for uid in uids(value)):
            raise HTTPException(400, f"{keyword} is not a UID.")
        if keyword in found:
            raise HTTPException(400, "A key may be there only once.")
        found[keyword] = value
    return found


def _limit(given: Mapping[str, str]) -> int:
    return min(_number(given, "limit", MOST), MOST)


def _offset(given: Mapping[str, str]) -> int:
    offset = _number(given, "offset", 0)
    if offset > MOST_OFFSET:
        raise HTTPException(400, f"offset must be {MOST_OFFSET} or less: ask for a patient or for other days.")
    return offset


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    value = given.get(name) or str(default)
    if not _NUMBER.fullmatch(value):
        raise HTTPException(400, f"{name} must be a number of at most 9 digits.")
    return int(value)


def uids(value: str) -> tuple[str, ...]:
    """The UIDs of a list of them."""
    return tuple(re.split(r"[\\,]", value))


def uid_of(path_params: Mapping[str, str], name: str) -> str:
    """A UID of the path. Raises HTTPException."""
    value = path_params[name]
    if not UID.fullmatch(value):
        raise HTTPException(400, "That is not a UID.")
    return value


def days(value: str | None) -> Days:
    """A Study Date or a range of them. Raises HTTPException."""
    if value is None:
        return Days(None, None)
    found = _DAY.fullmatch(value)
    if not found or not (found[1] or found[3]) or (found[3] and not found[2]):
        raise HTTPException(400, "StudyDate must be YYYYMMDD, or a range such as 20260101-20260131.")
    for day in (found[1], found[3]):
        try:
            datetime.strptime(day or "20260101", "%Y%m%d")
        except ValueError:
            raise HTTPException(400, "There is no such day.") from None
    return Days(found[1], found[3] if found[2] else found[1])


def refuse_other_than_json(headers: Headers) -> None:
    """Raises HTTPException if the answer may not be JSON."""
    accepted = {kind for kind, _ in _accepted(headers)}
    if not accepted & {JSON, "application/json", "application/*", "*/*"}:
        raise HTTPException(406, f"The answer is {JSON}.")


def is_single_part(headers: Headers, *, single: bool, form: str = DICOM) -> bool:
    """Whether objects, or frames, go as one body and not as parts; single: there is one. form: their media type.

    Raises HTTPException if they may not go as they are stored.
    """
    for kind, parameters in _accepted(headers):
        if parameters.get("transfer-syntax", "*") not in ("*", EXPLICIT_LE):
            continue
        if kind in ("*/*", "multipart/*") or (
            kind == "multipart/related" and parameters.get("type", form) in (form, "*/*", "application/*")
        ):
            return False
        if single and kind in (form, "application/*"):
            return True
    what = "Objects" if form == DICOM else "Frames"
    raise HTTPException(406, f'{what} go as multipart/related; type="{form}", in Explicit VR Little Endian.')


def accepted_kinds(headers: Headers) -> list[str]:
    """The media types that an answer may have, as they are listed; anything, if nothing is said."""
    return [kind for kind, _ in _accepted(headers)]


def _accepted(headers: Headers) -> Iterable[tuple[str, dict[str, str]]]:
    """Media types and their parameters, in lower case; anything, if nothing is said."""
    for one in (headers.get("accept") or "*/*").casefold()[:LONGEST].split(","):
        kind, *rest = (part.strip() for part in one.split(";"))
        pairs = (part.partition("=") for part in rest)
        parameters = {name.strip(): value.strip().strip('"') for name, _, value in pairs}
        if not re.fullmatch(r"0(\.0*)?", parameters.get("q", "1")):
            yield kind, parameters
