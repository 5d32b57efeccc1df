"""Layers against PyTorch's, batch normalisation too."""

import numpy as np
import pytest

from fastconv import Tensor, nn
from fastconv.nn import norm
from fastconv.testing import check_grads
from tests.support import require

RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def close(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


LAYERS = [
    ("Linear", (6, 4), {}, (2, 5, 6)),
    ("Linear", (6, 4), {"bias": False}, (5, 6)),
    ("Conv1d", (4, 6, 3), {"padding": 1, "stride": 2}, (2, 4, 11)),
    ("Conv2d", (4, 6, 3), {"padding": 1, "groups": 2}, (2, 4, 7, 8)),
    ("Conv2d", (3, 5, (3, 2)), {"dilation": 2, "padding": (2, 1), "padding_mode": "reflect"}, (2, 3, 9, 8)),
    ("Conv2d", (3, 5, 3), {"padding": "same"}, (1, 3, 6, 6)),
    ("Conv3d", (2, 3, 2), {"stride": (1, 2, 1)}, (1, 2, 4, 5, 6)),
    ("ConvTranspose1d", (4, 6, 3), {"stride": 2, "output_padding": 1, "padding": 1}, (2, 4, 7)),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "groups": 2, "dilation": 2}, (2, 4, 5, 6)),
    ("ConvTranspose3d", (2, 3, 2), {"stride": 2, "bias": False}, (1, 2, 2, 3, 2)),
    ("MaxPool1d", (3,), {"stride": 2, "padding": 1}, (2, 3, 11)),
    ("MaxPool2d", (2,), {"ceil_mode": True}, (2, 3, 7, 7)),
    ("MaxPool3d", ((1, 2, 3),), {}, (1, 2, 3, 4, 6)),
    ("AvgPool1d", (3, 1, 1), {}, (2, 3, 9)),
    ("AvgPool2d", (3, 2, 1), {"count_include_pad": False}, (2, 3, 8, 9)),
    ("AvgPool3d", (2,), {"divisor_override": 3}, (1, 2, 4, 4, 4)),
    ("LPPool1d", (3, 2), {}, (1, 2, 8)),
    ("LPPool2d", (2, 3), {"stride": 2}, (1, 2, 8, 8)),
    ("LPPool3d", (2, 2), {}, (1, 2, 4, 4, 4)),
    ("AdaptiveAvgPool1d", (3,), {}, (2, 3, 8)),
    ("AdaptiveAvgPool2d", ((3, 1),), {}, (2, 3, 7, 8)),
    ("AdaptiveAvgPool3d", (2,), {}, (1, 2, 3, 4, 5)),
    ("AdaptiveMaxPool1d", (3,), {}, (2, 3, 8)),
    ("AdaptiveMaxPool2d", ((3, 2),), {}, (2, 3, 7, 8)),
    ("AdaptiveMaxPool3d", (2,), {}, (1, 2, 3, 4, 5)),
    ("BatchNorm1d", (4,), {}, (6, 4)),
    ("BatchNorm1d", (4,), {"momentum": 0.3}, (2, 4, 5)),
    ("BatchNorm2d", (3,), {}, (4, 3, 5, 6)),
    ("BatchNorm2d", (3,), {"affine": False, "eps": 1e-2}, (4, 3, 5, 6)),
    ("BatchNorm3d", (2,), {"track_running_stats": False}, (2, 2, 3, 4, 5)),
    ("ReLU", (), {}, (3, 4)),
    ("LeakyReLU", (0.2,), {}, (3, 4)),
    ("GELU", (), {}, (3, 4)),
    ("Softmax", (1,), {}, (3, 4, 2)),
    ("LogSoftmax", (-1,), {}, (3, 4)),
    ("Flatten", (), {}, (3, 4, 2)),
    ("Flatten", (0, 1), {}, (3, 4, 2)),
    ("Identity", (), {}, (3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "args", "options", "shape"), LAYERS)
def test_layer_computes_what_pytorchs_does(kind, args, options, shape):
    torch = require("torch")
    nn.manual_seed(0)
    ours, theirs = getattr(nn, kind)(*args, **options), getattr(torch.nn, kind)(*args, **options)
    if hasattr(ours, "weight") and ours.weight is not None and kind.startswith("BatchNorm"):
        ours.weight.data[...] = np.linspace(0.5, 2, len(ours.weight))
        ours.bias.data[...] = np.linspace(-1, 1, len(ours.weight))
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    for mode in ("train", "train", "eval"):
        getattr(ours, mode)(), getattr(theirs, mode)()
        data = abs(normal(*shape)) + 0.1 if kind.startswith("LPPool") else normal(*shape) * 3 + 1
        x, tx = Tensor(data, requires_grad=True), torch.tensor(data, requires_grad=True)
        y, ty = ours(x), theirs(tx)
        close(y.numpy(), ty.detach().numpy())
        assert y.dtype == np.float32
        g = normal(*y.shape)
        ours.zero_grad(), theirs.zero_grad()
        y.backward(g), ty.backward(torch.tensor(g))
        close(x.grad, tx.grad.numpy(), 1e-4)
        for (name, p), (their_name, tp) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert name == their_name
            close(p.grad, tp.grad.numpy(), 2e-4)
        for (name, b), (their_name, tb) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            assert name == their_name
            close(b, tb.numpy())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_min_pool_is_max_pool_of_the_negative(rank):
    x = normal(2, 3, *(6, 7, 5)[:rank])
    options = {"stride": 2, "padding": 1, "return_indices": True}
    low, at = getattr(nn, f"MinPool{rank}d")(3, **options)(x)
    high, also_at = getattr(nn, f"MaxPool{rank}d")(3, **options)(-x)
    np.testing.assert_array_equal(low, -high)
    np.testing.assert_array_equal(at, also_at)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling_puts_maxima_back(rank):
    x = Tensor(normal(1, 2, *(5, 6, 4)[:rank]), requires_grad=True)
    y, at = getattr(nn, f"MaxPool{rank}d")(2, return_indices=True)(x)
    back = getattr(nn, f"MaxUnpool{rank}d")(2)(y, at, output_size=x.shape)
    kept = back.numpy() != 0
    np.testing.assert_array_equal(back.numpy()[kept], x.numpy()[kept])
    assert kept.sum() == y.size
    back.sum().backward()
    np.testing.assert_array_equal(x.grad, kept)


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match=r"x must have 6 features in its last axis.*got shape \(2, 5\)$"):
        nn.Linear(6, 4)(normal(2, 5))
    with pytest.raises(ValueError, match=r"got shape \(2, 2, 3, 3\); put nn.Flatten\(\) before the layer"):
        nn.Linear(18, 4)(normal(2, 2, 3, 3))
    with pytest.raises(TypeError, match="x is float64 and weight float32"):
        nn.Linear(6, 4)(normal(2, 6, dtype=np.float64))
    with pytest.raises(ValueError, match=r"weight must have shape \(out_features, in_features\), got \(3,\)"):
        nn.linear(normal(2, 3), normal(3))
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        nn.linear(normal(2, 3), normal(4, 3), normal(3))
    with pytest.raises(ValueError, match=r"BatchNorm2d: x must have shape \(N, C, H, W\), got \(2, 3\)"):
        nn.BatchNorm2d(3)(normal(2, 3))
    with pytest.raises(ValueError, match=r"x must have 3 channels \(num_features\), got 4"):
        nn.BatchNorm2d(3)(normal(2, 4, 5, 5))
    with pytest.raises(ValueError, match=r"training needs more than one value a channel.*model.eval\(\)"):
        nn.BatchNorm1d(3)(normal(1, 3))
    with pytest.raises(ValueError, match=r"conv2d: .*channels"):
        nn.Conv2d(3, 4, 3)(normal(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"conv2d: x must have 4 dimensions"):
        nn.Conv2d(3, 4, 3)(normal(8, 8))
    with pytest.raises(ValueError, match=r"Flatten\(1, -1\) does not fit an input of shape \(3,\)"):
        nn.Flatten()(normal(3))
    with pytest.raises(TypeError, match="dropout needs floating-point data, got int64"):
        nn.Dropout()(np.arange(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(0, 4, 3), "in_channels must be a positive integer, got 0"),
        (lambda: nn.Conv2d(4, 2.0, 3), "out_channels must be a positive integer, got 2.0"),
        (lambda: nn.Conv2d(4, 6, 3, groups=3), "in_channels must be a multiple of groups=3, got 4"),
        (lambda: nn.ConvTranspose1d(6, 4, 3, groups=3), "out_channels must be a multiple of groups=3, got 4"),
        (lambda: nn.Conv2d(4, 6, (3, 3, 3)), r"kernel_size must be a positive integer, or 2 of them, got \(3, 3, 3\)"),
        (lambda: nn.Conv1d(4, 6, 0), "kernel_size must be a positive integer, or 1 of them, got 0"),
        (lambda: nn.Linear(0, 1), "in_features must be a positive integer, got 0"),
        (lambda: nn.BatchNorm2d(-1), "num_features must be a positive integer, got -1"),
        (lambda: nn.BatchNorm2d(1, eps=-1), "eps must not be negative, got -1"),
        (lambda: nn.Dropout(1.0), "p must be at least 0 and below 1, got 1.0"),
        (lambda: nn.CrossEntropyLoss(reduction="avg"), "reduction must be one of"),
        (lambda: nn.MSELoss(reduction="avg"), "reduction must be one of"),
    ],
)
def test_wrong_hyperparameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dropout():
    nn.manual_seed(0)
    layer = nn.Dropout(0.25)
    x = Tensor(np.ones(40_000, np.float32), requires_grad=True)
    y = layer(x)
    assert abs((y.numpy() == 0).mean() - 0.25) < 0.01
    assert set(np.unique(y.numpy())) == {np.float32(0), np.float32(1 / 0.75)}
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, y.numpy())
    assert (layer(x).numpy() != y.numpy()).any()
    assert layer.eval()(x) is x
    assert nn.Dropout(0)(x) is x
    same = [nn.Dropout(0.5, generator=np.random.default_rng(3))(np.ones(50)) for _ in range(2)]
    np.testing.assert_array_equal(*same)


# --- batch normalisation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 1 << 16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2)])
def test_batch_norm_gradients(monkeypatch, shape, training, block):
    monkeypatch.setattr(norm, "_BLOCK_ELEMENTS", block)
    layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3, dtype=np.float64)
    layer.running_mean[...], layer.running_var[...] = RNG.standard_normal(3), RNG.uniform(0.5, 2, 3)
    layer.train(training)

    def f(x, weight, bias):
        layer.weight, layer.bias = weight, bias
        return layer(x) ** 2

    x = RNG.standard_normal(shape)
    check_grads(f, x, RNG.uniform(0.5, 2, 3), RNG.standard_normal(3), atol=1e-5)
    check_grads(lambda weight: f(x, weight, None), RNG.uniform(0.5, 2, 3), atol=1e-5)
    check_grads(lambda x: f(x, None, None), x, atol=1e-5)


def test_batch_norm_is_accurate_far_from_zero():
    x = (normal(64, 2, 8, 8) + 1000).astype(np.float32)
    exact = x.astype(np.float64)
    exact -= exact.mean((0, 2, 3), keepdims=True)
    exact /= np.sqrt((exact**2).mean((0, 2, 3), keepdims=True) + 1e-5)
    layer = nn.BatchNorm2d(2)
    y = layer(x)
    assert abs(y.numpy() - exact).max() < 2e-6  # although 1000 is 6e-5 from the next float32
    y.backward(np.ones_like(x) + x)
    np.testing.assert_allclose(layer.weight.grad, ((1 + x) * exact).sum((0, 2, 3)), rtol=1e-4)


def test_constant_channels_and_empty_batches():
    x = np.full((3, 2, 5, 5), 0.1, np.float32)
    assert abs(nn.BatchNorm2d(2, eps=1e-12)(x).numpy()).max() < 1
    layer = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(50, 3)).eval()
    empty = Tensor(x[:0], requires_grad=True)
    y = layer(empty)
    assert y.shape == (0, 3)
    y.sum().backward()
    assert empty.grad.shape == (0, 2, 5, 5)
    assert not layer[0].weight.grad.any()


def test_batch_norm_averages_all_batches_without_momentum():
    layer = nn.BatchNorm1d(1, momentum=None)
    batches = [normal(5, 1) for _ in range(4)]
    for batch in batches:
        layer(batch)
    assert layer.num_batches_tracked == 4
    close(layer.running_mean, np.mean([b.mean(0) for b in batches], axis=0))
    close(layer.running_var, np.mean([b.var(0, ddof=1) for b in batches], axis=0))


def test_batch_norm_gradient_uses_the_statistics_of_its_forward():
    layer = nn.BatchNorm1d(2).eval()
    x = Tensor(normal(4, 2), requires_grad=True)
    y = layer(x)
    layer.train()(normal(4, 2))
    y.sum().backward()
    close(layer.weight.grad, x.numpy().sum(0) / np.sqrt(1 + 1e-5))


def test_batch_norm_of_half_precision_computes_in_single():
    x = (normal(64, 1, 16, 16) + 30).astype(np.float16)
    assert x.astype(np.float32).sum() > np.finfo(np.float16).max
    y = nn.BatchNorm2d(1, dtype=np.float16)(x)
    assert y.dtype == np.float16
    assert abs(float(y.numpy().astype(np.float64).std()) - 1) < 1e-3
