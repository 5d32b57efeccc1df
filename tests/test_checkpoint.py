"""State on disk: what goes in comes out, bit for bit, and nothing else is mistaken for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fastconv import checkpoint


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_nested_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = {
        "weights": {"0.weight": rng.standard_normal((3, 2)).astype(np.float32), "scalar": np.array(2.5)},
        "steps": [1, 2.0000000000000004, None, True, "text"],
        "numbers": {1: np.arange(3), 2: {}},
        "strided": rng.standard_normal((4, 6))[::2, ::-1],
        "empty": np.empty((0, 3)),
        "special": [float("inf"), -0.0, 2**200],
        "@": "a key that looks like the format's own",
    }
    checkpoint.save(tmp_path / "state", state)
    back = checkpoint.load(tmp_path / "state")
    assert same(state | {"strided": np.ascontiguousarray(state["strided"])}, back)
    assert np.signbit(back["special"][1])
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_saving_replaces_or_leaves_the_old(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "state", {"a": 1})
    with pytest.raises(TypeError, match="cannot save b/0: object is neither an array nor a plain value"):
        checkpoint.save(tmp_path / "state", {"b": [object()]})
    assert checkpoint.load(tmp_path / "state") == {"a": 1}
    checkpoint.save(tmp_path / "state", {"a": 2})
    assert checkpoint.load(tmp_path / "state") == {"a": 2}


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(ValueError, match="no such checkpoint"):
        checkpoint.load(path)
    path.write_bytes(b"not a safetensors file at all")
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint.load(path)
    checkpoint.save(path, {"a": np.arange(100)})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint.load(path)
    save_file({"w": np.ones(3)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of fastconv's"):
        checkpoint.load(path)
