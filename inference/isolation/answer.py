"""The output that a model's own process sent: nothing of it is believed before it was checked."""

import dataclasses
import json
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import ModelError
from inference.isolation.known_codes import UnknownCode, require_known
from inference.isolation.wire import JSON_SIZE
from inference.models.toml_fields import convert
from inference.output_check import check_output
from inference.plug import Code, Output, Segment
from inference.volume.ct_volume import CTVolume

LONGEST_JSON = 4 << 20
LONGEST_TEXT = 1024


class TooMuch(ValueError):
    """The output is larger than what the model may hold."""


def longest_message(volume: CTVolume, most_bytes: int) -> int:
    """How long an encoded output of this volume may be, in bytes. most_bytes: see `decode_output`."""
    return JSON_SIZE.size + LONGEST_JSON + volume.hu.size + most_bytes // 8


def decode_output(message: bytes | bytearray, volume: CTVolume, most_bytes: int) -> Output:
    """An output as a model's process sent it.

    most_bytes: of all masks together, once they are unpacked.
    Raises ValueError, naming what is wrong, if it is not an output of this volume; UnknownCode (`known_codes`) for a
    code that is not known; TooMuch.
    """
    (size,) = JSON_SIZE.unpack_from(message) if len(message) >= JSON_SIZE.size else (0,)
    if size > LONGEST_JSON:
        raise TooMuch(f"{size} bytes of JSON")
    start = JSON_SIZE.size
    table = json.loads(message[start : start + size], parse_constant=_refuse_constant)
    if not isinstance(table, dict):
        raise ValueError("expected a table")
    arrays = _Arrays(memoryview(message)[start + size :], volume.hu.shape)
    segments = table.pop("segments", [])
    if not isinstance(segments, list):
        raise ValueError("segments: expected a list")
    if len(segments) * volume.hu.size > most_bytes:
        raise TooMuch("masks larger than the memory of the model")
    try:
        found = tuple(_segment(entry, f"segments[{index}]", arrays) for index, entry in enumerate(segments))
        heat = arrays.heat(table.pop("heat")) if "heat" in table else None
        output = Output(segments=found, heat=heat, **_fields(Output, table, "output"))
    except ModelError as error:
        raise ValueError(str(error)) from None
    _require_plain(output)
    check_output(output, volume)
    return output


def require_declared(output: Output, codes: Sequence[Code]) -> None:
    """Raise UnknownCode for something measured or found that is not among these: the card does not speak of it."""
    concepts = [measured.concept for measured in output.measurements] + [found.concept for found in output.findings]
    for concept in concepts:
        if not any(concept.is_same(code) for code in codes):
            raise UnknownCode(
                f"{concept.value} of {concept.scheme}, {concept.meaning}: not among [[codes]] of its card"
            )


def _segment(entry: object, where: str, arrays: "_Arrays") -> Segment:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a table")
    mask = arrays.mask(entry.pop("mask", None), where)
    return Segment(mask=mask, **_fields(Segment, entry, where))


def _fields(kind: type, table: Mapping[str, object], where: str) -> dict[str, Any]:
    """The fields of a dataclass, each of its type. Raises ModelError."""
    hints = typing.get_type_hints(kind)
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing, unknown = required - {"mask"} - table.keys(), table.keys() - hints.keys()
    if missing or unknown:
        raise ModelError(f"{where}: missing {sorted(missing)}, unknown {sorted(unknown)}")
    return {name: convert(hints[name], value, f"{where}.{name}") for name, value in table.items()}


class _Arrays:
    """The arrays of a message, in the order in which they were sent."""

    def __init__(self, data: memoryview, shape: tuple[int, ...]) -> None:
        self._data = data
        self._shape = shape
        self._voxels = math.prod(shape)

    def mask(self, said: object, where: str) -> npt.NDArray[np.bool_]:
        """Bool (Z, Y, X)."""
        packed = self._next(said, "bool", where, -(-self._voxels // 8))
        return np.unpackbits(packed, count=self._voxels).view(np.bool_).reshape(self._shape)

    def heat(self, said: object) -> npt.NDArray[np.uint8]:
        """uint8 (Z, Y, X)."""
        return self._next(said, "uint8", "heat", self._voxels).reshape(self._shape).copy()

    def _next(self, said: object, dtype: str, where: str, size: int) -> npt.NDArray[np.uint8]:
        if said != {"dtype": dtype, "shape": list(self._shape)}:
            raise ValueError(f"{where}: expected {dtype} {self._shape}, the grid of the volume; found {said}")
        part, self._data = self._data[:size], self._data[size:]
        if len(part) < size:
            raise ValueError(f"{where}: cut off")
        return np.frombuffer(part, np.uint8)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a finite number")


def _require_plain(value: object, where: str = "output") -> None:
    """Known codes, and texts that a person can read, all the way down. Raises ValueError."""
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT or not value.isprintable():
            raise ValueError(f"{where}: expected at most {LONGEST_TEXT} printable characters")
    elif isinstance(value, Code):
        require_known(value)
    for name, part in _parts(value):
        _require_plain(part, f"{where}.{name}")


def _parts(value: object) -> Iterator[tuple[object, object]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return ((name, part) for name, entry in value.items() for part in (name, entry))
    return iter(enumerate(value) if isinstance(value, list | tuple) else ())
