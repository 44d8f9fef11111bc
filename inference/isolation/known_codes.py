"""Whether a code exists: a misspelt one in a report would tell a machine something else, or nothing."""

import re
from functools import cache

from pydicom.sr.codedict import codes

from inference.plug import Code


class UnknownCode(ValueError):
    """A code that its scheme does not have, or a scheme that the node does not know."""


def require_known(code: Code) -> None:
    """Raise UnknownCode unless the code can exist.

    It can if DICOM's own dictionary has it; otherwise, as no release of the other schemes ships with the node:
    SCT: a concept identifier with the right check digit (SNOMED CT Release File Specifications, "SCTID").
    UCUM: atoms of UCUM with prefixes and exponents.  LN: a LOINC number with its check digit.
    "99...": private, so nobody can say.
    """
    if code.scheme.startswith("99"):
        return
    if code.scheme not in _SCHEMES:
        raise UnknownCode(f"{code.value}: the scheme {code.scheme!r} is not one of {', '.join(_SCHEMES)} or 99...")
    if code.value not in _listed(code.scheme) and not _SCHEMES[code.scheme](code.value):
        raise UnknownCode(f"{code.value} is not a code of {code.scheme}")


@cache
def _listed(scheme: str) -> frozenset[str]:
    """The codes of a scheme that DICOM uses."""
    return frozenset(code.value for code in getattr(codes, scheme).concepts.values())


# Verhoeff's scheme: the multiplication of the dihedral group D5, and a permutation of the digits by position.
_TIMES = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_PERMUTED = (
    "0123456789",
    "1576283094",
    "5803796142",
    "8916043527",
    "9453126870",
    "4286573901",
    "2793806415",
    "7046913258",
)


def _is_snomed(value: str) -> bool:
    if not re.fullmatch(r"[1-9][0-9]{5,17}", value) or value[-3:-1] not in ("00", "10"):
        return False
    check = 0
    for position, digit in enumerate(reversed(value)):
        check = int(_TIMES[check][int(_PERMUTED[position % 8][int(digit)])])
    return check == 0


def _is_loinc(value: str) -> bool:
    """LOINC numbers, parts (LP) and answers (LA) end with a check digit by modulus 10 (Luhn)."""
    if not re.fullmatch(r"(L[AP])?[0-9]{1,8}-[0-9]", value):
        return False
    digits = [int(digit) for digit in value if digit.isdigit()][::-1]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[0::2]) + sum(doubled)) % 10 == 0


_PREFIXES = "Y|Z|E|P|T|G|M|k|h|da|d|c|m|u|n|p|f|a|z|y"
_METRIC = r"m|g|s|K|T|Cel|L|l|mol|eq|Pa|bar|m\[Hg\]|Hz|J|eV|W|V|A|N|Gy|Sv|Bq|Ci|rad|sr|t|u|U|\[iU\]|B|bit|By|osm|dyn"
_OTHER = r"1|%|min|h|d|wk|mo|a|deg|'|''|\[hnsf'U\]|\[arb'U\]|\[pH\]|\[ppth\]|\[ppm\]|\[ppb\]|\[in_i\]|10\*|10\^"
_TERM = rf"(?:(?:(?:{_PREFIXES})?(?:{_METRIC})|{_OTHER})(?:[+-]?[0-9]+)?(?:{{[^{{}}]+}})?|{{[^{{}}]+}})"
_UCUM = re.compile(rf"/?{_TERM}(?:[./]{_TERM})*")


def _is_ucum(value: str) -> bool:
    return _UCUM.fullmatch(value) is not None


_SCHEMES = {"DCM": lambda value: False, "SCT": _is_snomed, "UCUM": _is_ucum, "LN": _is_loinc}
