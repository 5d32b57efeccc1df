"""Converted PyTorch models that change, or are changed, between calls, or do more in a call than compute."""

import copy
import operator
import random
import threading
import types

import pytest

from tests.support import require

torch = require("torch")
nn = torch.nn
F = nn.functional

from fastconv.backends import torch as fct  # noqa: E402  # needs PyTorch
from tests.test_torch_folding import Wired, twice  # noqa: E402
from tests.test_torch_modules import chain, close, folds_used, image  # noqa: E402

FACTOR = 2
SETTINGS = types.ModuleType("settings")
SETTINGS.factor = 2


def helper(y):
    return y * FACTOR


class Helped(Wired):
    """Wired that also reads attributes of its class and calls its own methods."""

    factor = 2

    def forward(self, x):
        return self.wire(self, self.scaled(self.act(self.norm(self.conv(x)))))

    def scaled(self, y):
        return y * self.factor


def built(wire, kind=Wired):
    model = kind(wire).eval()
    model.config = types.SimpleNamespace(factor=2)
    model.nested = {"factors": [2]}
    model.plain = torch.tensor(2.0)
    return model


def set_global(name, value):
    globals()[name] = value


CHANGES = {
    "an attribute's attribute": (lambda m, y: y * m.config.factor, lambda m: setattr(m.config, "factor", 3)),
    "in a container's container": (
        lambda m, y: y * m.nested["factors"][0],
        lambda m: operator.setitem(m.nested["factors"], 0, 3),
    ),
    "a plain tensor": (lambda m, y: y * m.plain, lambda m: m.plain.fill_(3)),
    "a plain tensor's number": (lambda m, y: y * m.plain.item(), lambda m: m.plain.fill_(3)),
    "a global constant": (lambda m, y: y * FACTOR, lambda m: set_global("FACTOR", 3)),
    "a global constant of a helper": (lambda m, y: helper(y), lambda m: set_global("FACTOR", 3)),
    "a module's constant": (lambda m, y: y * SETTINGS.factor, lambda m: setattr(SETTINGS, "factor", 3)),
    "the class": (lambda m, y: y, lambda m: setattr(Helped, "factor", 3)),
    "a method": (lambda m, y: y, lambda m: setattr(Helped, "scaled", lambda self, y: y * 3)),
    "eps": (lambda m, y: y, lambda m: setattr(m.norm, "eps", 0.7)),
    "stride": (lambda m, y: y, lambda m: setattr(m.conv, "stride", (2, 2))),
    "padding": (lambda m, y: y, lambda m: setattr(m.conv, "padding", (0, 0))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_that_forward_reads(name, monkeypatch):
    wire, change = CHANGES[name]
    monkeypatch.setitem(globals(), "FACTOR", 2)
    for where, attribute in (SETTINGS, "factor"), (Helped, "factor"), (Helped, "scaled"):
        monkeypatch.setattr(where, attribute, getattr(where, attribute))
    model, theirs, x = fct.convert(built(wire, Helped)), built(wire, Helped), image()
    with torch.no_grad():
        for _ in range(2):
            close(model(x), theirs(x))
        assert bool(folds_used(model.conv)) == (name != "a plain tensor's number")
        for m in (model, theirs):
            change(m)
        for _ in range(2):
            close(model(x), theirs(x))


class Counts(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.number, self.inside = kind, 0, types.SimpleNamespace(number=0)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        if self.kind == "attribute":
            self.number += 1
        elif self.kind == "object":
            self.inside.number += 1
        else:
            self.steps.add_(1)
        return x * (self.number + self.inside.number + self.steps)


@pytest.mark.parametrize("kind", ["attribute", "object", "buffer"])
def test_a_module_that_counts_is_called_once_a_call(kind):
    x = image()
    model, theirs = (nn.Sequential(chain(), Counts(kind)).eval() for _ in range(2))
    fct.convert(model)
    with torch.no_grad():
        for _ in range(3):
            close(model(x), theirs(x))
    assert folds_used(model[0][0])


@pytest.mark.parametrize("wire", [
    lambda m, x: F.dropout(m.norm(m.conv(x))), lambda m, x: m.norm(m.conv(x)) * (1 + int(torch.rand(1) > 0.5)),
    lambda m, x: m.norm(m.conv(x)) * random.random(), lambda m, x: m.norm(m.conv(x)) + torch.rand_like(x[:, :1]),
], ids=["dropout", "torch", "random", "like"])  # fmt: skip
def test_random_numbers_are_those_of_pytorch(wire):
    x, found = image(), []
    for model in (fct.convert(Wired(wire).eval()), Wired(wire).eval()):
        torch.manual_seed(1)
        random.seed(1)
        with torch.no_grad():
            found.append([model(x) for _ in range(8)])
    close(*found)


def adds_to_input(m, x):
    x += m.inner(x)
    return x


def adds_to_what_is_used(m, x):
    r = alias = twice(x)
    r += m.norm(m.conv(x))
    return r + alias


@pytest.mark.parametrize("wire", [adds_to_input, adds_to_what_is_used, lambda m, x: m.norm(m.conv(x.relu_()))])
def test_what_is_changed_in_place_is(wire):
    model = Wired(wire).eval()
    model.inner = nn.Conv2d(4, 4, 3, padding=1)
    theirs = copy.deepcopy(model)
    fct.convert(model)
    with torch.no_grad():
        for _ in range(2):
            a, b = image(), image()
            close(model(a), theirs(b))
            close(a, b)


def tensor_or_list(m, x):
    return m.norm(m.conv(torch.cat([x] if isinstance(x, torch.Tensor) else x, 1)))


def by_dtype(m, x):
    return m.norm(m.conv(x)) * {torch.float64: 5.0}.get(x.dtype, 1.0)


def recovers(m, x):
    try:
        return m.norm(m.conv(x))
    except RuntimeError:
        return x


@pytest.mark.filterwarnings("ignore:Wired. nothing is folded")
@pytest.mark.parametrize("wire", [tensor_or_list, by_dtype, recovers])
def test_what_symbols_do_not_show(wire):
    model, theirs, x = fct.convert(Wired(wire).eval()), Wired(wire).eval(), image()
    with torch.no_grad():
        for _ in range(2):
            close(model(x), theirs(x))
        if wire is recovers:
            close(model(image(1, 3, 8, 8)), image(1, 3, 8, 8))
        for m in (model, theirs):
            m.double()
        close(model(x.double()), theirs(x.double()))


def test_float64_under_autocast_stays():
    x = image().double()
    for model in (chain().double(), chain()[:1].double()):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = model(x)
            close(fct.convert(model)(x), expected)


def test_a_shallow_copy_has_modules_of_its_own():
    model, x = fct.convert(Wired(lambda m, x: m.act(m.norm(m.conv(x)))).eval()), image()
    with torch.no_grad():
        model(x)
        other = copy.copy(model)
        other._modules = dict(model._modules)
        other.conv = copy.deepcopy(model.conv)
        other.conv.weight.mul_(3)
        for m in (other, model, other):
            close(m(x), m.norm(F.conv2d(x, m.conv.weight, padding=1)).relu())


class Listed(nn.Module):
    """A class that keeps a list of its subclasses."""

    kinds: list = []  # noqa: RUF012

    def __init_subclass__(cls, *, name, **others):
        super().__init_subclass__(**others)
        Listed.kinds.append(name)


class Named(Listed, name="named"):
    def __init__(self):
        super().__init__()
        self.body = chain()

    def forward(self, x):
        return self.body(x)


def test_subclasses_that_are_listed():
    model = fct.convert(Named().eval())
    with torch.no_grad():
        close(model(image()), chain()(image()))
    assert Listed.kinds == ["named"]


def test_copies_are_traced_while_other_threads_run():
    x = image()
    layers = [chain(), *(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(10))]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        expected = model(x)
    fct.convert(model)
    shared, wrong = copy.deepcopy(model), []

    def work(m):
        try:
            with torch.no_grad():
                for _ in range(3):
                    close(m(x), expected)
        except Exception as error:  # pytest does not see another thread's
            wrong.append(error)

    copies = [copy.deepcopy(model), shared, shared, copy.deepcopy(model)]
    threads = [threading.Thread(target=work, args=(m,)) for m in copies]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
