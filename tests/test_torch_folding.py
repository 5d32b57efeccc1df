"""Folding in converted PyTorch models: made where nothing can tell, and nowhere else."""

import threading

import pytest

from tests.support import require

torch = require("torch")
nn = torch.nn

from fastconv.backends import torch as fct  # noqa: E402  # needs PyTorch
from fastconv.backends.torch import folding  # noqa: E402
from tests.test_torch_modules import chain, chain_reference, close, folds_used, image, randomize  # noqa: E402


@pytest.mark.parametrize("act", folding.ACTIVATIONS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("bias", [True, False])
def test_activations(act, bias):
    model, x = chain(act=act, bias=bias), image()
    with torch.no_grad():
        expected = model(x)
        close(fct.convert(model)(x), expected)
    (fold,) = folds_used(model[0])
    assert fold.followers == (model[1], model[2])


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_and_without_scale_and_without_norm(groups):
    for norm in (nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.Identity()):
        model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=groups), norm, nn.Tanh())
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        else:
            del model[1]
        model.eval()
        with torch.no_grad():
            expected = model(image())
            close(fct.convert(model)(image()), expected)
        assert len(folds_used(model[0])[0].followers) == len(model) - 1


def test_parameters_that_the_kernels_do_not_have():
    for act in (nn.LeakyReLU(0.2), nn.GELU("tanh")):
        model = chain()
        model[2] = act
        with torch.no_grad():
            expected = model(image())
            close(fct.convert(model)(image()), expected)


def test_alone_in_training_and_with_gradients_everyone_does_their_own_work():
    model, x = fct.convert(chain()), image()
    conv, norm, act = model
    plain = nn.functional.conv2d(x, conv.weight, None, padding=1)
    with torch.no_grad():
        for _ in range(2):
            y = model(x)
            close(conv(x), plain)
            close(norm(plain), nn.BatchNorm2d.forward(fct.revert(chain())[1], plain))
            close(act(plain), plain.relu())
            close(model[:2](x), norm(plain))  # a new Sequential of the same modules
            close(model.forward(x), y)  # and without the hooks
    close(model(x), y)
    assert model(x).requires_grad
    with torch.no_grad():
        model.train()
        theirs = chain().train()
        close(model(x), theirs(x))
        close(norm.running_mean, theirs[1].running_mean)
        model.eval()
        close(model(x), chain_reference(model, x))  # the new statistics
        norm.train()
        close(model(x), theirs(x))


def test_frozen_parameters_fold_with_gradients_enabled():
    model = fct.convert(chain().requires_grad_(False))
    model(image())
    assert folds_used(model[0])
    x = image().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("where", ["conv", "norm", "norm before", "act before", "act", "everywhere"])
def test_hooks_see_what_they_always_saw(where):
    model, x = chain(), image()
    seen = []

    def look(module, args, output=None):
        seen.append((args[0] if output is None else output).clone())

    if where == "everywhere":
        handle = nn.modules.module.register_module_forward_hook(look)
    else:
        module = model[("conv", "norm", "act").index(where.split()[0])]
        register = module.register_forward_pre_hook if "before" in where else module.register_forward_hook
        handle = register(look)
    try:
        with torch.no_grad():
            expected = model(x)
            wanted = list(seen)
            seen.clear()
            close(fct.convert(model)(x), expected)
            assert not folds_used(model[0])
        close(seen, wanted)
    finally:
        handle.remove()
    with torch.no_grad():
        model(x)
    assert folds_used(model[0])


class Wired(nn.Module):
    """A convolution, a batch normalisation and an activation, wired as ``wire`` says."""

    def __init__(self, wire):
        super().__init__()
        self.conv, self.norm, self.act = chain()
        self.wire = wire
        self.kept, self.seen = None, []

    def forward(self, x):
        return self.wire(self, x)


def keeps(m, x):
    m.kept = m.conv(x)
    return m.norm(m.kept)


def appends(m, x):
    m.seen.append(m.conv(x))
    return m.norm(m.seen[-1])


def functional(m, x):
    return torch.relu(m.norm(m.conv(x)))


WIRES = {
    "in a row": (lambda m, x: m.act(m.norm(m.conv(x))), 2),
    "no norm": (lambda m, x: m.act(m.conv(x)), 1),
    "shared activation": (lambda m, x: m.act(m.act(m.norm(m.conv(x))) - 0.5), 2),
    "functional activation": (functional, 1),
    "two ways out": (lambda m, x: m.norm(y := m.conv(x)) + y.mean(), 0),
    "norm used twice": (lambda m, x: m.act(y := m.norm(m.conv(x))) + y, 1),
    "changed in place": (lambda m, x: m.norm(m.conv(x).mul_(2)), 0),
    "returned too": (lambda m, x: (y := m.conv(x), m.norm(y)), 0),
    "called twice, differently": (lambda m, x: m.norm(m.conv(x)) + m.act(m.conv(x)), 0),
    "called twice, the same": (lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv(x * 2)), 1),
    "called twice, half the same": (lambda m, x: m.act(m.norm(m.conv(x))) + m.norm(m.conv(x * 2)), 1),
    "norm first": (lambda m, x: m.norm(m.norm(m.conv(x))), 1),
    "kept": (keeps, 0),
    "appended": (appends, 0),
    "branches on values": (lambda m, x: m.norm(m.conv(x)) if x.sum() > 0 else m.conv(x), 0),
}


@pytest.mark.parametrize("name", WIRES)
def test_wiring(name):
    wire, followers = WIRES[name]
    model, x = Wired(wire).eval(), image()
    with torch.no_grad():
        expected = model(x)
        model.seen.clear()
        model.kept = None
        attributes = {k: v for k, v in model.__dict__.items() if "hooks" not in k}
        fct.convert(model)
        assert {k: v for k, v in model.__dict__.items() if "hooks" not in k} == attributes  # tracing left nothing
        for _ in range(2):
            close(model(x), expected)
    used = folds_used(model.conv)
    assert [len(f.followers) for f in used] == [followers] * bool(followers)
    if followers == 0 and name in ("kept", "appended", "branches on values"):
        assert "nothing folded: its forward" in str(fct.explain(model))


def test_another_way_than_when_it_was_traced():
    """A forward that branches on an attribute: found out, repeated, and never folded again."""
    model, x = Wired(lambda m, x: m.norm(m.conv(x)) if m.kept is None else m.conv(x) * 2).eval(), image()
    expected = [model(x)]
    model.kept = True
    expected.append(model(x))
    model.kept = None
    fct.convert(model)
    with torch.no_grad():
        close(model(x), expected[0])
        model.kept = True
        with pytest.warns(UserWarning, match="did not go where it went"):
            close(model(x), expected[1])
        close(model(x), expected[1])
        model.kept = None
        close(model(x), expected[0])
    assert not folding._thread.scopes


def test_a_fold_that_is_wrong_is_found(monkeypatch):
    """The checks above can fail: a convolution that folds outside its scope, or a norm that does its work again."""
    x = image()
    with torch.no_grad():
        expected = chain()(x)
        model = fct.convert(chain())
        monkeypatch.setattr(folding, "_fetched", lambda module, x: False)
        with pytest.warns(UserWarning, match="did not go"):
            close(model(x), expected)  # repeated without folds
        monkeypatch.setattr(folding, "mark", lambda y, fold: None)
        with pytest.raises(AssertionError):
            close(fct.convert(chain())(x), expected)


def test_interrupted_scopes_do_not_stay():
    stop = []

    class Interrupting(nn.Identity):
        def forward(self, x):
            if stop:
                raise stop[0]
            return x

    model = nn.Sequential(chain()[0], *list(chain())[1:], Interrupting()).eval()
    x = image()
    with torch.no_grad():
        expected = model(x)
        plain = model[0](x)
        fct.convert(model)
        close(model(x), expected)
        for error in (KeyboardInterrupt(), ValueError()):
            stop.append(error)
            with pytest.raises(type(error)):
                model(x)
            stop.clear()
            close(model[0](x), plain)
            assert not folding._thread.scopes
            close(model(x), expected)


def test_nested_scopes_and_copies_of_their_parts():
    inner = chain()
    model = nn.Sequential(inner, randomize(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), 3), nn.ReLU()).eval()
    with torch.no_grad():
        expected = model(image())
        fct.convert(model)
        close(model(image()), expected)
        assert folds_used(model[0][0])[0].followers == (inner[1], inner[2])
        assert folds_used(model[1][0])[0].followers == (model[1][1],)  # the ReLU is another module's to call


def test_threads_have_scopes_of_their_own():
    model, x = fct.convert(chain()), image()
    with torch.no_grad():
        expected = model(x)
    plain = nn.functional.conv2d(x, model[0].weight, None, padding=1)
    wrong = []

    def work(alone):
        with torch.no_grad():
            for _ in range(30):
                y = model[0](x) if alone else model(x)
                if not torch.allclose(y, plain if alone else expected, atol=1e-4):
                    wrong.append(alone)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_norms_that_cannot_be_folded_now():
    x = image()
    for change in (
        lambda m: setattr(m[1], "running_var", None) or setattr(m[1], "running_mean", None),
        lambda m: m[1].running_var.fill_(-1),  # a scale that is not finite
        lambda m: setattr(m[1], "forward", lambda x: x + 1),
    ):
        model, theirs = fct.convert(chain()), chain()
        with torch.no_grad():
            model(x)
            for m in (model, theirs):
                change(m)
            expected = theirs(x)
            for _ in range(2):
                torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_no_fold():
    model = fct.convert(chain(), fold=False)
    with torch.no_grad():
        model(image())
    assert not model._forward_hooks
    assert str(fct.explain(model)).count("folded") == 0
