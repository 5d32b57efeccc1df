"""Nested state in one safetensors file: arrays as tensors, everything else as JSON in the header.

No pickle: reading a file runs no code. Writing is atomic: a crash leaves the old file or the new one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .extras import extra

FORMAT = "fastconv-checkpoint-1"
ARRAY = "@"  # {"@": key} in the JSON stands for the tensor of that key


def save(path: str | Path, state: Any) -> None:
    """Write dictionaries, lists, strings, numbers, None and NumPy arrays, nested in any way.

    Parameters
    ----------
    path : the file; replaced atomically if it exists.
    state : dictionary keys are strings or integers (read back as such).

    Raises
    ------
    ImportError : safetensors is missing.
    TypeError : something that is none of these.
    """
    safetensors = extra("safetensors.numpy", "examples", "saving weights")
    tensors: dict[str, np.ndarray] = {}
    header = {"format": FORMAT, "state": json.dumps(_pack(state, "", tensors))}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(safetensors.save(tensors, header))
    os.replace(partial, path)


def load(path: str | Path) -> Any:
    """Read what :func:`save` wrote, bit for bit.

    Raises
    ------
    ImportError : safetensors is missing.
    ValueError : no such file, damaged, or written by something else.
    """
    safetensors = extra("safetensors", "examples", "reading a checkpoint")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(
                    f"{path}: not a checkpoint of fastconv's (format {header.get('format')!r}, needed {FORMAT!r})"
                )
            return _unpack(json.loads(header["state"]), file.get_tensor)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged checkpoint: {error}") from None


def _pack(value: Any, key: str, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        tensors[key] = np.ascontiguousarray(value).reshape(value.shape)  # ascontiguousarray makes 0-d arrays 1-d
        return {ARRAY: key}
    if isinstance(value, dict):
        return {"pairs": [[k, _pack(v, f"{key}/{k}" if key else str(k), tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(v, f"{key}/{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot save {key or 'state'}: {type(value).__name__} is neither an array nor a plain value")


def _unpack(value: Any, tensor: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensor) for v in value]
    if isinstance(value, dict):
        if ARRAY in value:
            return tensor(value[ARRAY])
        return {k: _unpack(v, tensor) for k, v in value["pairs"]}
    return value
