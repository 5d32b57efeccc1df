"""Weights on disk, in the safetensors format: plain arrays by name, no code, readable by every framework."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import array_module
from ..extras import extra
from .module import Module


def save(path: str | os.PathLike[str], model: Module | Mapping[str, Any]) -> None:
    """Write a module's parameters and buffers, or any arrays by name, to a safetensors file.

    >>> import pathlib, tempfile
    >>> from fastconv import nn
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> model = nn.Linear(2, 1)
    >>> nn.save(path, model)
    >>> model.load_state_dict(nn.load(path))

    The file is replaced in one step: an interruption leaves the old one.

    Raises
    ------
    ImportError : safetensors is missing (the extra ``fastconv[examples]`` has it).
    """
    numpy_format = extra("safetensors.numpy", "examples", "nn.save")
    state = model.state_dict() if isinstance(model, Module) else model
    arrays = {
        name: np.ascontiguousarray(a if array_module(a) is np else a.get()).reshape(np.shape(a))
        for name, a in state.items()
    }
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(numpy_format.save(arrays))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file, by name; :meth:`Module.load_state_dict` takes them.

    Raises
    ------
    OSError : the file cannot be opened.
    ValueError : it is damaged or of another format.
    ImportError : safetensors is missing (the extra ``fastconv[examples]`` has it).
    """
    numpy_format = extra("safetensors.numpy", "examples", "nn.load")
    content = Path(path).read_bytes()
    try:
        return dict(numpy_format.load(content))
    except Exception as error:  # SafetensorError derives from Exception alone
        raise ValueError(f"{path}: not a safetensors file, or cut off ({error})") from error
