"""The public operations as a user calls them: layouts, kinds of arrays, out=, unbatched, empty, Tensors, gradients."""

import ml_dtypes
import numpy as np
import pytest

import fastconv as fc
from fastconv import grad
from fastconv.testing import check_grads
from tests.support import require

RNG = np.random.default_rng(0)
CONVS = {1: fc.conv1d, 2: fc.conv2d, 3: fc.conv3d}
TRANSPOSED = {1: fc.conv_transpose1d, 2: fc.conv_transpose2d, 3: fc.conv_transpose3d}
MAX = {1: fc.max_pool1d, 2: fc.max_pool2d, 3: fc.max_pool3d}
MIN = {1: fc.min_pool1d, 2: fc.min_pool2d, 3: fc.min_pool3d}
AVG = {1: fc.avg_pool1d, 2: fc.avg_pool2d, 3: fc.avg_pool3d}
LP = {1: fc.lp_pool1d, 2: fc.lp_pool2d, 3: fc.lp_pool3d}
ADAPTIVE_AVG = {1: fc.adaptive_avg_pool1d, 2: fc.adaptive_avg_pool2d, 3: fc.adaptive_avg_pool3d}
ADAPTIVE_MAX = {1: fc.adaptive_max_pool1d, 2: fc.adaptive_max_pool2d, 3: fc.adaptive_max_pool3d}
NAMES = {1: ("NCW", "NWC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}


def integers(*shape, dtype=np.float32):
    return RNG.integers(-4, 5, shape).astype(dtype)


def shape(rank, *lead, size=6):
    return (*lead, *(size,) * rank)


def to_last(x, rank):
    return np.ascontiguousarray(np.moveaxis(x, -rank - 1, -1))


OPS = {
    "conv": lambda r, x, **k: CONVS[r](x, np.ones(shape(r, 5, 4, size=3), x.dtype), padding=1, **k),
    "conv_transpose": lambda r, x, **k: TRANSPOSED[r](x, np.ones(shape(r, 4, 5, size=3), x.dtype), stride=2, **k),
    "max": lambda r, x, **k: MAX[r](x, 3, stride=2, padding=1, **k),
    "min": lambda r, x, **k: MIN[r](x, 2, **k),
    "avg": lambda r, x, **k: AVG[r](x, 2, **k),
    "lp": lambda r, x, **k: LP[r](x, 2, 2, **k),
    "adaptive_avg": lambda r, x, **k: ADAPTIVE_AVG[r](x, 4, **k),
    "adaptive_max": lambda r, x, **k: ADAPTIVE_MAX[r](x, 4, **k),
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("op", OPS)
def test_layouts_and_unbatched_input_agree(op, rank):
    x = integers(*shape(rank, 2, 4))
    expected = OPS[op](rank, x)
    for name in (NAMES[rank][1], "channels_last"):
        assert (OPS[op](rank, to_last(x, rank), layout=name) == to_last(expected, rank)).all()
    for name in (NAMES[rank][0], "channels_first", None):
        assert (OPS[op](rank, x, layout=name) == expected).all()
    assert (OPS[op](rank, x[1]) == expected[1]).all()
    assert (OPS[op](rank, to_last(x[1], rank), layout="channels_last") == to_last(expected[1], rank)).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("op", OPS)
def test_empty_batches_and_strange_strides(op, rank):
    x = integers(*shape(rank, 3, 4))
    expected = OPS[op](rank, x)
    assert OPS[op](rank, x[:0]).shape == (0, *expected.shape[1:])
    assert (OPS[op](rank, x[::-1, ::-1]) == OPS[op](rank, x[::-1, ::-1].copy())).all()
    frozen = x.copy()
    frozen.flags.writeable = False
    assert (OPS[op](rank, frozen) == expected).all()
    assert (frozen == x).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_results_keep_the_dtype(op, dtype):
    assert OPS[op](2, integers(1, 4, 6, 6, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("op", [o for o in OPS if not o.startswith("adaptive")])
def test_out_in_any_strides_and_overlapping(op):
    x = integers(2, 4, 6, 6)
    expected = OPS[op](2, x)
    wide = np.full((*expected.shape[:-1], 2 * expected.shape[-1]), 9, np.float32)
    out = wide[..., ::2]
    assert OPS[op](2, x, out=out) is out
    assert (out == expected).all()
    assert (wide[..., 1::2] == 9).all()
    if expected.size <= x.size:
        inside = x.reshape(-1)[: expected.size].reshape(expected.shape)
        assert (OPS[op](2, x, out=inside) == expected).all()


def test_byte_swapped_and_dlpack_arrays():
    x, w = integers(1, 2, 5, 5), integers(3, 2, 3, 3)
    expected = fc.conv2d(x, w)
    assert (fc.conv2d(x.astype(">f4"), w.astype(">f4")) == expected).all()

    class Exporter:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **keywords):
            return self.array.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    assert (fc.conv2d(Exporter(x), Exporter(w)) == expected).all()
    with pytest.raises(TypeError, match=r"x .*cannot be read through DLPack"):
        fc.conv2d(type("Broken", (), {"__dlpack__": None, "__dlpack_device__": lambda self: (1, 0)})(), w)


def test_unpooling_undoes_pooling():
    x = RNG.permutation(2 * 3 * 36).reshape(2, 3, 6, 6).astype(np.float32) + 1
    y, indices = fc.max_pool2d(x, 2, return_indices=True)
    assert indices.dtype == np.int64
    back = fc.max_unpool2d(y, indices, 2)
    assert (fc.max_pool2d(back, 2) == y).all()
    assert ((back == x) | (back == 0)).all()
    assert (grad.max_unpool2d_input(indices, x) == y).all()
    last = fc.max_unpool2d(to_last(y, 2), to_last(indices, 2), 2, layout="NHWC")
    assert (last == to_last(back, 2)).all()


def test_activation_and_residual_fused_equal_those_apart():
    x, w, b, r = integers(1, 3, 6, 6), integers(4, 3, 3, 3), integers(4), integers(1, 4, 4, 4)
    for name in ("relu", "relu6", "leaky_relu", "silu", "gelu", "sigmoid", "tanh", "hardswish"):
        fused = fc.conv2d(x, w, b, residual=r, activation=name)
        apart = getattr(fc.autograd, name)(fc.conv2d(x, w, b) + r)
        np.testing.assert_allclose(fused, apart, rtol=3e-6, atol=3e-6)
        recorded = fc.conv2d(fc.Tensor(x, requires_grad=True), w, b, residual=r, activation=name)
        np.testing.assert_allclose(recorded.detach().numpy(), apart, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ Tensors


def test_a_tensor_in_gives_a_tensor_out():
    x, w = integers(1, 2, 5, 5), integers(3, 2, 3, 3)
    for args in ((fc.Tensor(x), w), (x, fc.Tensor(w)), (x, w, fc.Tensor(integers(3)))):
        y = fc.conv2d(*args)
        assert isinstance(y, fc.Tensor)
        assert not y.requires_grad
    assert isinstance(fc.max_pool2d(fc.Tensor(x), 2), fc.Tensor)
    y, indices = fc.max_pool2d(fc.Tensor(x, requires_grad=True), 2, return_indices=True)
    assert y.requires_grad
    assert indices.dtype == np.int64


def test_out_is_refused_while_recording():
    t = fc.Tensor(integers(1, 2, 5, 5), requires_grad=True)
    for call in (
        lambda: fc.conv2d(t, integers(3, 2, 3, 3), out=integers(1, 3, 3, 3)),
        lambda: fc.max_pool2d(t, 2, out=integers(1, 2, 2, 2)),
        lambda: fc.avg_pool2d(t, 2, out=integers(1, 2, 2, 2)),
    ):
        with pytest.raises(ValueError, match="out= cannot be used while gradients are recorded"):
            call()
    with fc.no_grad():
        assert fc.avg_pool2d(t, 2, out=np.empty((1, 2, 2, 2), np.float32)).shape == (1, 2, 2, 2)


def test_no_gradient_is_computed_that_nobody_wants(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("an input gradient nobody asked for")

    monkeypatch.setattr(fc.functional.call, "input_gradient", never)
    w = fc.Tensor(integers(3, 2, 3, 3), requires_grad=True)
    fc.conv2d(integers(1, 2, 5, 5), w).sum().backward()
    assert w.grad.shape == w.shape


def distinct(*shape):
    """Values far enough apart that a small step changes no maximum."""
    return RNG.permutation(np.prod(shape)).reshape(shape) / 7.0 + 1.0


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradients_of_convolutions(rank, layout):
    x, w = RNG.standard_normal(shape(rank, 2, 4, size=5)), RNG.standard_normal(shape(rank, 6, 2, size=3))
    t, b = RNG.standard_normal(shape(rank, 4, 3, size=2)), RNG.standard_normal(6)
    if layout == "channels_last":
        x = to_last(x, rank)
    check_grads(lambda x, w, b: CONVS[rank](x, w, b, stride=2, padding=1, groups=2, layout=layout), x, w, b)
    check_grads(lambda x, w: CONVS[rank](x, w, padding=1, groups=2, padding_mode="circular", layout=layout), x, w)
    check_grads(lambda x, w, b: TRANSPOSED[rank](x, w, b, stride=2, groups=2, output_padding=1, layout=layout), x, t, b)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_gradients_of_padding_modes(mode):
    x, w = RNG.standard_normal((1, 2, 5, 6)), RNG.standard_normal((2, 2, 3, 3))
    check_grads(lambda x, w: fc.conv2d(x, w, padding=((2, 1), (0, 3)), padding_mode=mode, stride=(1, 2)), x, w)


@pytest.mark.parametrize("name", ["relu", "silu", "gelu", "hardswish"])
def test_gradients_through_the_epilogue(name):
    x, w, b, r = (RNG.standard_normal(s) for s in ((1, 2, 4, 4), (3, 2, 3, 3), (3,), (1, 3, 2, 2)))
    check_grads(lambda x, w, b, r: fc.conv2d(x, w, b, residual=r, activation=name), x, w, b, r)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradients_of_poolings(rank):
    x = distinct(*shape(rank, 2, 2, size=5))
    for f in (MAX, MIN):
        check_grads(lambda x, f=f: f[rank](x, 3, stride=2, padding=1), x)
    check_grads(lambda x: AVG[rank](x, 2, stride=1, padding=1, count_include_pad=False, ceil_mode=True), x)
    check_grads(lambda x: LP[rank](x, 3, 2), x)
    check_grads(lambda x: ADAPTIVE_AVG[rank](x, 3), x)
    check_grads(lambda x: ADAPTIVE_MAX[rank](x, 2), x)


def test_gradients_of_unpooling_and_of_channels_last_pooling():
    x = distinct(1, 4, 4, 2)
    y, indices = fc.max_pool2d(x, 2, return_indices=True, layout="NHWC")
    check_grads(lambda y: fc.max_unpool2d(y, indices, 2, layout="NHWC"), y)
    for f in (fc.max_pool2d, fc.avg_pool2d):
        check_grads(lambda x, f=f: f(x, 2, layout="NHWC"), x)
    check_grads(lambda x: fc.lp_pool2d(x[0], 2, 2, layout="NHWC"), x)


# --------------------------------------------------------------------------------------- gradient functions, and peers


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradient_functions_are_those_of_pytorch(rank):
    torch = require("torch")
    x, w = (
        integers(*shape(rank, 2, 4, size=7), dtype=np.float64),
        integers(*shape(rank, 6, 2, size=3), dtype=np.float64),
    )
    keywords = {"stride": 2, "padding": 1, "groups": 2, "dilation": 1}
    dy = integers(*CONVS[rank](x, w, **keywords).shape, dtype=np.float64)
    tx, tw, tdy = map(torch.from_numpy, (x, w, dy))
    theirs = torch.nn.grad
    assert (
        getattr(grad, f"conv{rank}d_input")(x.shape, w, dy, **keywords)
        == getattr(theirs, f"conv{rank}d_input")(tx.shape, tw, tdy, **keywords).numpy()
    ).all()
    assert (
        getattr(grad, f"conv{rank}d_weight")(x, w.shape, dy, **keywords)
        == getattr(theirs, f"conv{rank}d_weight")(tx, tw.shape, tdy, **keywords).numpy()
    ).all()
    assert (getattr(grad, f"conv{rank}d_bias")(dy) == dy.sum(axis=(0, *range(2, rank + 2)))).all()


@pytest.mark.parametrize("algorithm", ["direct", "im2col"])
def test_forward_is_that_of_pytorch(algorithm):
    torch = require("torch")
    F = torch.nn.functional
    x, w, b = integers(2, 4, 9, 8), integers(6, 2, 3, 3), integers(6)
    tx, tw, tb = map(torch.from_numpy, (x, w, b))
    for keywords in (
        {"stride": 2, "padding": 1},
        {"dilation": 2},
        {"padding": "same", "dilation": (1, 2)},
        {"padding": (0, 3)},
    ):
        ours = fc.conv2d(x, w, b, groups=2, algorithm=algorithm, **keywords)
        assert (ours == F.conv2d(tx, tw, tb, groups=2, **keywords).numpy()).all()
    t = integers(4, 3, 3, 3)
    for keywords in (
        {"stride": 2, "output_padding": 1},
        {"stride": 3, "padding": 2, "dilation": 2},
        {"dilation": 3, "output_padding": 2},
    ):
        ours = fc.conv_transpose2d(x, t, b, groups=2, algorithm=algorithm, **keywords)
        assert (ours == F.conv_transpose2d(tx, torch.from_numpy(t), tb, groups=2, **keywords).numpy()).all()
