"""The public functions on a GPU's arrays: a stand-in for CuPy's, their kernels emulated."""

import itertools
import json
import sys
import types

import numpy as np
import pytest

import fastconv as fc
from fastconv import cli, nn, optim
from fastconv.dispatch import choose
from fastconv.kernels.cuda import module
from fastconv.kernels.geometry import PADDING_MODES
from fastconv.problem import adaptive_pool_problem, conv_problem, conv_transpose_problem, pool_problem, unpool_problem
from fastconv.registry import ROWS
from fastconv.testing import integers
from fastconv.train import build_model
from tests import fake_cupy
from tests.gpu import operations
from tests.support import require, require_emulator


@pytest.fixture
def cupy(monkeypatch):
    require_emulator()
    fake = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    with module.use(fake_cupy.Emulated()):
        yield fake


X, W, B = integers((2, 3, 9, 8), seed=0), integers((5, 3, 3, 3), seed=1), integers((5,), seed=2)


# ------------------------------------------------------------------------------------------------------ what can run


def problems(direction, dtype, layout):
    """One of each operation, rank and padding mode."""
    common = {"direction": direction, "dtype": dtype, "layout": layout, "device": "cuda"}
    for rank in (1, 2, 3):
        shape, kernel = (2, 4, *(7, 6, 5)[:rank]), (3,) * rank
        for mode in PADDING_MODES:
            yield conv_problem("conv", rank, shape, (6, 4, *kernel), padding=1, padding_mode=mode, **common)
        yield conv_problem("conv", rank, shape, (4, 1, *kernel), groups=4, stride=2, dilation=2, padding=2, **common)
        yield conv_problem("conv", rank, shape, (6, 4, *(1,) * rank), **common)
        yield conv_transpose_problem("conv_transpose", rank, shape, (4, 6, *kernel), stride=2, **common)
        if direction == "grad_weight":
            continue
        for op in ("max_pool", "min_pool", "avg_pool", "lp_pool"):
            yield pool_problem("pool", rank, op, shape, 3, stride=2, padding=1, ceil_mode=True, **common)
        for op in ("max_pool", "avg_pool"):
            yield adaptive_pool_problem("pool", rank, op, shape, 3, **common)
        yield unpool_problem("unpool", rank, shape, 2, **common)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("direction", ["forward", "grad_input", "grad_weight"])
def test_some_kernel_runs_everything(direction, dtype, layout):
    for problem in problems(direction, dtype, layout):
        chosen = choose(problem)
        assert chosen.row.device == "cuda"
        assert chosen.row.family != "reference", problem


def test_no_reference_on_a_gpu():
    """It would copy everything to the CPU and back, silently."""
    assert not [row.name for row in ROWS if row.device == "cuda" and row.family == "reference"]


def test_every_kernel_is_deterministic():
    with fc.options(deterministic=True):
        for direction, dtype in itertools.product(("forward", "grad_input", "grad_weight"), ("float32", "float64")):
            for problem in problems(direction, dtype, "channels_first"):
                assert choose(problem, fc.settings.current_options()).row.deterministic


# ------------------------------------------------------------------------------------------------------------- calls


def test_convolution(cupy):
    here = fc.conv2d(X, W, B, padding=1, stride=2, activation="relu", algorithm="direct")
    for _ in range(2):  # the second call goes the short way
        there = fc.conv2d(
            cupy.asarray(X), cupy.asarray(W), cupy.asarray(B), padding=1, stride=2, activation="relu",
            algorithm="direct",
        )  # fmt: skip
        assert type(there) is cupy.ndarray
        np.testing.assert_array_equal(there.get(), here)


def test_the_short_way_is_each_devices_own(cupy):
    """Calls that differ in the device alone."""
    x, w = integers((1, 2, 6, 6), seed=8), integers((4, 2, 3, 3), seed=9)
    here = fc.conv2d(x, w, algorithm="direct")
    for array in (cupy.asarray, np.asarray, cupy.asarray):
        y = fc.conv2d(array(x), array(w), algorithm="direct")
        assert type(y) is type(array(x))
        np.testing.assert_array_equal(y if array is np.asarray else y.get(), here)


def test_layouts_outputs_and_residuals(cupy):
    x = cupy.asarray(np.moveaxis(X, 1, -1).copy())
    out = cupy.empty((2, 9, 8, 5), np.float32)
    residual = integers((2, 9, 8, 5), seed=3)
    w = cupy.asarray(W)
    y = fc.conv2d(x, w, padding=1, layout="NHWC", residual=cupy.asarray(residual), out=out)
    assert y is out
    here = fc.conv2d(np.moveaxis(X, 1, -1), W, padding=1, layout="NHWC", residual=residual)
    np.testing.assert_array_equal(y.get(), here)


def test_out_may_overlap_the_input(cupy):
    """Also where an array came in twice through DLPack, which for CuPy's own function are two allocations."""
    w = integers((3, 3, 3, 3), seed=1)
    expected = fc.conv2d(X, w, padding=1, algorithm="direct")
    x = cupy.asarray(X)
    again = cupy.ndarray(x._array.view())
    assert fc.conv2d(x, cupy.asarray(w), padding=1, out=again, algorithm="direct") is again
    np.testing.assert_array_equal(x.get(), expected)


def test_transposed_convolution_and_gradients(cupy):
    w, x = cupy.asarray(W), cupy.asarray(X)
    dy = integers((2, 5, 4, 3), seed=4)
    there = cupy.asarray(dy)
    parameters = {"stride": 2, "padding": ((0, 1), (0, 0))}
    for name, here, got in (
        ("transposed", fc.conv_transpose2d(dy, W), fc.conv_transpose2d(there, w)),
        (
            "input",
            fc.grad.conv2d_input(X.shape, W, dy, **parameters),
            fc.grad.conv2d_input(X.shape, w, there, **parameters),
        ),
        (
            "weight",
            fc.grad.conv2d_weight(X, W.shape, dy, **parameters),
            fc.grad.conv2d_weight(x, W.shape, there, **parameters),
        ),
    ):
        np.testing.assert_array_equal(got.get(), here, err_msg=name)


def test_poolings_and_their_gradients(cupy):
    x = cupy.asarray(X)
    y, indices = fc.max_pool2d(X, 3, stride=2, padding=1, return_indices=True)
    there, positions = fc.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)
    np.testing.assert_array_equal(there.get(), y)
    np.testing.assert_array_equal(positions.get(), indices)
    np.testing.assert_array_equal(
        fc.max_unpool2d(there, positions, 3, stride=2, padding=1, output_size=(9, 8)).get(),
        fc.max_unpool2d(y, indices, 3, stride=2, padding=1, output_size=(9, 8)),
    )
    dy = integers(y.shape, seed=5)
    for name, arguments in (
        ("max_pool2d_input", lambda array: (array(X), array(dy), 3)),
        ("min_pool2d_input", lambda array: (array(X), array(dy), 3)),
        ("avg_pool2d_input", lambda array: (X.shape, array(dy), 3)),
    ):
        gradient = getattr(fc.grad, name)
        here = gradient(*arguments(np.asarray), stride=2, padding=1)
        there = gradient(*arguments(cupy.asarray), stride=2, padding=1)
        np.testing.assert_allclose(there.get(), here, rtol=1e-6, err_msg=name)
    for function in (
        lambda x: fc.avg_pool2d(x, 2), lambda x: fc.lp_pool2d(x, 2, 2), lambda x: fc.adaptive_avg_pool2d(x, 3),
        lambda x: fc.adaptive_max_pool2d(x, 2), lambda x: fc.min_pool2d(x, 2, ceil_mode=True),
    ):  # fmt: skip
        np.testing.assert_allclose(function(x).get(), function(X), rtol=1e-6)
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 72\)"):
        fc.max_unpool2d(positions.astype(np.float32), positions + 72, 3, stride=2, padding=1, output_size=(9, 8))


def test_tensors(cupy):
    results = []
    for array in (np.asarray, cupy.asarray):
        x, w, b = (fc.Tensor(array(a), requires_grad=True) for a in (X, W, B))
        fc.conv2d(x, w, b, padding=1).sum().backward()
        results.append([np.asarray(t.grad if array is np.asarray else t.grad.get()) for t in (x, w, b)])
    for here, there in zip(*results, strict=True):
        np.testing.assert_array_equal(there, here)


def test_the_workspace_lies_on_the_device(cupy):
    x, dy = integers((5, 3, 31, 33), seed=0), integers((5, 9, 31, 33), seed=1)
    shape = (9, 3, 3, 3)
    with fc.options(algorithm="direct"):
        here = fc.grad.conv2d_weight(x, shape, dy, padding=1)
        there = fc.grad.conv2d_weight(cupy.asarray(x), shape, cupy.asarray(dy), padding=1)
    np.testing.assert_array_equal(there.get(), here)
    with fc.options(workspace_limit=100), pytest.raises(ValueError, match=r"bytes of workspace, workspace_limit=100"):
        fc.grad.conv2d_weight(cupy.asarray(x), shape, cupy.asarray(dy), padding=1)


def test_explain_needs_no_device(cupy):
    x, w = cupy.asarray(X), cupy.asarray(W)
    with module.use(None):  # no driver at all
        why = fc.explain(fc.conv2d, x, w)
    assert why.problem.device == "cuda"
    assert "reference" not in {row.algorithm for row in why.rows}
    assert "thread" not in why.reason
    assert str(why).count("\n") >= len(why.rows)


# ------------------------------------------------------------------------------------------------------------- plans


def test_plans(cupy):
    x, out = cupy.asarray(X), cupy.empty((2, 5, 9, 8), np.float32)
    here = fc.conv2d(X, W, B, padding=1, algorithm="direct")
    w = cupy.asarray(W)
    plan = fc.plan_conv2d(X.shape, w, cupy.asarray(B), padding=1)
    w[...] = 0  # the plan has its own
    assert plan.problem.device == "cuda"
    for target in (None, out, None, out):  # the first of each is checked, the second is like it
        y = plan(x, out=target)
        assert target is None or y is out
        np.testing.assert_allclose(y.get(), here, rtol=1e-5, atol=1e-4)
        out[...] = 0
    with pytest.raises(TypeError, match="w is on cuda:0 and x on cpu"):
        plan(X)
    with pytest.raises(TypeError, match="x is on cuda:0 and out on cpu"):
        plan(x, out=here)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_plan_called_again_allocates_nothing_and_waits_for_nothing(cupy, layout):
    form = np.asarray if layout == "NCHW" else lambda a: np.ascontiguousarray(np.moveaxis(a, 1, -1))
    x = cupy.asarray(form(X))
    y = cupy.asarray(form(np.zeros((2, 5, 9, 8), np.float32)))
    for row in {r.algorithm: r for r in ROWS if r.device == "cuda" and r.op == "conv"}.values():
        try:
            plan = fc.plan_conv2d(x.shape, cupy.asarray(W), padding=1, layout=layout, algorithm=row.algorithm)
        except ValueError:  # the row refuses this problem
            continue
        with cupy.cuda.Stream(non_blocking=True) as stream:
            plan(x, out=y)
            before = cupy.allocations()
            stream.begin_capture()  # the stand-in refuses to wait, and to copy from the host
            for _ in range(3):
                assert plan(x, out=y) is y
            assert cupy.allocations() == before, row.name
            with pytest.raises(RuntimeError, match="when stream is capturing"):
                y.get()
            stream.end_capture()


def test_arguments_like_earlier_ones_are_told_from_others(cupy):
    plan = fc.plan_conv2d(X.shape, cupy.asarray(W[:3]), padding=1)
    x, y = cupy.asarray(X), cupy.empty(X.shape, np.float32)
    plan(x, out=y)
    with pytest.raises(ValueError, match="this plan is for x of shape"):
        plan(x[:1], out=y)
    with pytest.raises(ValueError, match="out must have the shape"):
        plan(x, out=y[:1])
    with pytest.raises(TypeError, match="w is float32 and x is float64"):
        plan(x.astype(np.float64), out=y)
    with pytest.raises(ValueError, match="made without a residual"):
        plan(x, residual=y, out=y)
    np.testing.assert_array_equal(plan(x, out=x).get(), y.get())  # overlapping: written at the end


def test_each_thread_and_stream_has_its_workspace(cupy):
    x, y = cupy.asarray(X), cupy.empty((2, 5, 9, 8), np.float32)
    plan = fc.plan_conv2d(X.shape, cupy.asarray(W), padding=1)
    scratch = plan._scratch
    assert scratch.get(x, 0) is None
    first = scratch.get(x, 100)
    assert scratch.get(x, 100) is first
    with cupy.cuda.Stream():
        assert scratch.get(x, 100) is not first
    assert scratch.get(x, 100) is first
    plan(x, out=y)


# ------------------------------------------------------------------------------------------------- devices and DLPack


def test_work_goes_to_the_arrays_device(cupy):
    """Every function, with arrays on a device that is not the current one: the stand-in refuses what computes there."""
    there = cupy.cuda.Device(1)

    def put(a):
        with there:
            return cupy.asarray(a)

    x, w, b = put(X), put(W), put(B)
    dy = put(integers((2, 5, 9, 8), seed=4))
    y = put(np.zeros((2, 5, 9, 8), np.float32))
    plan = fc.plan_conv2d(X.shape, w, b, padding=1)
    results = {
        "conv": fc.conv2d(x, w, b, padding=1),
        "conv again": fc.conv2d(x, w, b, padding=1),
        "out": fc.conv2d(x, w, b, padding=1, out=y),
        "overlapping": fc.conv2d(x, put(integers((3, 3, 3, 3))), padding=1, out=put(X)),
        "transposed": fc.conv_transpose2d(dy, w),
        "input": fc.grad.conv2d_input(X.shape, w, dy, padding=1),
        "weight": fc.grad.conv2d_weight(x, W.shape, dy, padding=1),
        "bias": fc.grad.conv2d_bias(dy),
        "plan": plan(x),
        "plan again": plan(x),
        "plan out": plan(x, out=y),
        "plan out again": plan(x, out=y),
        "max": fc.max_pool2d(x, 2),
        "unpool": fc.max_unpool2d(*fc.max_pool2d(x, 2, return_indices=True), 2, output_size=(9, 8)),
        "average": fc.grad.avg_pool2d_input(x.shape, fc.avg_pool2d(x, 2), 2),
    }
    for name, result in results.items():
        assert result.data.device_id == 1, name
    np.testing.assert_array_equal(results["conv"].get(), fc.conv2d(X, W, B, padding=1, algorithm="direct"))
    assert cupy.cuda.runtime.getDevice() == 0


def test_devices_do_not_mix(cupy):
    x, w = cupy.asarray(X), cupy.asarray(W)
    with cupy.cuda.Device(1):
        w1, y1, b1 = cupy.asarray(W), cupy.empty((2, 5, 7, 6), np.float32), cupy.asarray(B)
        dy1 = cupy.asarray(integers((2, 5, 7, 6)))
    for call, message in (
        (lambda: fc.conv2d(x, w1), "x is on cuda:0 and w on cuda:1"),
        (lambda: fc.conv2d(x, w, b1), "x is on cuda:0 and bias on cuda:1"),
        (lambda: fc.conv2d(x, w, out=y1), "x is on cuda:0 and out on cuda:1"),
        (lambda: fc.conv2d(x, W), "x is on cuda:0 and w on cpu"),
        (lambda: fc.conv2d(X, w), "x is on cpu and w on cuda:0"),
        (lambda: fc.grad.conv2d_weight(x, W.shape, dy1), "x is on cuda:0 and dy on cuda:1"),
        (lambda: fc.plan_conv2d(X.shape, w, b1), "w is on cuda:0 and bias on cuda:1"),
        (lambda: fc.plan_conv2d(X.shape, w1)(x), "w is on cuda:1 and x on cuda:0"),
    ):
        fc.conv2d(x, w)  # the short way knows these shapes
        with pytest.raises(TypeError, match=message):
            call()


def test_other_libraries_arrays(cupy):
    """CuPy hands its current stream to the exporter; none while a graph is captured, which cannot wait for others."""
    x = fake_cupy.Exporter(X)
    y = fc.conv2d(x, fake_cupy.Exporter(W), padding=1, algorithm="direct")
    assert type(y) is cupy.ndarray
    np.testing.assert_array_equal(y.get(), fc.conv2d(X, W, padding=1, algorithm="direct"))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        fc.max_pool2d(x, 2)
        stream.begin_capture()
        fc.max_pool2d(x, 2)
    assert x.asked == [1, stream.ptr, -1]
    on_other = fake_cupy.Exporter(X, device=1)
    assert fc.max_pool2d(on_other, 2).data.device_id == 1
    with pytest.raises(TypeError, match="x is on cuda:1 and w on cuda:0"):
        fc.conv2d(on_other, cupy.asarray(W))


@pytest.mark.parametrize("kind", [1, 3, 11])
def test_pinned_memory_is_the_hosts(kind):
    """Which PyTorch's loaders hand out; it is read without CuPy and without a copy."""

    class Pinned:
        def __dlpack_device__(self):
            return kind, 0

        def __dlpack__(self, **how):
            return X.__dlpack__(**how)

    assert np.shares_memory(fc.arrays.intake("conv2d", "x", Pinned()), X)


def test_without_cupy_or_a_device_the_error_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r"need CuPy and a GPU that it can use: .*cupy.*fastconv\[cuda13\]"):
        module.driver()
    with pytest.raises(TypeError, match=r"x lies on a GPU, which needs CuPy: .*fastconv\[cuda13\]"):
        fc.conv2d(fake_cupy.Exporter(X), W)

    def fails():
        raise fake_cupy._RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    broken = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=types.SimpleNamespace(getDevice=fails)))
    monkeypatch.setitem(sys.modules, "cupy", broken)
    with pytest.raises(RuntimeError, match=r"cudaErrorNoDevice: no CUDA-capable device is detected$"):
        module.driver()


# ---------------------------------------------------------------------------------------------------------- networks


def test_the_lecture_network_learns_as_on_the_cpu(cupy):
    x, labels = integers((6, 1, 8, 8), seed=6), np.arange(6) % 3
    states = []
    for array in (np.asarray, cupy.asarray):
        nn.manual_seed(0)
        model = build_model((1, 8, 8), 3)
        if array is cupy.asarray:
            model.to("cuda")
        opt = optim.Adam(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(3):
            loss = nn.cross_entropy(model(array(x)), array(labels))
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        states.append((losses, [p.numpy() for p in model.parameters()]))
    (losses, here), (there_losses, there) = states
    np.testing.assert_allclose(there_losses, losses, rtol=1e-4)
    assert losses[-1] < losses[0]
    for a, b in zip(here, there, strict=True):
        # Adam's first steps are lr times a sign, which a gradient of rounding error decides
        assert np.mean(np.abs(a - b) > 1e-4) < 0.01


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("kind", operations.KINDS)
def test_every_operation_of_networks(cupy, kind, device):
    """Each in the module of its arrays alone, and on their device; the current one is 0."""

    def put(array):
        with cupy.cuda.Device(device):
            return cupy.asarray(array)

    operations.compare(kind, put, f"cuda:{device}")
    assert cupy.cuda.runtime.getDevice() == 0


def test_other_layers_on_the_device(cupy):
    """A residual block: normalisation, an addition, strides, transposed convolution, average pooling."""
    x = integers((2, 3, 8, 8), seed=7)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(6)
            self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
            self.pool = nn.AvgPool2d(2)

        def forward(self, x):
            y = nn.ReLU()(self.norm(self.down(x)))
            return self.pool(self.up(y + self.depthwise(y)))

    grads = []
    for array in (np.asarray, cupy.asarray):
        nn.manual_seed(1)
        block = Block().to("cuda") if array is cupy.asarray else Block()
        block(array(x)).sum().backward()
        grads.append([p.grad if array is np.asarray else p.grad.get() for p in block.parameters()])
    for here, there in zip(*grads, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-3)


def test_the_training_program(cupy, tmp_path, monkeypatch, capsys):
    require("sklearn")
    require("safetensors")
    monkeypatch.chdir(tmp_path)
    arguments = ["--epochs", "2", "--split", "60/30", "--batch-size", "20", "--seed", "1"]
    histories = []
    for device in ("cpu", "cuda"):
        with pytest.raises(SystemExit) as end:
            cli.main(["train", *arguments, "--device", device, "--out", device])
        assert end.value.code == 0, capsys.readouterr().err
        histories.append(json.loads((tmp_path / device / "record.json").read_text())["history"])
    here, there = histories
    assert len(there) == 2
    np.testing.assert_allclose([e["loss"] for e in there], [e["loss"] for e in here], rtol=0.02)
    shown = capsys.readouterr().out
    assert "direct" in shown  # the kernels that ran
