"""``convert``, ``revert`` and ``explain`` of PyTorch models: the same numbers, and the same modules."""

import copy
import io
import pickle
import warnings

import pytest

import fastconv
from tests.support import require

torch = require("torch")
nn = torch.nn
F = nn.functional

from bench.torch_models import NETWORKS, build  # noqa: E402  # needs PyTorch
from fastconv.backends import torch as fct  # noqa: E402
from fastconv.backends.torch import folding, layers, rewriting  # noqa: E402


def randomize(model, seed=0):
    """Weights and statistics as after training, so that a fold that is wrong, or missing, shows."""
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, tuple(folding.NORMS)):
            m.weight.data.uniform_(0.5, 1.5, generator=g)
            m.bias.data.normal_(generator=g)
            m.running_mean.normal_(generator=g)
            m.running_var.uniform_(0.5, 2, generator=g)
    return model


def chain(*, act=nn.ReLU, bias=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), act())
    return randomize(model).eval()


def image(*shape, seed=1):
    return torch.randn(*(shape or (2, 4, 9, 10)), generator=torch.Generator().manual_seed(seed))


def folds_used(convolution):
    """The folds of the plans that a convolution has run."""
    return [key[-2] for key, prepared in convolution._fastconv.plans.items() if prepared.plan is not None and key[-2]]


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


# ------------------------------------------------------------------------------------------------------- every module


def every_module():
    sizes = {1: (13,), 2: (9, 12), 3: (6, 7, 8)}
    for rank in (1, 2, 3):

        def make(stem, *args, rank=rank, **kwargs):
            return getattr(nn, f"{stem}{rank}d")(*args, **kwargs)

        x = image(2, 4, *sizes[rank])
        yield f"conv{rank}", make("Conv", 4, 6, 3, stride=2, padding=1, dilation=2), x
        yield f"conv{rank} grouped", make("Conv", 4, 8, 3, padding="same", groups=2, bias=False), x
        for mode in ("reflect", "replicate", "circular"):
            yield f"conv{rank} {mode}", make("Conv", 4, 6, 3, padding=1, padding_mode=mode), x
        yield f"conv{rank} same, {mode}", make("Conv", 4, 6, 2, padding="same", padding_mode="reflect"), x
        yield f"transposed{rank}", make("ConvTranspose", 4, 6, 3, stride=2, padding=1, output_padding=1), x
        yield f"transposed{rank} grouped", make("ConvTranspose", 4, 6, 2, stride=2, groups=2, bias=False), x
        yield f"max{rank}", make("MaxPool", 3, 2, 1, ceil_mode=True), x
        yield f"max{rank} indices", make("MaxPool", 2, dilation=2, return_indices=True), x
        yield f"avg{rank}", make("AvgPool", 3, 2, 1, count_include_pad=False), x
        if hasattr(nn, f"LPPool{rank}d"):
            yield f"lp{rank}", make("LPPool", 2, 3, stride=2), x
        yield f"adaptive max{rank}", make("AdaptiveMaxPool", 3), x
        yield f"adaptive avg{rank}", make("AdaptiveAvgPool", 3), x


MODULES = {name: (module, x) for name, module, x in every_module()}


@pytest.mark.parametrize("name", MODULES)
def test_every_module(name):
    theirs, x = MODULES[name]
    ours = fct.convert(copy.deepcopy(theirs).eval())
    assert type(ours).__mro__[1:3] != type(theirs).__mro__[1:3]
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    with torch.no_grad():
        for _ in range(2):  # the second by what the first prepared
            close(ours(x), theirs(x))
        close(ours(x[0]), theirs(x[0]))  # no batch
    assert ours._state().reason is None
    given = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    results = [m(t) for m, t in zip((ours, theirs), given, strict=True)]
    results = [r[0] if isinstance(r, tuple) else r for r in results]
    for r in results:
        r.square().sum().backward()
    close(given[0].grad, given[1].grad, 1e-3)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, 1e-3)
    theirs.zero_grad()


def test_every_class_of_pytorchs_is_there():
    stems = ("Conv", "ConvTranspose", "MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "MaxUnpool")
    expected = {f"{stem}{rank}d" for stem in stems for rank in (1, 2, 3)} & set(dir(nn))
    assert {c.__name__ for c in layers.CONVERTED} == expected


def test_unpooling_and_output_sizes(no_grad):
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    up = nn.ConvTranspose2d(4, 6, 3, stride=2)
    x = image(2, 4, 8, 8)
    expected = unpool(*pool(x)), up(x), up(x, output_size=(18, 18)), up(x, (18, 18))
    for m in (pool, unpool, up.eval()):
        fct.convert(m)
    close((unpool(*pool(x)), up(x), up(x, output_size=(18, 18)), up(x, (18, 18))), expected)
    assert unpool._state().operators


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype, no_grad):
    model = nn.Sequential(*chain(), nn.MaxPool2d(2)).eval().to(dtype)
    x = image().to(dtype)
    expected = copy.deepcopy(model).double()(x.double())
    y = fct.convert(model)(x)
    assert y.dtype == dtype
    assert folds_used(model[0])
    close(y.double(), expected, {torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype])


@pytest.mark.parametrize("rank", [2, 3])
def test_channels_last_stays_channels_last(rank, no_grad):
    form = {2: torch.channels_last, 3: torch.channels_last_3d}[rank]
    norm = getattr(nn, f"BatchNorm{rank}d")
    conv, up = (getattr(nn, f"{stem}{rank}d") for stem in ("Conv", "ConvTranspose"))
    model = randomize(nn.Sequential(conv(4, 8, 3), norm(8), nn.ReLU(), up(8, 6, 2, 2), norm(6), nn.SiLU())).eval()
    x = image(2, 4, *(7, 8, 6)[:rank])
    expected = model(x)
    fct.convert(model)
    for _ in range(2):
        y = model(x.to(memory_format=form))
        assert y.is_contiguous(memory_format=form)
        assert not y.is_contiguous()
        close(y, expected)
    assert model(x).is_contiguous()  # another format, another plan
    assert len(model[0]._fastconv.plans) == 2


@pytest.mark.parametrize("name", sorted(n for n in NETWORKS if "vgg16" not in n))  # slow, and no kind of layer more
def test_networks(name, no_grad):
    model = build(name)
    x = image(1, 3, 64, 64)
    exact = build(name).double()(x.double())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fct.convert(model)
    for t in (x, x.to(memory_format=torch.channels_last)):
        assert float((model(t) - exact).abs().max() / exact.abs().max()) < 1e-4
    report = fct.explain(model)
    assert not [line for line in report.lines if "PyTorch" in line.runs]
    norms = [line for line in report.lines if line.kind == "BatchNorm2d"]
    assert all(line.runs.startswith("folded into ") for line in norms)
    assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    after = fct.revert(model).state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert not [m for m in model.modules() if type(m).__module__.startswith("fastconv")]


# -------------------------------------------------------------------------------------------------- the module itself


def test_the_module_stays_the_same_object():
    model = nn.Sequential(chain(), nn.MaxPool2d(2), nn.Linear(5, 3))
    before = list(model.modules()), list(model.parameters()), list(model.state_dict()), repr(model)
    flags = [{k: v for k, v in m.__dict__.items() if "hooks" not in k} for m in model.modules()]
    classes = [type(m) for m in model.modules()]
    for _ in range(2):  # twice is once
        assert fct.convert(model) is model
        assert type(model).__mro__[1] is type(model[0]).__mro__[1] is rewriting.Rewritten
    for a, b in zip((*before[0], *before[1]), (*model.modules(), *model.parameters()), strict=True):
        assert a is b
    assert (list(model.state_dict()), repr(model)) == before[2:]
    assert fct.revert(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert [{k: v for k, v in m.__dict__.items() if "hooks" not in k} for m in model.modules()] == flags
    assert not [m for m in model.modules() for k, v in m.__dict__.items() if "forward" in k and v]


def test_copies_and_pickles(no_grad):
    model, x = fct.convert(chain()), image()
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not other[0]._fastconv.plans
        other[0].weight.mul_(2)
        other[1].running_mean.mul_(2)
        close(other(x), chain_reference(other, x))
        (fold,) = folds_used(other[0])
        assert fold.norm is other[1]
    assert torch.equal(model(x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    close(torch.load(file, weights_only=False)(x), expected)


def chain_reference(model, x):
    """What PyTorch makes of a converted chain, by its functions."""
    conv, norm, act = model
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    return act(y)


def test_what_changes_the_parameters_is_seen(no_grad):
    model, x = fct.convert(chain(bias=True)), image()
    conv, norm = model[0], model[1]

    def step():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        with torch.enable_grad():
            model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def inference():
        with torch.inference_mode():
            conv.weight.add_(0.1)

    def twice():  # a second new tensor may lie where the first lay
        for _ in range(4):
            conv.weight.data = conv.weight.data * 1.1

    def reshaped():
        conv.weight.data = conv.weight.data.transpose(2, 3)

    changes = {
        "in place": lambda: conv.weight.mul_(1.5), "bias": lambda: conv.bias.add_(1), "optimizer": step,
        "scale": lambda: norm.weight.mul_(2), "mean": lambda: norm.running_mean.add_(1),
        "variance": lambda: norm.running_var.mul_(3), "inference": inference, "data": twice, "strides": reshaped,
        "state": lambda: model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()}),
        "assigned": lambda: model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()}, assign=True),
        "parameter": lambda: setattr(conv, "weight", nn.Parameter(conv.weight * 2)),
        "no bias": lambda: setattr(conv, "bias", None),
    }  # fmt: skip
    for name, change in changes.items():
        before = model(x)
        assert folds_used(conv)
        change()
        y = model(x)
        close(y, chain_reference(model, x), 1e-4)
        assert not torch.equal(y, before), name
    model.double()
    close(model(x.double()), chain_reference(model, x.double()))


def test_plans_are_few():
    model = fct.convert(chain())
    with torch.inference_mode():
        for n in range(2 * layers.KEPT_PLANS):
            model(image(n + 1, 4, 6, 6))
    assert len(model[0]._fastconv.plans) == layers.KEPT_PLANS


def test_options_and_threads_are_honoured(no_grad):
    model = fct.convert(nn.Conv2d(16, 16, 3, padding=1)).eval()
    x, before = image(1, 16, 20, 20), torch.get_num_threads()
    with fastconv.options(algorithm="im2col"):
        model(x)
    assert {p.plan.algorithm for p in model._fastconv.plans.values()} == {"im2col"}
    model(x)
    threads = fastconv.get_num_threads()
    try:
        fastconv.set_num_threads(threads + 1)
        model(x)
    finally:
        fastconv.set_num_threads(threads)
    assert [key[4] for key in model._fastconv.plans][1:] == [threads, threads + 1]
    assert len({p.plan.algorithm for p in model._fastconv.plans.values()}) == 2
    assert torch.get_num_threads() == before


def test_what_is_left_to_pytorch_and_why():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
    model = nn.ModuleDict({
        "own": Own(4, 4, 3), "parametrized": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        "hooked": normed, "replaced": nn.Conv2d(4, 4, 3), "plain": nn.Conv2d(4, 4, 3), "linear": nn.Linear(3, 3),
    })  # fmt: skip
    model["replaced"].forward = lambda x: x
    x = image()
    expected = {name: m(x) for name, m in model.items() if name != "linear"}
    fct.convert(model)
    for name, y in expected.items():
        close(model[name](x), y)
    assert [isinstance(m, layers.Layer) for m in model.values()] == [False] * 4 + [True, False]
    text = str(fct.explain(model))
    for name, reason in (
        ("own", "a subclass of Conv2d"), ("parametrized", "remove the parametrization"), ("hooked", "by a hook"),
        ("replaced", "its forward was replaced"), ("plain", "fastconv; through operators"),
    ):  # fmt: skip
        assert reason in next(line for line in text.splitlines() if line.startswith(name))
    assert "linear" not in text
    assert str(fct.explain(nn.Linear(2, 2))) == "no convolution and no pooling"
    for function in (fct.convert, fct.revert):
        with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got dict"):
            function({})


def test_parametrized_after_converting(no_grad):
    model = fct.convert(nn.Conv2d(4, 4, 3)).eval()
    x = image()
    model(x)
    nn.utils.parametrizations.weight_norm(model)
    model.parametrizations.weight.original0.mul_(2)
    close(model(x), F.conv2d(x, model.weight, model.bias))
    assert type(fct.revert(model)).__mro__[1] is nn.Conv2d  # under the parametrization's own class
    close(model(x), F.conv2d(x, model.weight, model.bias))


def test_refused_calls_go_to_pytorch_with_the_reason():
    model = fct.convert(nn.Sequential(nn.Conv2d(1, 2, 2, dtype=torch.complex64), nn.MaxPool2d(2))).eval()
    with torch.no_grad():
        assert model[0](torch.ones(1, 1, 4, 4, dtype=torch.complex64)).dtype == torch.complex64
        assert model[1](torch.ones(1, 4, 4, dtype=torch.int32)).dtype == torch.int32
    assert str(fct.explain(model)).count("left to PyTorch: computes float32") == 2
    fct.convert(conv := nn.Conv2d(3, 4, 3).eval())
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="to have 3 channels"):  # PyTorch's words
            conv(torch.ones(1, 2, 8, 8))
    with torch.no_grad(), pytest.raises(RuntimeError):
        conv(torch.ones(1, 3, 8, 8).double())
    assert conv(torch.ones(0, 3, 8, 8)).shape == (0, 4, 6, 6)


def test_parameters_made_in_inference_mode_are_no_plans():
    """Nobody counts what is written to them: calls see them as they are, and explain says why they take longer."""
    with torch.inference_mode():
        model = fct.convert(chain()).to(memory_format=torch.channels_last).double().eval()
        x = image().double()
        for _ in range(4):
            close(model(x), chain_reference(model, x))
            model[0].weight.mul_(1.5)
        assert "no version counters" in str(fct.explain(model))
