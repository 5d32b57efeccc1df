"""PyTorch's own samples of its convolutions and poolings, through fastconv's."""

from functools import partial

import pytest

from tests.support import require

torch = require("torch")
require("expecttest")  # which PyTorch's tests import

from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402

from fastconv.backends import torch as fct  # noqa: E402

NAMES = frozenset(fct.__all__) - {"use"}


def samples():
    for info in op_db:
        if info.name.removeprefix("nn.functional.") in NAMES:
            yield pytest.param(info, id=info.name.removeprefix("nn.functional.") + info.variant_test_name)


def float64(value):
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def results(function, sample, lift=None):
    """What a function gives for a sample, and the gradients of its floating-point arguments."""
    given = [sample.input, *sample.args, *sample.kwargs.values()]
    given = given if lift is None else [lift(v) for v in given]
    split = 1 + len(sample.args)
    y = function(*given[:split], **dict(zip(sample.kwargs, given[split:], strict=True)))
    found = list(y) if isinstance(y, (tuple, list)) else [y]
    leaves = [v for v in given if isinstance(v, torch.Tensor) and v.requires_grad]
    g = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(0)).to(sample.input.dtype)
    return [*found, *torch.autograd.grad(found[0], leaves, g.to(found[0].dtype), allow_unused=True)]


def close(ours, theirs, truth):
    """Equal within PyTorch's tolerances, or at least no further from float64 than PyTorch is (or a few roundings)."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a is None and b is None:
            continue
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        try:
            torch.testing.assert_close(a, b)
        except AssertionError:
            t = truth()[i]
            off, allowed = (a.double() - t).abs().max(), (b.double() - t).abs().max()
            assert off <= max(1.2 * allowed, 4 * torch.finfo(a.dtype).eps * t.abs().max())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # PyTorch's, of its own
@pytest.mark.parametrize("info", list(samples()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_samples_of_pytorchs_own_tests(info, dtype):
    """All of them in float32; in the other dtypes about 40 of each function, spread evenly."""
    if dtype not in info.dtypes:
        pytest.skip(f"PyTorch's {info.name} does not compute {dtype} on the CPU")
    ours = getattr(fct, info.name.removeprefix("nn.functional."))
    found = list(info.sample_inputs("cpu", dtype, requires_grad=True))
    for sample in found if dtype is torch.float32 else found[:: max(1, len(found) // 40)]:
        close(results(ours, sample), results(info.op, sample), partial(results, info.op, sample, float64))
