"""The cost model: choices that were measured, far enough apart to be no matter of noise, and how predictions grow."""

from dataclasses import replace

import pytest

from fastconv.dispatch import choose
from fastconv.problem import conv_problem, conv_transpose_problem
from fastconv.registry import rows_for
from fastconv.testing import cases

# (suite's case, batch, direction, the faster row); bench/results/choices.md has the times
CLEAR = [
    ("resnet/64x56-64k3", 1, "forward", "winograd_f4x4_3x3"),
    ("resnet/64x56-64k3", 16, "grad_weight", "direct"),
    ("vgg/512x14-512k3", 1, "forward", "winograd_f3x3_3x3"),
    ("unet/32x224-32k3", 1, "grad_input", "winograd_f4x4_3x3"),
    ("awkward/128x28-32k3", 16, "forward", "winograd_f4x4_3x3"),
    ("depthwise/240x28-240k5g240", 1, "forward", "depthwise"),
    ("depthwise/96x56-96k7g96", 16, "grad_weight", "direct"),
    ("first/3x224-64k7s2", 1, "forward", "direct_planar"),
    ("awkward/1x1024-8k5", 1, "forward", "direct_planar"),
    ("awkward/512x14-512k3g32", 16, "forward", "winograd_f5x5_3x3"),
    ("pointwise/64x56-256k1", 16, "forward", "pointwise"),
    ("pointwise/2048x7-512k1", 1, "forward", "direct"),
    ("pointwise/512x28-128k1", 16, "grad_weight", "im2col"),
    ("strided/512x38-512k3s2", 1, "grad_weight", "im2col"),
]


@pytest.mark.parametrize(("case", "batch", "direction", "faster"), CLEAR)
def test_clear_cases_are_chosen_right(case, batch, direction, faster):
    (found,) = [c for c in cases(op="conv") if c.name == case]
    assert choose(replace(found.problem(batch), direction=direction), threads=2).algorithm == faster


def test_clear_cases_beyond_the_suites():
    """Lanes whose inputs are packed one by one; rows of a transposed convolution that phases write by turns."""
    p = conv_problem("conv2d", 2, (1, 128, 56, 56), (128, 4, 3, 3), stride=2, padding=1, groups=32, prepared=True)
    assert choose(p, threads=2).algorithm == "direct_planar"  # 212 us, direct 636
    fields = {"stride": 4, "padding": 2, "direction": "grad_input", "prepared": True}
    p = conv_transpose_problem("conv_transpose2d", 2, (16, 64, 16, 16), (64, 32, 8, 8), **fields)
    assert choose(p, threads=2).algorithm == "direct_planar"  # 9.3 ms, Winograd 17; channels last 17.9 and 12.4
    assert choose(replace(p, layout="channels_last"), threads=2).algorithm == "winograd_f4x4_2x2"


@pytest.mark.parametrize("row", rows_for("conv", "forward", "cpu"), ids=lambda r: r.algorithm)
def test_predictions_grow_with_the_work_and_shrink_with_threads(row):
    def problem(n, c):
        return conv_problem("conv2d", 2, (n, c, 56, 56), (64, c, 3, 3), padding=1)

    times = [row.seconds(problem(n, c), 1) for n, c in ((1, 32), (1, 64), (4, 64), (16, 64))]
    assert times == sorted(times)
    assert times[-1] / times[-2] == pytest.approx(4, rel=0.1)
    if row.family != "reference":
        assert row.seconds(problem(16, 64), 1) / row.seconds(problem(16, 64), 2) == pytest.approx(2, rel=0.1)
    assert row.seconds(replace(problem(16, 64), dtype="float64"), 1) >= times[-1]
