"""Modules, initialisers and weights on disk; PyTorch is the oracle of initialisers."""

import sys

import numpy as np
import pytest

from fastconv import Tensor, nn, no_grad, optim
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
