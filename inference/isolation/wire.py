"""What passes between the node and a model's own process: JSON and raw arrays, and nothing that runs.

The volume goes without UIDs, paths and the headers' free texts. What comes back is checked by `answer`.
"""

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.models.toml_fields import plain
from inference.plug import DeviceChoice, Output
from inference.volume.ct_volume import CTVolume, SeriesHeader, SourceSlice

JSON_SIZE = struct.Struct("<Q")
"""What an encoded output begins with: how long its JSON is; then that, then the arrays, masks packed to bits."""
_NOT_PASSED_ON = frozenset(
    {"series_description", "study_description", "protocol_name", "derivation", "image_comments", "acquisition_number"}
)


def describe_volume(volume: CTVolume) -> dict[str, Any]:
    """All that a model is told about a volume, apart from its voxels, as JSON types."""
    header = {
        field.name: getattr(volume.header, field.name)
        for field in dataclasses.fields(SeriesHeader)
        if field.name not in _NOT_PASSED_ON
    }
    return {
        "shape": list(volume.hu.shape),
        "spacing_mm": list(volume.spacing_mm),
        "affine": volume.affine.tolist(),
        "positions_mm": [list(slice_.position_mm) for slice_ in volume.slices],
        "rescale": [list(pair) for pair in volume.rescale],
        "flipped": list(volume.flipped),
        "header": {**header, "equipment": sorted(map(list, volume.header.equipment))},
    }


def volume_from(told: Mapping[str, Any], hu: npt.NDArray[np.int16]) -> CTVolume:
    """The volume in the model's process. hu: (Z, Y, X), HU."""
    header = dict(told["header"])
    header["image_type"] = tuple(header["image_type"])
    header["equipment"] = frozenset((maker, model) for maker, model in header["equipment"])
    return CTVolume(
        hu=hu,
        spacing_mm=tuple(told["spacing_mm"]),
        affine=np.array(told["affine"], np.float64),
        slices=tuple(SourceSlice(Path(), "", "", 0, tuple(position)) for position in told["positions_mm"]),
        series_instance_uid="",
        study_instance_uid="",
        header=SeriesHeader(**header),
        rescale=tuple((slope, intercept) for slope, intercept in told["rescale"]),
        flipped=tuple(told["flipped"]),
    )


def device_from(told: Mapping[str, Any]) -> DeviceChoice:
    """The device that was chosen for the model."""
    return DeviceChoice(**told)


def encode_output(output: Output) -> list[bytes]:
    """An output as the parts of a message. Raises TypeError if it is not made of plain data."""
    arrays: list[bytes] = []
    table = plain(output)
    for segment in table["segments"]:
        segment["mask"] = _described(segment.get("mask"), "bool", arrays)
    if "heat" in table:
        table["heat"] = _described(table["heat"], "uint8", arrays)
    text = json.dumps(table, default=_python_number).encode()
    return [JSON_SIZE.pack(len(text)), text, *arrays]


def _described(array: object, dtype: str, arrays: list[bytes]) -> dict[str, Any]:
    """What an array is. Its content follows in `arrays` if it is of the right type; else nobody needs it."""
    if not isinstance(array, np.ndarray):
        return {"dtype": type(array).__name__, "shape": []}
    if array.dtype == dtype:
        arrays.append((np.packbits(array) if dtype == "bool" else np.ascontiguousarray(array)).tobytes())
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def _python_number(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected plain data, found {type(value).__name__}")
