"""Rows of converted layers: the bits of layers called one by one, and never those of layers that are no more."""

import copy
import threading

import pytest

import fastconv
from fastconv.kernels.cpu.sequence import ABLE
from tests.support import require

torch = require("torch")
nn = torch.nn

from fastconv.backends import torch as fct  # noqa: E402  # needs PyTorch
from fastconv.backends.torch import rows  # noqa: E402  # needs PyTorch

pytestmark = pytest.mark.skipif(not ABLE, reason="no sched_yield here")


class Block(nn.Module):
    """A stem and a pooling, two branches that are added, another pooling; a concatenation cuts the row in two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)
        self.left, self.right = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(8, 16, 1, bias=False)
        self.up, self.mean = nn.ConvTranspose2d(16, 8, 2, 2), nn.AvgPool2d(2)
        self.last, self.act = nn.Conv2d(16, 5, 3), nn.LeakyReLU()

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        y = self.pool(x)
        y = self.up(torch.relu(self.left(y) + self.right(y)))
        return self.act(self.last(self.mean(torch.cat([x, y], 1))))


def made(network=Block, **keywords):
    torch.manual_seed(0)
    return fct.convert(network(**keywords).eval())


def ready(model):
    return [len(row.ready) for row in model._fastconv.graph.rows]


def image(seed=1, size=(2, 3, 24, 28), dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def warm(model, *inputs):
    """Calls until the rows are ready; what they gave before, one by one."""
    first = model(*inputs)
    model(*inputs)
    assert all(ready(model)), ready(model)
    return first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_the_same_bits_as_one_by_one(last, dtype):
    model, one_by_one = made().to(dtype), made().to(dtype)
    form = torch.channels_last if last else torch.contiguous_format
    warm(model, image(dtype=dtype).to(memory_format=form))
    assert [len(row.steps) for row in model._fastconv.graph.rows] == [5, 2]
    kept = []
    for seed in range(3):
        x = image(seed, dtype=dtype).to(memory_format=form)
        before = x.clone()
        with fastconv.options(num_threads=fastconv.get_num_threads()):  # options are not for rows
            expected = one_by_one(x)
        y = model(x)
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride()
        assert torch.equal(x, before)
        kept.append((y, expected))
    assert all(torch.equal(y, expected) for y, expected in kept)  # later calls have not written to them


def test_other_memory():
    """Inputs that are views with gaps, expanded, or misaligned: their strides are another kind, or the row waits."""
    model, x = made(), image(size=(2, 3, 24, 56))
    views = [x[..., ::2], x[:1].expand(2, -1, -1, -1)[..., :28], x[..., 1:29], x.flip(3)[..., :28]]
    for view in views:
        expected = model(view.clone())
        warm(model, view)
        assert torch.equal(model(view), expected)
    raw = torch.zeros(4 * view.numel() + 1, dtype=torch.uint8)
    odd = torch.frombuffer(raw.numpy()[1:], dtype=torch.float32).view(view.shape)
    odd.copy_(views[-1])
    assert torch.equal(model(odd), expected)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1), nn.MaxPool2d(2)

    def forward(self, x, y):
        return self.c(torch.relu(self.a(x) + self.b(y))), self.b(x)


def test_inputs_that_shared_memory_when_the_row_was_learnt():
    model, both = made(Two), image(size=(1, 8, 9, 9))
    warm(model, both[:, :4], both[:, 2:6])
    x, y = image(5, (1, 8, 9, 9))[:, :4], image(6, (1, 8, 9, 9))[:, 2:6]
    with fastconv.options(num_threads=1):
        expected = made(Two)(x, y)
    found = model(x, y)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _hook(model):
    model.pool.register_forward_hook(lambda module, args, y: y + 1)


def _negate(model):
    model.right.weight.data = -model.right.weight.data


def _narrow(model):
    model.act.negative_slope = 0.5


CHANGES = {
    "weights written to": lambda model: model.left.weight.mul_(2),
    "weights exchanged": _negate,
    "a new parameter": lambda model: setattr(model.last, "bias", nn.Parameter(torch.ones(5))),
    "running statistics": lambda model: model.norm.running_mean.add_(1),
    "epsilon": lambda model: setattr(model.norm, "eps", 0.5),
    "a pooling": lambda model: setattr(model.mean, "kernel_size", (2, 1)),
    "padding": lambda model: setattr(model.last, "padding", (1, 0)),
    "an activation": _narrow,
    "a hook": _hook,
    "another module": lambda model: setattr(model, "pool", nn.MaxPool2d(3, 2, 1, 1).eval()),
    "statistics of the batch": lambda model: model.norm.train(),
    "one layer reverted": lambda model: fct.revert(model.left),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    model, plain, x = made(), fct.revert(made()), image()
    warm(model, x)
    for m in (model, plain):
        if change != "one layer reverted" or m is model:
            CHANGES[change](m)
    for _ in range(4):  # until the rows are ready again, if they may be
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


def test_layers_that_change_between_calls_are_not_noted_every_time(monkeypatch):
    model, x, tried = made(), image(), []
    of = rows.Ready.of
    monkeypatch.setattr(rows.Ready, "of", lambda row, values: tried.append(row) or of(row, values))
    for _ in range(40):
        model.last.weight.mul_(0.99)
        model(x)
    assert sum(row is model._fastconv.graph.rows[1] for row in tried) == 5  # after 2, 4, 8, 16 and 32 calls


def test_gradients_flow():
    model, plain, x = made(), fct.revert(made()), image()
    warm(model, x)
    with torch.enable_grad():
        for m in (model, plain):
            m(x).square().sum().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))

    def forward(self, x):
        self.b(self.a(x))
        y = torch.tanh(x)
        return self.d(self.c(y))


def test_layers_whose_results_nobody_uses_are_no_row():
    model, x = made(Unused), image(size=(1, 4, 9, 9))
    expected = warm(model, x)
    assert [len(row.steps) for row in model._fastconv.graph.rows] == [2]
    assert torch.equal(model(x), expected)


def test_calls_for_gradients_of_rows_without_folds():
    model, plain, x = made(Unused), fct.revert(made(Unused)), image(size=(1, 4, 9, 9))
    with torch.enable_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)
    assert model._fastconv.graph  # nobody was warned, and the graph is kept
    warm(model, x)
    with torch.enable_grad():
        assert model(x).requires_grad
    assert ready(model) == [1]  # for the next call without


def test_threads_do_not_meet_in_a_row():
    model = made()
    images = [image(seed) for seed in range(4)]
    expected = [warm(model, x) for x in images]
    wrong = []

    def call(i):
        with torch.no_grad():
            wrong.extend(i for _ in range(50) if not torch.equal(model(images[i]), expected[i]))

    workers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_modes_and_copies():
    model, x = made(), image()
    expected = warm(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype is torch.bfloat16
    torch.testing.assert_close(model.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-4)
    model.float()
    twin = copy.deepcopy(model)
    twin.stem.weight.zero_()
    assert torch.equal(model(x), expected)
    assert not torch.equal(twin(x), expected)
    with fastconv.options(num_threads=1):
        assert torch.equal(model(x), expected)
    for size in range(20, 60, 4):  # as many kinds of inputs as are kept, and more
        for _ in range(3):
            model(image(size=(1, 3, size, size)))
    assert ready(model) == [rows.KEPT, rows.KEPT]
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
