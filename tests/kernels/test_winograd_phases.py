"""Winograd for a stride whose phases are channels."""

import numpy as np
import pytest

from fastconv.kernels.cpu import winograd_phases
from fastconv.problem import conv_problem
from fastconv.registry import ROWS
from fastconv.testing import check_row
from tests.guard import guarded

(ROW,) = (r for r in ROWS if r.algorithm.endswith("_phases"))

BY_PHASES = {
    (11, 4): {"padding": 2},
    (9, (3, 4)): {"padding": 4, "padding_mode": "reflect", "layout": "channels_last", "n": 3, "k": 33},
    ((7, 3), (3, 1)): {"padding": 1, "groups": 2, "c": 6, "k": 38, "bias_shape": (38,), "activation": "relu"},
    (5, 2): {"padding": ((9, 0), (0, 2)), "n": 2, "residual_shape": True, "activation": "silu"},
    ((12, 6), (4, 2)): {"padding": 1, "padding_mode": "circular", "size": (40, 9)},
}


@pytest.mark.parametrize("shape", BY_PHASES, ids=str)
def test_phases_as_channels(shape, monkeypatch):
    kernel, stride = ((v, v) if isinstance(v, int) else v for v in shape)
    fields = {"n": 1, "c": 3, "k": 20, "size": (37, 45), **BY_PHASES[shape]}
    n, c, k, size = (fields.pop(name) for name in ("n", "c", "k", "size"))
    weights = (k, c // fields.get("groups", 1), *kernel)
    for images in (winograd_phases.IMAGE_BYTES, 1):
        monkeypatch.setattr(winograd_phases, "IMAGE_BYTES", images)
        for dtype in ("float32", "float64"):
            p = conv_problem("conv", 2, (n, c, *size), weights, stride=stride, dtype=dtype, **fields)
            check_row(ROW, p, rng=np.random.default_rng(0), threads=3, empty=guarded)
            check_row(ROW, p, rng=np.random.default_rng(1), integers=True)


def test_what_phases_do_not_compute():
    shapes = (1, 3, 40, 40), (8, 3, 11, 11)
    assert ROW.refuses(conv_problem("conv", 2, *shapes, stride=4)) is None
    assert "taps of a kernel a phase" in ROW.refuses(conv_problem("conv", 2, *shapes, stride=2))
    assert "taps of a kernel a phase" in ROW.refuses(conv_problem("conv", 2, (1, 3, 9, 9), (8, 3, 3, 3)))
    assert "dilation 1" in ROW.refuses(conv_problem("conv", 2, *shapes, stride=4, dilation=2))
    assert "two dimensions" in ROW.refuses(conv_problem("conv", 1, (1, 3, 40), (8, 3, 11), stride=4))
