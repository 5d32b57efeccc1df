"""ONNX's own backend tests: every node test of every operator, its small models, and its nine published networks.

The tests and what they expect come with the package ``onnx``. None is chosen; what is left out has its reason.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest

from fastconv.backends.onnx.fallback import OWN, Reference
from tests.support import require

require("onnx")

import fastconv.backends.onnx as backend  # noqa: E402

LEFT_OUT = {
    "test_bernoulli": "draws random numbers",
    "test_if_opt_cpu": "onnx.reference wraps an optional sequence once too often",
    "test_loop16_seq_none_cpu": "a sequence of arrays of unlike shapes, which the test itself cannot compare",
    "test_range_bfloat16_type_positive_delta_expanded_cpu": "onnx.reference: a Loop makes columns of scalars",
    "test_range_float16_type_positive_delta_expanded_cpu": "onnx.reference: a Loop makes columns of scalars",
    "test_range_float_type_positive_delta_expanded_cpu": "onnx.reference: a Loop makes columns of scalars",
    "test_range_int32_type_negative_delta_expanded_cpu": "onnx.reference: a Loop makes columns of scalars",
    "test_scan_sum_cpu": "onnx.reference lacks Scan before version 9",
    "test_scatter_with": "onnx.reference lacks Scatter, which ScatterElements replaced in version 11",
    "test_gradient_of_add": "onnx.reference lacks Gradient, of training",
}
"""Beginnings of names. None is a convolution or pooling; all are of operators that ``onnx.reference`` runs."""

QUANTISED = frozenset({"ConvInteger", "QLinearConv"})
"""Convolutions that may run through the reference: their numbers are no floats."""

CATEGORIES = {
    "NodeModel": 1700,
    "SimpleModel": 20,
    "PyTorchConvertedModel": 80,
    "PyTorchOperatorModel": 30,
    "RealModel": 9,
}
"""ONNX's names for its kinds of tests, and how many there must be at least: finding none is no success."""


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """Classes of tests by category. Importing them runs ONNX's code that computes what is expected, with warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test import BackendTest

        return dict(BackendTest(backend).test_cases)


@pytest.mark.parametrize("category", CATEGORIES)
def test_onnxs_own(
    category: str, cases: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.getbasetemp() / "onnx"  # where the networks' inputs are put
    monkeypatch.setenv("ONNX_HOME", str(home))
    monkeypatch.setenv("ONNX_MODELS", str(home / "models"))
    ran: list[str] = []
    original = Reference.__call__

    def spy(self: Reference, *inputs: Any) -> list[Any]:
        ran.append(self.node.op)
        return original(self, *inputs)

    monkeypatch.setattr(Reference, "__call__", spy)
    suite = cases[f"OnnxBackend{category}Test"]
    names = [
        n for n in dir(suite) if n.startswith("test_") and n.endswith("_cpu") and not n.startswith(tuple(LEFT_OUT))
    ]
    failures = {}
    for name in names:
        try:
            getattr(suite, name)(suite(name))
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    assert failures == {}
    assert len(names) >= CATEGORIES[category]
    convolved = {op for op in ran if "Conv" in op or "Pool" in op}
    assert convolved <= QUANTISED | {"DeformConv", "CausalConvWithState", "MaxRoiPool"}
    assert not convolved & OWN
    if category == "NodeModel":
        assert convolved >= QUANTISED


def test_what_is_left_out_exists(cases: dict[str, Any]) -> None:
    names = [name for suite in cases.values() for name in dir(suite)]
    assert [start for start in LEFT_OUT if not any(name.startswith(start) for name in names)] == []


def test_only_the_cpu_is_supported() -> None:
    assert backend.supports_device("CPU")
    assert backend.supports_device("CPU:0")
    assert not backend.supports_device("CUDA")
    with pytest.raises(ValueError, match="device must be 'CPU', got 'CUDA': ONNX models run on the CPU only"):
        backend.prepare(Path("model.onnx"), "CUDA")
