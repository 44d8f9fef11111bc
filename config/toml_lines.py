"""On which line of a TOML file a setting stands; `tomllib` does not say."""

import re
from collections.abc import Iterator

from config.rules import Location

_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*""")
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")
_STRINGS = re.compile(r'"""|\'\'\'|"(?:\\.|[^"\\])*"|\'[^\']*\'|#.*')


def line_of(location: Location, text: str) -> int | None:
    """1-based line of a value in valid TOML text: of its key, else of its table's header; None if neither is there."""
    best: int | None = None
    depth = 0
    for number, found in _keys(text):
        if found == location[: len(found)] and len(found) > depth:
            best, depth = number, len(found)
    return best


def _keys(text: str) -> Iterator[tuple[int, Location]]:
    """Line and full path of every header and every key outside of multi-line values."""
    table: Location = ()
    counts: dict[Location, int] = {}
    closing, open_brackets = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        rest = line
        if not closing and open_brackets <= 0:
            header = re.match(r"\s*(\[\[?)\s*(.*?)\s*\]", line)
            if header:
                table = _table(_parts(header[2]), header[1] == "[[", counts)
                yield number, table
                continue
            key = _KEY.match(line)
            if not key or line[key.end() : key.end() + 1] != "=":
                continue
            yield number, (*table, *_parts(key[1]))
            rest, open_brackets = line[key.end() + 1 :], 0
        closing, opened = _left_open(rest, closing)
        open_brackets += opened


def _table(parts: tuple[str, ...], is_array: bool, counts: dict[Location, int]) -> Location:
    """The path of a header: names with the index of the latest entry after each array of tables."""
    path: Location = ()
    for position, part in enumerate(parts):
        path = (*path, part)
        last = position == len(parts) - 1
        if is_array and last:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _parts(key: str) -> tuple[str, ...]:
    return tuple(next(group for group in match.groups() if group is not None) for match in _PART.finditer(key))


def _left_open(rest: str, closing: str) -> tuple[str, int]:
    """What a line leaves open: the quotes of a multi-line string, or "", and how many brackets more than it closes."""
    if closing:
        _, found, rest = rest.partition(closing)
        if not found:
            return closing, 0
    plain = ""
    while token := _STRINGS.search(rest):
        plain += rest[: token.start()]
        rest = rest[token.end() :]
        if token[0] in ('"""', "'''"):
            _, found, rest = rest.partition(token[0])
            if not found:
                return token[0], _surplus(plain)
    return "", _surplus(plain + rest)


def _surplus(text: str) -> int:
    return sum(text.count(c) for c in "[{") - sum(text.count(c) for c in "]}")
