"""Modules, layers, losses and weights on disk; PyTorch is the oracle of layers and initialisers."""

import sys

import numpy as np
import pytest

from fastconv import Tensor, nn, no_grad, optim
from fastconv.nn import norm
from fastconv.testing import check_grads
from tests import fake_cupy
from tests.support import require

RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def close(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


class Block(nn.Module):
    """A module of modules: attributes, a list, a shared parameter, a buffer."""

    def __init__(self):
        self.first = nn.Linear(3, 3)
        self.rest = [nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))]
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.again = self.scale
        self.register_buffer("table", np.arange(3))

    def forward(self, x):
        x = self.first(x) * self.scale
        for layer in self.rest:
            x = layer(x)
        return x


# --- modules -----------------------------------------------------------------------------------------------------


def test_parameters_and_buffers_are_found_by_path():
    block = Block()
    assert [name for name, _ in block.named_parameters()] == [
        "scale", "first.weight", "first.bias", "rest.0.weight", "rest.0.bias", "rest.1.0.weight", "rest.1.0.bias",
        "rest.1.1.weight",
    ]  # fmt: skip
    assert [name for name, _ in block.named_buffers()] == [
        "table", "rest.1.0.running_mean", "rest.1.0.running_var", "rest.1.0.num_batches_tracked",
    ]  # fmt: skip
    assert len(list(block.parameters())) == 8
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in block.parameters())
    assert len(list(block.buffers())) == 4


def test_modes_reach_everything():
    block = Block()
    assert block.eval() is block
    assert not any(m.training for m in block.modules())
    block.rest[1].train()
    assert block.rest[1][0].training
    assert not block.training
    assert nn.Linear(1, 1).training


def test_gradients_reach_every_parameter_and_are_forgotten():
    block = Block()
    block(normal(4, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in block.parameters())
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())


def test_results_are_tensors_and_not_parameters():
    w = nn.Parameter([1.0])
    assert type(w * 2) is Tensor
    assert repr(w) == "Parameter([1.], requires_grad=True)"


def test_repr_is_pytorchs():
    torch = require("torch")
    for layers in (
        "Conv2d(1, 32, 3), ReLU(), MaxPool2d(2, 3, 1), Flatten(), Linear(4, 10)",
        "Conv1d(4, 8, 5, stride=2, padding=1, dilation=2, groups=2, bias=False), Sequential(Tanh(), Identity())",
        "BatchNorm2d(3), Dropout(0.3), LeakyReLU(0.1), AdaptiveAvgPool2d(1), Sigmoid(), SiLU(), Hardswish(), ReLU6()",
    ):
        ours, theirs = (repr(eval(f"Sequential({layers})", vars(module))) for module in (nn, torch.nn))
        assert ours == theirs.replace(", inplace=False", "").replace("affine=True, bias=True", "affine=True")
    assert repr(nn.MaxPool2d(2)) == "MaxPool2d(kernel_size=2, padding=0, dilation=1, ceil_mode=False)"
    assert repr(nn.Conv2d(1, 2, 3, padding=((1, 2), 0))) == (
        "Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), padding=((1, 2), 0))"
    )


def test_state_goes_round():
    nn.manual_seed(1)
    a, b = Block(), Block()
    a(normal(4, 3))
    state = a.state_dict()
    assert list(state) == [name for name, _ in [*a.named_parameters(), *a.named_buffers()]]
    weight = b.first.weight.data
    b.load_state_dict(state)
    assert b.first.weight.data is weight  # in place: an optimiser may hold it
    for (_, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        np.testing.assert_array_equal(x, y)
    state["first.weight"][...] = 7
    assert not (a.first.weight.data == 7).any()


def test_state_that_does_not_fit_is_described_whole():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    before = model.state_dict()
    state = model.state_dict()
    del state["0.bias"]
    state |= {"3.weight": np.ones(1), "2.weight": np.ones((3, 1)), "0.weight": np.zeros((3, 2))}
    with pytest.raises(ValueError, match="state does not fit Sequential") as caught:
        model.load_state_dict(state)
    assert str(caught.value).endswith(
        "missing: 0.bias; unexpected: 3.weight; 2.weight: shape (3, 1) given, (1, 3) needed"
    )
    assert all((before[name] == value).all() for name, value in model.state_dict().items())
    del state["2.weight"]
    model.load_state_dict(state, strict=False)
    assert not model[0].weight.data.any()


def test_sequential_is_a_list_of_modules():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.append(nn.Flatten())
    assert len(model) == 3
    assert list(model)[1] is model[1]
    assert isinstance(model[:2], nn.Sequential)
    assert model[:2][0] is model[0]
    with pytest.raises(TypeError, match="Sequential takes modules, got function as number 1"):
        nn.Sequential(nn.ReLU(), nn.relu)
    with pytest.raises(TypeError, match="Sequential takes modules, got int"):
        model.append(3)


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module does not define forward"):
        nn.Module()(1)


def test_dtype_conversion():
    model = Block().to(dtype=np.float64)
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    assert model.rest[1][0].running_mean.dtype == np.float64
    assert model.table.dtype == np.int64
    assert model(normal(4, 3, dtype=np.float64)).dtype == np.float64


def test_devices_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    model = nn.Linear(1, 1)
    assert model.to("cpu") is model
    with pytest.raises(ImportError, match=r'device "cuda".*cuda12.*fastconv\[cuda13\]'):
        model.to("cuda")
    for wrong in ("gpu", "cuda:x", "cpu:0"):
        with pytest.raises(ValueError, match=f'device must be "cpu", "cuda" or "cuda:N", got {wrong!r}'):
            model.to(wrong)


# --- initialisers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "args", "fan_in"),
    [
        ("Linear", (50, 40), 50),
        ("Conv1d", (8, 16, 5), 40),
        ("Conv2d", (8, 16, (3, 5)), 120),
        ("Conv2d", (8, 16, 3, 1, 0, 1, 4), 18),
        ("Conv3d", (4, 8, 3), 108),
        ("ConvTranspose2d", (8, 16, 3), 144),
        ("ConvTranspose1d", (8, 16, 3, 1, 0, 0, 4), 12),
    ],
)
def test_weights_start_as_pytorchs(kind, args, fan_in):
    torch = require("torch")
    nn.manual_seed(0)
    ours, theirs = getattr(nn, kind)(*args), getattr(torch.nn, kind)(*args)
    bound = fan_in**-0.5
    for name in ("weight", "bias"):
        a, b = getattr(ours, name).numpy(), getattr(theirs, name).detach().numpy()
        assert (a.shape, a.dtype) == (b.shape, np.float32)
        assert abs(b).max() <= bound * 1.0001
        assert 0.7 * bound < abs(a).max() <= bound
        assert abs(a.mean()) < 4 * bound / (3 * a.size) ** 0.5


def test_seeds_decide_weights():
    def weights(seed, **options):
        nn.manual_seed(seed)
        return nn.Conv2d(2, 3, 3, **options).weight.numpy()

    np.testing.assert_array_equal(weights(3), weights(3))
    assert (weights(3) != weights(4)).any()
    single, double = weights(3), weights(3, dtype=np.float64)
    np.testing.assert_array_equal(single, double.astype(np.float32))
    own = [weights(seed, generator=np.random.default_rng(9)) for seed in (1, 2)]
    np.testing.assert_array_equal(*own)


def test_generator_state_goes_round():
    nn.manual_seed(5)
    state = nn.get_rng_state()
    first = nn.Linear(3, 3).weight.numpy()
    nn.manual_seed(6)
    nn.set_rng_state(state)
    np.testing.assert_array_equal(nn.Linear(3, 3).weight.numpy(), first)


# --- layers against PyTorch --------------------------------------------------------------------------------------

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


# --- losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("spatial", [(), (2, 3)])
def test_cross_entropy_is_pytorchs(reduction, label_smoothing, spatial):
    torch = require("torch")
    data, labels = normal(6, 5, *spatial) * 4, RNG.integers(0, 5, (6, *spatial))
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    x, tx = Tensor(data, requires_grad=True), torch.tensor(data, requires_grad=True)
    loss = nn.CrossEntropyLoss(**options)(x, labels)
    expected = torch.nn.functional.cross_entropy(tx, torch.tensor(labels), **options)
    close(loss.numpy(), expected.detach().numpy())
    assert loss.dtype == np.float32
    loss.sum().backward(), expected.sum().backward()
    close(x.grad, tx.grad.numpy())
    close(nn.cross_entropy(data, labels, **options), expected.detach().numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_of_losses(reduction):
    labels = RNG.integers(0, 4, 6)
    x, target = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 4))
    check_grads(lambda x: nn.cross_entropy(x, labels, reduction=reduction, label_smoothing=0.2), x)
    check_grads(lambda x: nn.nll_loss(nn.log_softmax(x), labels, reduction=reduction), x)
    check_grads(lambda x, t: nn.mse_loss(x, t, reduction=reduction), x, target)
    check_grads(lambda x, t: nn.l1_loss(x, t, reduction=reduction), x, target)
    check_grads(lambda x: nn.softmax(x, 0), x)
    check_grads(lambda x: nn.log_softmax(x, 1), x)


def test_losses_agree():
    x, labels = normal(6, 4), RNG.integers(0, 4, 6)
    close(nn.cross_entropy(x, labels), nn.nll_loss(nn.log_softmax(x, 1), labels))
    close(nn.cross_entropy(x, Tensor(labels)), nn.cross_entropy(x, labels.astype(np.uint8)))
    close(nn.cross_entropy(x, list(labels)), nn.cross_entropy(x, labels))
    close(nn.softmax(x), np.exp(nn.log_softmax(x)))
    assert nn.MSELoss(reduction="sum")(x, x) == nn.l1_loss(x, x) == 0


def test_losses_of_extreme_logits_are_finite():
    x = Tensor(np.array([[1e4, -1e4, 0], [-1e4, -1e4, 1e4]], np.float32), requires_grad=True)
    loss = nn.cross_entropy(x, np.array([0, 1]))
    assert loss.item() == 1e4
    loss.backward()
    assert x.grad.tolist() == [[0, 0, 0], [0, -0.5, 0.5]]


def test_wrong_labels_are_named():
    x = normal(3, 4)
    for labels, error, message in (
        ([0, 1, 4], ValueError, "labels must be between 0 and 3 for 4 classes, got 4"),
        ([0, -1, 3], ValueError, "labels must be between 0 and 3 for 4 classes, got -1"),
        ([0.0, 1.0, 2.0], TypeError, r"labels must be integers \(class numbers\), got float64"),
        ([True, False, True], TypeError, "got bool"),
        ([0, 1], ValueError, r"got logits \(3, 4\) and labels \(2,\)"),
        ([[0], [1], [2]], ValueError, r"got logits \(3, 4\) and labels \(3, 1\)"),
    ):
        with pytest.raises(error, match=message):
            nn.cross_entropy(x, np.array(labels))
    with pytest.raises(TypeError, match="cross_entropy: logits must be an array or a Tensor, got list"):
        nn.cross_entropy([[0.0, 1.0]], np.array([0]))
    with pytest.raises(ValueError, match=r"nll_loss: log_probabilities of shape"):
        nn.nll_loss(normal(3), np.array([0, 0, 0]))
    with pytest.raises(ValueError, match="label_smoothing must be between 0 and 1, got 2"):
        nn.cross_entropy(x, np.zeros(3, int), label_smoothing=2)
    with pytest.raises(
        ValueError, match=r"mse_loss: prediction and target must have one shape, got \(3, 4\) and \(3,\)"
    ):
        nn.mse_loss(x, normal(3))
    with pytest.raises(ValueError, match="l1_loss: reduction must be one of"):
        nn.l1_loss(x, x, reduction="max")


# --- weights on disk ---------------------------------------------------------------------------------------------


def test_weights_go_round_through_a_file(tmp_path):
    require("safetensors")
    path = tmp_path / "w.safetensors"
    a, b = Block(), Block()
    a(normal(4, 3))
    nn.save(path, a)
    b.load_state_dict(nn.load(path))
    for name, value in a.state_dict().items():
        np.testing.assert_array_equal(value, b.state_dict()[name])
    assert list(tmp_path.iterdir()) == [path]
    nn.save(path, {"turned": np.arange(6.0).reshape(2, 3).T})
    assert nn.load(path)["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_damaged_weights_are_named(tmp_path):
    require("safetensors")
    path = tmp_path / "w.safetensors"
    nn.save(path, nn.Linear(4, 4))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"w\.safetensors: not a safetensors file, or cut off"):
        nn.load(path)
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "none")


def test_a_failed_save_keeps_the_old_file(tmp_path):
    require("safetensors")
    path = tmp_path / "w.safetensors"
    nn.save(path, {"a": np.ones(2)})
    with pytest.raises(Exception, match=r".+"):
        nn.save(path, {"a": np.array([object()])})
    assert nn.load(path)["a"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_saving_without_safetensors_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"nn\.save needs safetensors.*fastconv\[examples\]"):
        nn.save(tmp_path / "w", nn.Linear(1, 1))


# --- together ----------------------------------------------------------------------------------------------------


def network():
    nn.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 8, bias=False), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def train(model, x, labels, steps=30):
    opt = optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = nn.cross_entropy(model(x), labels, label_smoothing=0.05)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def test_a_network_learns():
    x, labels = normal(24, 1, 3, 4), RNG.integers(0, 3, 24)
    model = network()
    losses = train(model, x, labels, 60)
    assert losses[-1] < 0.5 * losses[0]
    with no_grad():
        predicted = model.eval()(x)
    assert not predicted.requires_grad
    assert (predicted.numpy().argmax(1) == labels).mean() > 0.9


@pytest.fixture
def cupy(monkeypatch):
    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_a_network_trains_the_same_on_the_other_device(cupy):
    x, labels = normal(24, 1, 3, 4), RNG.integers(0, 3, 24)
    here, there = network(), network().to("cuda")
    assert {p.device for p in there.parameters()} == {"cuda"}
    losses = train(here, x, labels)
    close(train(there, cupy.asarray(x), cupy.asarray(labels)), losses)
    state = there.state_dict()
    assert all(type(value) is cupy.ndarray for value in state.values())
    here.load_state_dict(state)
    there.load_state_dict(here.state_dict())
    there.to("cpu").eval()
    close(there(x).numpy(), here.eval()(x).numpy())


def test_dropout_and_files_on_the_other_device(cupy, tmp_path):
    require("safetensors")
    nn.manual_seed(0)
    y = nn.Dropout(0.5)(cupy.asarray(np.ones(1000, np.float32)))
    assert 400 < (y.get() == 0).sum() < 600
    layer = nn.Linear(2, 2).to("cuda:0")
    nn.save(tmp_path / "w", layer)
    np.testing.assert_array_equal(nn.load(tmp_path / "w")["weight"], layer.weight.numpy())
    with pytest.raises(TypeError, match="x and weight are on different devices"):
        layer(normal(1, 2))
    with pytest.raises(RuntimeError, match='device "cuda:3" cannot be used: cudaErrorInvalidDevice'):
        layer.to("cuda:3")
