"""fastconv in PyTorch: the operators, the functions, and ``with use()``."""

import threading
from functools import partial

import numpy as np
import pytest

from tests.support import require

torch = require("torch")
F = torch.nn.functional

from fastconv.backends import torch as fct  # noqa: E402  # needs PyTorch
from fastconv.backends.torch import convolutions, functions, poolings  # noqa: E402
from fastconv.backends.torch.tensors import CHANNELS_LAST, array, tensor  # noqa: E402

ZEROS = ((2, 1), (1, 1, 0, 2), (1, 2), 2, "zeros")


def randn(*shape, dtype=torch.float64, last=False, grad=True):
    t = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))
    if last:
        t = t.to(memory_format=torch.channels_last if t.dim() == 4 else torch.channels_last_3d)
    return t.requires_grad_(grad)


# ------------------------------------------------------------------------------------------------------ the operators

X, W, B, DY = (4, 4, 7, 9), (6, 2, 3, 2), (6,), (4, 6, 4, 9)


def operators():
    yield "conv", convolutions.conv, (randn(*X), randn(*W), randn(*B), *ZEROS)
    yield "conv, channels last", convolutions.conv, (randn(*X, last=True), randn(*W), None, *ZEROS)
    yield "conv, reflected", convolutions.conv, (randn(*X), randn(*W), None, *ZEROS[:-1], "reflect")
    yield "conv, one channel", convolutions.conv, (randn(1, 1, 5), randn(1, 1, 3), None, (1,), (0, 0), (1,), 1, "zeros")
    yield "conv_input", convolutions.conv_input, (randn(*W), randn(*DY), None, (7, 9), *ZEROS)
    yield "conv_input, bias", convolutions.conv_input, (randn(*W), randn(*DY, last=True), randn(4), (7, 9), *ZEROS)
    yield "conv_weight", convolutions.conv_weight, (randn(*X), randn(*DY), (3, 2), *ZEROS)
    windows = ((3, 2), (2, 2), (1, 1), (1, 1), True)
    y, indices = poolings.max_pool(randn(2, 3, 8, 9, grad=False), *windows, True)
    yield "max_pool", poolings.max_pool, (randn(2, 3, 8, 9), *windows, True)
    yield "max_pool, channels last", poolings.max_pool, (randn(2, 3, 8, 9, last=True), *windows, True)
    yield "max_pool, no indices", poolings.max_pool, (randn(2, 3, 8, 9, grad=False), *windows, False)
    yield "max_pool_input", poolings.max_pool_input, (y.requires_grad_(), indices, (8, 9), *windows)
    apart = poolings.max_pool(randn(2, 3, 8, 9, grad=False), (2, 2), (2, 2), (0, 0), (1, 1), False, True)
    yield "max_unpool", poolings.max_unpool, (apart[0].requires_grad_(), apart[1], (8, 9))
    means = ((3, 2), (2, 2), (1, 1), True, False, 0)
    yield "avg_pool", poolings.avg_pool, (randn(2, 3, 8, 9), *means)
    yield "avg_pool_input", poolings.avg_pool_input, (randn(2, 3, 5, 5), (8, 9), *means)
    yield "adaptive_avg_pool", poolings.adaptive_avg_pool, (randn(2, 3, 8, 9), (3, 5))
    yield "adaptive_avg_pool_input", poolings.adaptive_avg_pool_input, (randn(2, 3, 3, 5), (8, 9))
    yield "adaptive_max_pool", poolings.adaptive_max_pool, (randn(2, 3, 8, 9), (3, 5), True)
    y, indices = poolings.adaptive_max_pool(randn(2, 3, 8, 9, grad=False), (3, 5), True)
    yield "adaptive_max_pool_input", poolings.adaptive_max_pool_input, (y.requires_grad_(), indices, (8, 9))


OPERATORS = {name: (operator, arguments) for name, operator, arguments in operators()}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_keep_pytorchs_rules(name):
    operator, arguments = OPERATORS[name]
    assert set(torch.library.opcheck(operator.op, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", [n for n in OPERATORS if n != "max_pool, no indices"])
def test_gradients_and_their_gradients(name):
    """As PyTorch runs them, and the short way, where nothing else watches."""
    operator, arguments = OPERATORS[name]
    places = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.requires_grad]

    def call(*tensors):
        changed = list(arguments)
        for place, t in zip(places, tensors, strict=True):
            changed[place] = t
        result = way(*changed)
        return result[0] if isinstance(result, tuple) else result

    given = [arguments[i] for i in places]
    way = operator.op
    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    way = operator
    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


def test_a_maximum_without_indices_has_no_gradient():
    y, _ = poolings.max_pool(randn(1, 1, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False, False)
    with pytest.raises(RuntimeError, match="needs indices=True"):
        y.sum().backward()


def test_a_wrong_gradient_is_found():
    class Lost(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return convolutions.conv(x, w, None, *ZEROS)

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            dw = convolutions.conv_weight(x, g, w.shape[2:], *ZEROS)
            dw[3, 1, 2, 0] = 0
            return None, dw

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(Lost.apply, (randn(*X, grad=False), randn(*W)), fast_mode=True)


# --------------------------------------------------------------------------------------------------- corners of PyTorch


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_lp_pooling(rank, norm, ceil_mode):
    x = torch.rand(2, 3, *(7, 8, 9)[:rank], dtype=torch.float64)
    ours, theirs = (getattr(home, f"lp_pool{rank}d") for home in (fct, F))
    torch.testing.assert_close(ours(x, norm, 3, 2, ceil_mode), theirs(x, norm, 3, 2, ceil_mode))
    x.requires_grad_()
    gradients = [torch.autograd.grad(f(x, norm, 3, 2, ceil_mode).sum(), x)[0] for f in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rank", [2, 3])
def test_channels_last_stays_channels_last(rank, dtype):
    x = randn(2, 4, *(6, 7, 8)[:rank], dtype=dtype, last=True, grad=False)
    w = randn(5, 4, *(3,) * rank, dtype=dtype, grad=False)
    for ours, theirs, arguments in (
        (getattr(fct, f"conv{rank}d"), getattr(F, f"conv{rank}d"), (x, w, None, 2, 1)),
        (getattr(fct, f"conv_transpose{rank}d"), getattr(F, f"conv_transpose{rank}d"), (x, w[:4], None, 2, 1, 1)),
        (getattr(fct, f"max_pool{rank}d"), getattr(F, f"max_pool{rank}d"), (x, 2)),
        (getattr(fct, f"adaptive_avg_pool{rank}d"), getattr(F, f"adaptive_avg_pool{rank}d"), (x, 3)),
    ):
        y, expected = ours(*arguments), theirs(*arguments)
        assert y.is_contiguous(memory_format=CHANNELS_LAST[rank + 2])  # which PyTorch's conv3d is not
        torch.testing.assert_close(y, expected, rtol=2e-2, atol=0.1)


def views():
    x = torch.randn(2, 4, 9, 8)
    yield "transposed", x.transpose(2, 3)
    yield "every other", x[:, :, ::2, 1:]
    yield "expanded", x[:1].expand(3, 4, 9, 8)
    yield "negated lazily", torch._neg_view(x)
    yield "no images", x[:0]
    yield "misaligned", torch.randn(2 * 4 * 9 * 8 + 1)[1:].view(2, 4, 9, 8)


@pytest.mark.parametrize(("name", "x"), list(views()), ids=lambda v: v if isinstance(v, str) else "")
def test_any_view_will_do(name, x):
    w = torch.randn(6, 4, 3, 3).transpose(2, 3)
    before = x.clone()
    torch.testing.assert_close(fct.conv2d(x, w, padding=1), F.conv2d(x, w, padding=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fct.max_pool2d(x, 2), F.max_pool2d(x, 2))
    assert torch.equal(x, before)


def test_nothing_is_copied_on_the_way():
    x = torch.randn(1, 2, 5, 5)
    for t in (x, x.bfloat16(), x.to(memory_format=torch.channels_last)):
        assert array(t).ctypes.data == t.data_ptr()
        assert tensor(array(t)).data_ptr() == t.data_ptr()
        assert tensor(array(t)).dtype == t.dtype


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, 0), (1, 2, None), (0, 1, 0)])
def test_vmap_of_convolutions(in_dims):
    shapes = [(2, 4, 7, 6), (6, 2, 3, 3), (6,)]
    tensors = [
        torch.randn(s if d is None else (*s[:d], 3, *s[d:]), dtype=torch.float64)
        for s, d in zip(shapes, in_dims, strict=True)
    ]
    for name, keywords in (("conv2d", {"stride": 2}), ("conv_transpose2d", {"stride": 2, "output_padding": 1})):
        given = list(tensors)
        if name == "conv_transpose2d":  # (C, K/groups, …): six channels in
            at = 1 if in_dims[0] is None or in_dims[0] > 1 else 2
            given[0] = torch.cat([given[0], given[0].narrow(at, 0, 2)], at)
            given[2] = given[2].narrow(0 if in_dims[2] is None else 1, 0, 4)
        results = []
        for home in (F, fct):
            function = partial(getattr(home, name), groups=2, padding=1, **keywords)
            results.append(torch.func.vmap(function, in_dims)(*given))
        torch.testing.assert_close(*results)


def test_vmap_of_gradients_and_pools():
    w = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def gradients(home):
        def loss(w, x):
            return home.avg_pool2d(home.max_pool2d(home.conv2d(x[None], w), 2), 3).square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(w, images)

    torch.testing.assert_close(gradients(fct), gradients(F))


def test_several_gradients_at_once():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    back = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def gradients(home):
        y = home.conv_transpose2d(home.conv2d(x, w, padding=1), back, stride=2)
        y = home.avg_pool2d(home.lp_pool2d(home.max_pool2d(y, 2), 2, 2), 2)
        return torch.autograd.grad(
            y, (x, w, back), torch.arange(4.0 * y.numel()).reshape(4, *y.shape).double(), is_grads_batched=True
        )

    torch.testing.assert_close(gradients(fct), gradients(F))


class Small(torch.nn.Module):
    def __init__(self, home):
        super().__init__()
        self.home = home
        self.w = torch.nn.Parameter(torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        y = torch.relu(self.home.conv2d(x, self.w, stride=2, padding=1))
        y = self.home.max_pool2d(y, 2)
        return self.home.adaptive_avg_pool2d(y, 1).flatten(1)


def test_compiled_and_exported():
    torch._dynamo.reset()
    x = torch.randn(2, 3, 17, 17)
    ours, theirs = Small(fct), Small(F)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (17, 20):
        x = torch.randn(2, 3, size, size)
        gradients = []
        for model, run in ((ours, compiled), (theirs, theirs)):
            model.zero_grad()
            y = run(x)
            y.square().sum().backward()
            gradients.append((y.detach(), model.w.grad.clone()))
        torch.testing.assert_close(*gradients)
    program = torch.export.export(ours.eval(), (x,))
    assert "fastconv.conv" in str(program.graph)
    torch.testing.assert_close(program.module()(x), theirs(x))


def test_shapes_of_ceil_mode_stay_symbols():
    class Pools(torch.nn.Module):
        def forward(self, x):
            return fct.avg_pool2d(fct.max_pool2d(x, 2, ceil_mode=True), 3, 2, 1, ceil_mode=True)

    sizes = {axis: torch.export.Dim(f"n{axis}", min=16, max=64) for axis in (2, 3)}
    program = torch.export.export(Pools(), (torch.randn(1, 2, 32, 32),), dynamic_shapes=(sizes,))
    x = torch.randn(1, 2, 17, 30)
    expected = F.avg_pool2d(F.max_pool2d(x, 2, ceil_mode=True), 3, 2, 1, ceil_mode=True)
    torch.testing.assert_close(program.module()(x), expected)


def test_shapes_without_data():
    x, w = torch.empty(2, 3, 9, 9, device="meta"), torch.empty(4, 3, 3, 3, device="meta")
    y = fct.max_pool2d(fct.conv2d(x, w, stride=2), 3, ceil_mode=True)
    assert y.is_meta
    assert y.shape == F.max_pool2d(F.conv2d(x, w, stride=2), 3, ceil_mode=True).shape


def test_autocast():
    x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fct.conv2d(x, w), F.conv2d(x, w)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    ours.sum().backward()
    assert w.grad.dtype == torch.float32
    x = torch.randn(1, 3, 4, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for name, size in (("max_pool", 2), ("avg_pool", 2), ("adaptive_avg_pool", 2), ("adaptive_max_pool", 2)):
            for rank in (1, 2, 3):  # the last in float32
                ours, theirs = (getattr(home, f"{name}{rank}d")(x[(0,) * (3 - rank)], size) for home in (fct, F))
                assert ours.dtype == theirs.dtype, (name, rank)


# PyTorch's own use of torch.jit when forward mode is first entered.
quiet = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@quiet
def test_forward_mode_is_refused_not_forgotten():
    x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="forward-mode"):
        fct.conv2d(torch.autograd.forward_ad.make_dual(x, x), w)


def test_num_threads_of_pytorch_stay(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        fct.conv2d(torch.randn(1, 8, 32, 32), torch.randn(8, 8, 3, 3))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_errors_name_the_function_and_the_argument():
    x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    for call, error, message in (
        (lambda: fct.conv2d(x.int(), w), TypeError, "conv2d: fastconv computes float32, .* not int32"),
        (lambda: fct.conv2d(x, w.double()), TypeError, "one dtype and device"),
        (lambda: fct.conv2d(x, w, torch.ones(5)), ValueError, "bias"),
        (lambda: fct.conv2d(x[0, 0], w), ValueError, "input must have 4 dimensions"),
        (lambda: fct.conv2d(x, w, stride=(1, 2, 3)), ValueError, "stride must be a number or 2"),
        (lambda: fct.conv2d(x, w, padding="full"), ValueError, "'valid' or 'same'"),
        (lambda: fct.conv2d(x, w, stride=2, padding="same"), ValueError, "needs stride 1"),
        (lambda: fct.conv2d(x.numpy(), w), TypeError, "takes tensors, not ndarray"),
        (lambda: fct.conv2d(x.to_sparse(), w), TypeError, "dense tensors"),
        (lambda: fct.conv2d(x, w.to("meta")), TypeError, "not .* on cpu and .* on meta"),
        (lambda: fct.conv_transpose2d(x, w), ValueError, "takes 4 channels, input has 3"),
        (lambda: fct.conv_transpose2d(x, w[:3], output_padding=1), ValueError, "output_padding must be smaller"),
        (lambda: fct.max_pool2d(x, 2, padding=2), ValueError, "at most half the window"),
        (lambda: fct.max_unpool2d(x, x, 2), TypeError, "indices must be an int64 tensor"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_nonsense_is_named_and_forgotten():
    """In place of each parameter; 1 and True are one key of a dictionary, so a mistake must not be what later valid
    calls find."""
    x, w, indices = torch.ones(1, 4, 6, 6), torch.ones(4, 4, 3, 3), torch.zeros(1, 4, 6, 6, dtype=torch.int64)
    valid = {
        fct.conv2d: {"input": x, "weight": w, "stride": 1, "padding": 1, "dilation": 1, "groups": 1},
        fct.conv_transpose2d: {"input": x, "weight": w, "stride": 1, "padding": 1, "output_padding": 0, "groups": 1},
        fct.max_pool2d: {"input": x, "kernel_size": 2, "padding": 1, "dilation": 1},
        fct.avg_pool2d: {"input": x, "kernel_size": 2, "padding": 1},
        fct.adaptive_avg_pool2d: {"input": x, "output_size": 1},
        fct.max_unpool2d: {"input": x, "indices": indices, "kernel_size": 2, "padding": 0},
    }
    for function, keywords in valid.items():
        for name in keywords:
            for nonsense in (True, 1.0, {}, object(), (1, 1, 1), -1, None):
                if nonsense is None and name == "output_size":
                    continue  # the input's size
                with pytest.raises((TypeError, ValueError)) as caught:
                    function(**(keywords | {name: nonsense}))
                assert str(caught.value).startswith(f"{function.__name__}: "), (name, nonsense, caught.value)
                assert name in str(caught.value) or "takes tensors, not" in str(caught.value), (nonsense, caught.value)
        assert function(**keywords).shape[1] == 4


# ----------------------------------------------------------------------------------------------------------- with use()


def test_modules_inside_the_block():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 8, 3, padding="same", groups=8), torch.nn.AvgPool2d(2), torch.nn.LPPool2d(2, 2),
        torch.nn.ConvTranspose2d(8, 4, 2, 2), torch.nn.AdaptiveMaxPool2d(3), torch.nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with fct.use() as used:
        y = model(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients, rtol=1e-4, atol=1e-5)
    assert used.calls == {
        "adaptive_avg_pool2d": 1, "adaptive_max_pool2d": 1, "avg_pool2d": 1, "conv2d": 2, "conv_transpose2d": 1,
        "lp_pool2d": 1, "max_pool2d": 1,
    }  # fmt: skip
    assert used.fallbacks == {}


def test_indices_and_unpooling_inside_the_block():
    x = torch.randn(2, 3, 8, 8)
    pool, unpool = torch.nn.MaxPool2d(2, return_indices=True), torch.nn.MaxUnpool2d(2)
    expected = unpool(*pool(x))
    with fct.use() as used:
        y = unpool(*pool(x))
        z, indices = F.adaptive_max_pool2d(x, 2, return_indices=True)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close((z, indices), F.adaptive_max_pool2d(x, 2, return_indices=True))
    assert used.calls == {"max_pool2d": 1, "max_unpool2d": 1, "adaptive_max_pool2d": 1}


@quiet
def test_what_is_left_to_pytorch_is_counted():
    with fct.use() as used:
        complex_result = F.conv2d(torch.randn(1, 1, 4, 4, dtype=torch.complex64), torch.ones(1, 1, 2, 2) + 0j)
        F.max_pool2d(torch.ones(1, 4, 4, dtype=torch.int32), 2)
        with pytest.raises(RuntimeError, match="weight of size"):  # PyTorch's own message
            F.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 2, 3, 3))
        with torch.autograd.forward_ad.dual_level():
            x = torch.autograd.forward_ad.make_dual(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
            y = F.conv2d(x, torch.ones(1, 1, 2, 2))
            assert torch.autograd.forward_ad.unpack_dual(y).tangent is not None
    assert complex_result.dtype == torch.complex64
    assert used.calls == {}
    text = used.explain()
    assert "conv2d: 1 call left to PyTorch: fastconv computes float32" in text
    assert "not complex64" in text
    assert "max_pool2d: 1 call left to PyTorch" in text
    assert "has no forward-mode derivatives" in text
    assert sum(used.fallbacks.values()) == 4


def test_nothing_is_left_after_the_block_and_in_other_threads():
    x, w = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 2, 2)
    with fct.use() as used:
        thread = threading.Thread(target=lambda: F.conv2d(x, w))
        thread.start()
        thread.join()
    F.conv2d(x, w)
    assert used.calls == {}
    assert used.explain() == "no convolution or pooling was called"


def test_the_short_way_is_taken_where_nobody_looks_and_only_there(monkeypatch):
    x, w = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 2, 2)
    assert functions.only_numbers(x, w, None)
    assert not functions.only_numbers(x, w.requires_grad_())
    with torch.no_grad():
        assert functions.only_numbers(x, torch.nn.Parameter(w))
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch(), torch.no_grad():
        fct.conv2d(x, w)
    assert torch.ops.fastconv.conv.default in seen
    seen.clear()
    with Watch():
        fct.conv2d(x, w)
    assert torch.ops.fastconv.conv.default in seen
    assert fct.conv2d(x, w).grad_fn.name() == "Recorded_convBackward"


def test_numbers_are_fastconvs():
    """The functions do run fastconv's kernels: same bits."""
    import fastconv

    x, w = torch.randn(2, 8, 14, 14), torch.randn(8, 8, 3, 3)
    assert np.array_equal(fct.conv2d(x, w, padding=1).numpy(), fastconv.conv2d(x.numpy(), w.numpy(), padding=1))
