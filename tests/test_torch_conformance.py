"""PyTorch's own samples of its convolutions and poolings, through fastconv's."""

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


def close(ours, theirs, truth):
    """Equal within PyTorch's tolerances, or at least no further from float64 than PyTorch is (or a few roundings)."""
    for a, b, t in zip(*(v if isinstance(v, (tuple, list)) else [v] for v in (ours, theirs, truth)), strict=True):
        if a is None and b is None:
            continue
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        try:
            torch.testing.assert_close(a, b)
        except AssertionError:
            off, allowed = (a.double() - t).abs().max(), (b.double() - t).abs().max()
            assert off <= max(1.2 * allowed, 4 * torch.finfo(a.dtype).eps * t.abs().max())


def every(seq, most):
    """At most about ``most`` of them, spread evenly: only poolings with indices have more, up to 1440."""
    found = list(seq)
    return found[:: max(1, len(found) // most)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # PyTorch's, of its own
@pytest.mark.parametrize("info", list(samples()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_samples_of_pytorchs_own_tests(info, dtype):
    if dtype not in info.dtypes:
        pytest.skip(f"PyTorch's {info.name} does not compute {dtype} on the CPU")
    ours = getattr(fct, info.name.removeprefix("nn.functional."))
    for sample in every(info.sample_inputs("cpu", dtype, requires_grad=True), 150 if dtype is torch.float32 else 40):
        runs = []
        for function, lift in ((ours, None), (info.op, None), (info.op, float64)):
            given = [sample.input, *sample.args, *sample.kwargs.values()]
            given = given if lift is None else [lift(v) for v in given]
            split = 1 + len(sample.args)
            y = function(*given[:split], **dict(zip(sample.kwargs, given[split:], strict=True)))
            runs.append((y, [v for v in given if isinstance(v, torch.Tensor) and v.requires_grad]))
        close(*(y for y, _ in runs))
        first = [y[0] if isinstance(y, tuple) else y for y, _ in runs]
        g = torch.randn_like(first[0])
        close(*(
            torch.autograd.grad(y, leaves, g.to(y.dtype), allow_unused=True)
            for y, (_, leaves) in zip(first, runs, strict=True)
        ))  # fmt: skip
