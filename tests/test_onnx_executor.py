"""The ONNX executor: whole graphs against ``onnx.reference`` in float64, each pass, memory, shapes, threads."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastconv.backends.memory import Life, offsets
from fastconv.settings import options
from tests.support import require

onnx = require("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from fastconv.backends.onnx import passes  # noqa: E402
from fastconv.backends.onnx.executor import PROGRAMS, Executor  # noqa: E402
from fastconv.backends.onnx.graph import build  # noqa: E402
from fastconv.plan import ConvPlan  # noqa: E402

Array = np.ndarray[Any, Any]
random = np.random.default_rng(0)


def model(
    nodes: list[Any], outputs: list[str], shape: Any = ("n", 3, "h", "w"), opset: int = 17, **weights: Any
) -> onnx.ModelProto:
    """A model of these nodes with one input ``x``; a weight is an array, or the shape of a random one."""
    tensors = {
        name: value if isinstance(value, np.ndarray) else random.normal(0, 0.3, value).astype(np.float32)
        for name, value in weights.items()
    }
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    inits = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", [x], given, inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def norm(x: str, y: str) -> tuple[Any, dict[str, Array]]:
    """A batch normalisation of 8 channels, and its weights."""
    weights = {f"{y}_{k}": random.uniform(0.5, 1.5, 8).astype(np.float32) for k in "sbmv"}
    return helper.make_node("BatchNormalization", [x, *weights], [y]), weights


def exact(m: onnx.ModelProto, x: Array) -> list[Array]:
    """The outputs in float64, by the reference."""
    wide = onnx.ModelProto()
    wide.CopyFrom(m)
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    wide.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    results: list[Array] = ReferenceEvaluator(wide).run(None, {"x": x.astype(np.float64)})
    return results


def hold(m: onnx.ModelProto, *shapes: tuple[int, ...], tolerance: float = 1e-5) -> Executor:
    """Outputs are those of the reference, for every shape in turn."""
    executor = Executor(m)
    for shape in shapes:
        x = random.normal(size=shape).astype(np.float32)
        before = x.copy()
        for found, wanted in zip(executor.run([x]), exact(m, x), strict=True):
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max(initial=0) <= tolerance * max(1, np.abs(wanted).max(initial=0))
        np.testing.assert_array_equal(x, before)
    return executor


def conv(x: str, w: str, y: str, *, bias: str = "", **attributes: Any) -> Any:
    return helper.make_node("Conv", [x, w, bias] if bias else [x, w], [y], **{"pads": [1, 1, 1, 1], **attributes})


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def residual_network() -> onnx.ModelProto:
    """A bit of everything: batch normalisation, a residual, up and down, concatenation, a head; two outputs."""
    first, w1 = norm("c1", "n1")
    second, w2 = norm("c2", "n2")
    nodes = [
        conv("x", "k1", "c1"), first, node("Relu", "n1", "r1"),
        conv("r1", "k2", "c2", bias="b2"), second, node("Add", "n2 r1", "a"), node("Relu", "a", "r2"),
        node("MaxPool", "r2", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("ConvTranspose", "p kt", "u", strides=[2, 2], kernel_shape=[2, 2]),
        node("Concat", "r2 u", "joined", axis=1),
        conv("joined", "k3", "c3", pads=[0, 0, 0, 0]), node("Sigmoid", "c3", "s"),
        node("GlobalAveragePool", "s", "g"), node("Flatten", "g", "f"),
        node("Gemm", "f kg bg", "h", transB=1), node("Relu", "h", "y"),
    ]  # fmt: skip
    weights = {"k1": (8, 3, 3, 3), "k2": (8, 8, 3, 3), "b2": (8,), "kt": (8, 4, 2, 2), "k3": (5, 12, 1, 1)}
    return model(nodes, ["y", "r2"], **weights, kg=(7, 5), bg=(7,), **w1, **w2)


SHAPES = ((1, 3, 8, 8), (2, 3, 12, 16), (1, 3, 8, 8), (9, 3, 6, 6))


def test_a_network_for_several_shapes() -> None:
    executor = hold(residual_network(), *SHAPES)
    why = executor.explain()
    assert [row.op for row in why.rows] == ["Conv", "Conv", "MaxPool", "ConvTranspose", "Concat", "Conv",
                                            "GlobalAveragePool", "Gemm"]  # fmt: skip
    assert why.fallbacks == ()
    assert why.rows[1].how.endswith("residual + relu")
    assert why.rows[5].how.endswith("sigmoid")


def test_programs_are_bounded_and_the_last_ones_kept() -> None:
    executor = Executor(residual_network())
    for n in range(1, PROGRAMS + 3):
        executor.run([np.zeros((n, 3, 4, 4), np.float32)])
    kept = executor._region.programs
    assert [dict(key)["x"][0][0] for _, key in kept] == list(range(3, PROGRAMS + 3))


def test_each_run_heeds_the_options_in_force() -> None:
    executor, x = Executor(residual_network()), np.ones((1, 3, 4, 4), np.float32)
    before = executor.explain([x]).rows
    with options(algorithm="im2col"):
        forced = executor.explain([x]).rows
    assert executor.explain([x]).rows == before
    assert [row.how.split()[0] for row in forced if row.op == "Conv"] == ["im2col"] * 3
    assert [row.how.split()[0] for row in before if row.op == "Conv"] != ["im2col"] * 3


def test_plans_of_several_shapes_share_packed_weights() -> None:
    executor = Executor(model([conv("x", "w", "y")], ["y"], w=(8, 3, 3, 3)))
    for n in (1, 2):
        executor.run([np.zeros((n, 3, 16, 16), np.float32)])
    packed = [plan._kernel.keywords["packed"] for plan in _plans(executor)]
    assert len(packed) == 2
    assert packed[0] is packed[1]


def _plans(executor: Executor) -> list[Any]:
    """The plans whose methods the steps of the programs call."""
    steps = [s for program in executor._region.programs.values() for s in program.steps]
    cells = [c.cell_contents for s in steps for c in (getattr(s.run, "func", s.run).__closure__ or ())]
    owners = [getattr(c, "__self__", None) for c in cells]
    return [o for o in owners if isinstance(o, ConvPlan)]


def test_memory_is_reused_and_nothing_stale_is_read() -> None:
    """A run gives the same bits when the block is full of NaN before it."""
    executor = Executor(residual_network())
    x = random.normal(size=(2, 3, 16, 16)).astype(np.float32)
    wanted = executor.run([x])
    (program,) = executor._region.programs.values()
    program.block.view(np.float32)[: program.block.nbytes // 4] = np.nan
    for found, expected in zip(executor.run([x]), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    separate = sum(spec.nbytes for name, spec in program.specs.items() if name != "x")
    assert program.block.nbytes < separate


def test_a_block_too_small_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the test above: were everything put at one place, results would be wrong."""
    from fastconv.backends.onnx import program

    monkeypatch.setattr(program, "offsets", lambda lives: ([0] * len(lives), max(life.nbytes for life in lives)))
    nodes = [conv("x", "a", "p"), conv("p", "b", "q"), conv("q", "b", "r"), node("Add", "r p", "y")]
    m = model(nodes, ["y"], a=(8, 3, 3, 3), b=(8, 8, 3, 3))
    with pytest.raises(AssertionError):
        hold(m, (2, 3, 16, 16))


def test_offsets_never_overlap_while_alive() -> None:
    lives = [Life(int(n), int(a), int(a + d)) for n, a, d in random.integers(1, 60, (80, 3))]
    found, total = offsets(lives)
    for i, a in enumerate(lives):
        assert found[i] + a.nbytes <= total
        for j, b in enumerate(lives[:i]):
            if a.first <= b.last and b.first <= a.last:
                assert found[i] + a.nbytes <= found[j] or found[j] + b.nbytes <= found[i]


def test_results_belong_to_the_caller() -> None:
    """No output shares memory with an input, a constant, another output or the next run's."""
    nodes = [node("Relu", "x", "y"), node("Identity", "x", "same"), node("Identity", "y", "again"),
             node("Reshape", "y flat", "r"), node("Identity", "k", "constant"), conv("y", "w", "c")]  # fmt: skip
    m = model(nodes, ["y", "same", "again", "r", "constant", "c"], flat=np.array([-1]), k=(3,), w=(4, 3, 3, 3))
    executor = Executor(m)
    x = random.normal(size=(1, 3, 4, 4)).astype(np.float32)
    first = executor.run([x])
    copies = [a.copy() for a in first]
    second = executor.run([-x])
    arrays = [x, *first, *second, *executor._region.graph.constants.values()]
    for i, a in enumerate(arrays):
        assert not any(np.may_share_memory(a, b) for b in arrays[:i])
    for a, before in zip(first, copies, strict=True):
        np.testing.assert_array_equal(a, before)


def test_threads_share_an_executor_and_the_number_of_threads_changes_nothing() -> None:
    m = residual_network()
    executor, single = Executor(m), Executor(m, threads=1)
    inputs = [random.normal(size=(1 + i % 2, 3, 8, 8)).astype(np.float32) for i in range(8)]
    wanted = [single.run([x]) for x in inputs]
    found: list[Any] = [None] * len(inputs)

    def work(i: int) -> None:
        found[i] = executor.run([inputs[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for ours, theirs in zip(found, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------- what runs elsewhere


def test_unknown_operators_run_by_the_reference_and_are_listed() -> None:
    nodes = [conv("x", "w", "c"), node("Cos", "c", "d"), conv("d", "v", "e"), node("Cos", "e", "f"),
             node("Add", "c f", "y")]  # fmt: skip
    executor = hold(model(nodes, ["y"], w=(4, 3, 3, 3), v=(4, 4, 3, 3)), *SHAPES)
    assert [row.op for row in executor.explain().fallbacks] == ["Cos", "Cos"]


def test_shapes_that_follow_from_data() -> None:
    """NonZero gives as many columns as there are positive elements: what follows is compiled for each number."""
    nodes = [node("Relu", "x", "r"), node("NonZero", "r", "z"), node("Shape", "z", "s"),
             node("Cast", "s", "y", to=TensorProto.FLOAT)]  # fmt: skip
    executor = Executor(model(nodes, ["y"], shape=("n",)))
    for count in (3, 0, 5):
        x = np.where(np.arange(6) < count, 1, -1).astype(np.float32)
        assert executor.run([x])[0].tolist() == [1, count]


def test_shape_arithmetic_is_computed_once() -> None:
    """PyTorch's dynamic flatten: Shape, Gather, Unsqueeze, Concat, Reshape."""
    nodes = [node("Shape", "x", "s"), node("Gather", "s zero", "n", axis=0), node("Unsqueeze", "n first", "u"),
             node("Concat", "u rest", "shape", axis=0), node("Reshape", "x shape", "f"),
             node("Gemm", "f w b", "y")]  # fmt: skip
    m = model(nodes, ["y"], shape=("n", 3, 2, 2), zero=np.array(0), first=np.array([0]), rest=np.array([-1]),
              w=(12, 5), b=(5,))  # fmt: skip
    executor = hold(m, (1, 3, 2, 2), (4, 3, 2, 2))
    assert {row.op for row in executor.explain().rows} <= {"Reshape", "Gemm"}


# -------------------------------------------------------------------------------------------------------------- passes


def passed(m: onnx.ModelProto) -> list[str]:
    return [n.op for n in passes.optimise(build(m)).nodes]


def one_conv(*after: Any, **weights: Any) -> onnx.ModelProto:
    return model([conv("x", "w", "c"), *after], ["y"], w=(8, 3, 3, 3), **weights)


ZERO, FIVE, SIX = (np.array(n, np.float32) for n in (0, 5, 6))
PASSES: dict[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    "constants": (
        lambda: model([node("Add", "a b", "k"), node("Add", "x k", "y")], ["y"], a=(3, 1, 1), b=(3, 1, 1)), ["Add"],
    ),
    "identities": (
        lambda: model([node("Dropout", "x", "d"), node("Identity", "d", "i"), node("Relu", "i", "y")], ["y"]), ["Relu"],
    ),
    "an identity that is all": (lambda: model([node("Dropout", "x", "y")], ["y"]), ["Identity"]),
    "dead nodes": (lambda: model([node("Relu", "x", "y"), node("Exp", "x", "z")], ["y"]), ["Relu"]),
    "scale and shift": (
        lambda: one_conv(node("Mul", "c f", "m"), node("Sub", "m s", "y"), f=(1, 8, 1, 1), s=(8, 1, 1)), ["Conv"],
    ),
    "a sum over columns": (lambda: one_conv(node("Add", "c k", "y"), k=(8,)), ["Conv", "Add"]),
    "clip": (lambda: one_conv(node("Clip", "c low high", "y"), low=ZERO, high=SIX), ["Conv"]),
    "another clip": (
        lambda: one_conv(node("Clip", "c low high", "y"), low=ZERO, high=FIVE), ["Conv", "Clip"],
    ),
    "silu": (lambda: one_conv(node("Sigmoid", "c", "s"), node("Mul", "s c", "y")), ["Conv"]),
    "hardswish": (
        lambda: one_conv(node("HardSigmoid", "c", "s", alpha=1 / 6), node("Mul", "c s", "y")), ["Conv"],
    ),
    "used twice": (lambda: one_conv(node("Relu", "c", "r"), node("Add", "c r", "y")), ["Conv", "Relu", "Add"]),
    "activation of an activation": (lambda: one_conv(node("Relu", "c", "r"), node("Tanh", "r", "y")), ["Conv", "Tanh"]),
    "norm after an activation": (
        lambda: one_conv(node("Relu", "c", "r"), node("Mul", "r f", "y"), f=(8, 1, 1)), ["Conv", "Mul"],
    ),
    "pad": (
        lambda: model([node("Pad", "x p", "q"), conv("q", "w", "y")], ["y"], w=(4, 3, 3, 3),
                      p=np.array([0, 0, 2, 1, 0, 0, 0, 3])), ["Conv"],
    ),
    "pad of channels": (
        lambda: model([node("Pad", "x p", "q"), conv("q", "w", "y")], ["y"], w=(4, 4, 3, 3),
                      p=np.array([0, 0, 2, 1, 0, 1, 0, 3])), ["Pad", "Conv"],
    ),
    "pad of an average": (
        lambda: model([node("Pad", "x p", "q"), node("AveragePool", "q", "y", kernel_shape=[3, 3])], ["y"],
                      p=np.array([0, 0, 1, 1, 0, 0, 1, 1])), ["Pad", "AveragePool"],
    ),
    "dense": (
        lambda: model([node("Gemm", "x w b", "h", alpha=2.0, beta=0.5), node("Relu", "h", "y")], ["y"], ("n", 6),
                      w=(6, 4), b=(4,)), ["Gemm"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_leaves_these_nodes_and_the_results(name: str) -> None:
    make, nodes = PASSES[name]
    m = make()
    assert passed(m) == nodes
    hold(m, *([(1, 6), (20, 6)] if name == "dense" else [(1, 3, 8, 8), (2, 3, 5, 8)]))


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_normalisation_folds_into_a_transposed_convolution(groups: int) -> None:
    after, weights = norm("c", "y")
    transposed = node("ConvTranspose", "x w", "c", strides=[2, 2], group=groups)
    w = random.normal(size=(4, 8 // groups, 3, 3)).astype(np.float32)
    m = model([transposed, after], ["y"], ("n", 4, "h", "w"), w=w, **weights)
    assert passed(m) == ["ConvTranspose"]
    x = random.normal(size=(2, 4, 5, 6)).astype(np.float32)
    (plain,) = Executor(model([transposed], ["c"], ("n", 4, "h", "w"), w=w)).run([x])  # onnx's own knows one group only
    scale, bias, mean, variance = (v.reshape(-1, 1, 1) for v in weights.values())
    wanted = (plain - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(Executor(m).run([x])[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_residual_of_another_shape_stays_a_sum() -> None:
    m = model(
        [conv("x", "w", "c"), node("GlobalAveragePool", "x", "g"), node("Add", "c g", "y")], ["y"], w=(3, 3, 3, 3)
    )
    executor = hold(m, (1, 3, 8, 8), (2, 3, 1, 1))
    assert "Conv" in [row.op for row in executor.explain().rows]


def test_of_two_convolutions_the_later_takes_the_sum() -> None:
    m = model(
        [conv("x", "a", "p"), conv("x", "b", "q"), node("Add", "q p", "y")], ["y"], a=(3, 3, 3, 3), b=(3, 3, 3, 3)
    )
    rows = hold(m, (1, 3, 8, 8)).explain().rows
    assert [("residual" in r.how) for r in rows] == [False, True]


# ------------------------------------------------------------------------------------------------------------ operators


def test_channels_last_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array that is free to lie channels last does, then every result is the same."""
    from fastconv.backends.onnx import layout

    def all_last(works: Any, specs: Any, fixed: Any) -> dict[str, bool]:
        groups = layout._groups(works, specs, fixed)
        return {name: groups.free(name) for name in specs}

    monkeypatch.setattr(layout, "choose", all_last)
    executor = hold(residual_network(), *SHAPES)
    assert any(row.channels_last for row in executor.explain().rows)


def test_weights_that_are_inputs() -> None:
    x, w = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xw")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [conv("x", "w", "c"), conv("x", "w", "d"), node("Add", "c d", "e"), node("Relu", "e", "y")]
    graph = helper.make_graph(nodes, "g", [x, w], [y])
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    arrays = [random.normal(size=s).astype(np.float32) for s in ((1, 3, 8, 8), (4, 3, 3, 3))]
    found = Executor(m).run({"w": arrays[1], "x": arrays[0]})[0]
    wanted = ReferenceEvaluator(m).run(None, dict(zip("xw", arrays, strict=True)))[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("between", [False, True], ids=["kernels", "the reference in between"])
def test_profile_times_every_step(between: bool) -> None:
    nodes = [conv("x", "w", "c"), conv("c", "v", "d"), node("Cos", "d", "e"), conv("e", "v", "f"), conv("f", "v", "y")]
    executor = Executor(model(nodes, ["y"], w=(4, 3, 3, 3), v=(4, 4, 3, 3)) if between else residual_network())
    rows = executor.profile([np.zeros((1, 3, 8, 8), np.float32)], repeats=2)
    assert [row[:2] for row in rows] == [row[:2] for row in executor.explain().rows]
    assert all(row.seconds is not None and row.seconds > 0 for row in rows)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_convolutions_in_a_row_run_without_python_between(threads: int) -> None:
    """Bits and number of results are those of the steps one by one; the last run's arrays leave no trace."""
    nodes = [
        conv("x", "k1", "c1"), node("Relu", "c1", "r1"),
        conv("r1", "k2", "c2", group=8), node("Clip", "c2 low high", "r2"),
        conv("r2", "k3", "c3", pads=[0, 0, 0, 0]), node("Add", "c3 r1", "a"),
        node("MaxPool", "a", "p", kernel_shape=[2, 2], strides=[2, 2]),
        conv("p", "k4", "c4"), node("Sigmoid", "c4", "y"), node("Exp", "a", "z"),
    ]  # fmt: skip
    weights = {"k1": (8, 3, 3, 3), "k2": (8, 1, 3, 3), "k3": (8, 8, 1, 1), "k4": (5, 8, 3, 3)}
    limits = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    executor = Executor(model(nodes, ["y", "z"], **weights, **limits), threads=threads)
    for _ in range(20):
        x = random.normal(size=(2, 3, 64, 64)).astype(np.float32)
        found = executor.run([x])
        (program,) = executor._region.programs.values()
        assert len(program.plays) < len(program.steps) - 1
        rows: list[Any] = []
        slowly, _ = program.run({"x": x}, rows)
        for fast, slow in zip(found, slowly.values(), strict=True):
            np.testing.assert_array_equal(fast, slow)


X = np.zeros((1, 3, 8, 8), np.float32)
WRONG: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, "has 1 inputs"),
    ({"z": X}, ValueError, "no input 'z'"),
    ({}, ValueError, "'x' is missing"),
    ([X[0]], ValueError, r"must have the shape \(n, 3, h, w\), got \(3, 8, 8\)"),
    ([np.zeros((1, 4, 8, 8), np.float32)], ValueError, r"got \(1, 4, 8, 8\)"),
    ([X.astype(np.float64)], TypeError, "must be float32, got float64"),
    ([X.tolist()], TypeError, "must be a NumPy array, got list"),
    (X, TypeError, r"run\(\[x\]\)"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), WRONG)
def test_inputs_that_do_not_fit(inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Executor(residual_network()).run(inputs)


# ------------------------------------------------------------------------------------- what has been wrong, or could be


def absent_first() -> onnx.ModelProto:
    """Two nodes whose first results nobody asked for, of unlike shapes."""
    nodes = [helper.make_node("Split", ["x", s], ["", y], axis=2) for s, y in (("s", "a"), ("t", "b"))]
    return model([*nodes, node("Concat", "a b", "y", axis=2)], ["y"], s=np.array([2, 6]), t=np.array([5, 3]))


def nearest(rounding: str) -> onnx.ModelProto:
    scales = np.array([1, 1, 2, 3], np.float32)
    return model([helper.make_node("Resize", ["x", "", "s"], ["y"], nearest_mode=rounding)], ["y"], s=scales)


PAD_2 = np.array([0, 0, 2, 2, 0, 0, 2, 2])
CORNERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "one channel that becomes several": lambda: model(
        [conv("x", "w", "c"), node("Mul", "c f", "y")], ["y"], w=(1, 3, 3, 3), f=(1, 8, 1, 1)
    ),
    "weights of a name that folding would take": lambda: model(
        [conv("x", "y/weights", "c"), node("Mul", "c f", "y"), conv("x", "y/weights", "z")], ["y", "z"],
        f=(8, 1, 1), **{"y/weights": (8, 3, 3, 3)},
    ),
    "swish of what is used twice": lambda: model(
        [conv("x", "w", "c"), node("Swish", "c", "s"), node("Add", "s c", "y")], ["y"], opset=24, w=(8, 3, 3, 3)
    ),
    "results that nobody asked for": absent_first,
    "an average of more padding than window": lambda: model(
        [node("Pad", "x p", "q"),
         node("AveragePool", "q", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], ["y"], p=PAD_2,
    ),
    "nearest by floor": lambda: nearest("floor"),
    "nearest by ceil": lambda: nearest("ceil"),
    "sizes in another order of axes": lambda: model(
        [helper.make_node("Resize", ["x", "", "s"], ["y"], axes=[3, 2, 1, 0])], ["y"], opset=18,
        s=np.array([2, 3, 1, 1], np.float32),
    ),
    "many nodes by the reference": lambda: model(
        [node("Cos", f"v{i}" if i else "x", f"v{i + 1}") for i in range(600)], ["v600"]
    ),
    "a concatenation in a concatenation, and so on": lambda: model(
        [node("ReduceSum", "x axis", "one", keepdims=1), *(node("Relu", "one", f"r{i}") for i in range(1200)),
         *(node("Concat", f"v{i} r{i}" if i else "x r0", f"v{i + 1}", axis=1) for i in range(1200))], ["v1200"],
        axis=np.array([1]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name: str) -> None:
    str(hold(CORNERS[name](), (1, 3, 8, 8)).explain())


def test_an_empty_batch() -> None:
    """Here and there, the one after the other: memory is planned for nothing at all."""
    y, r = Executor(residual_network()).run([np.zeros((0, 3, 8, 8), np.float32)])
    assert y.shape == (0, 7)
    assert r.shape == (0, 8, 8, 8)


def test_division_by_zero_is_not_folded() -> None:
    """0 · ∞ is NaN, and a sum of products divided by 0 is not."""
    w, f = random.normal(size=(8, 3, 3, 3)).astype(np.float32), np.ones((8, 1, 1), np.float32)
    w[2, 0] = f[2] = 0
    m = one_conv(node("Div", "c f", "y"), f=f)
    m.graph.initializer[0].CopyFrom(numpy_helper.from_array(w, "w"))
    x = random.normal(size=(1, 3, 5, 5)).astype(np.float32)
    with np.errstate(divide="ignore"):
        (wanted,) = ReferenceEvaluator(m).run(None, {"x": x})
    np.testing.assert_allclose(Executor(m).run([x])[0], wanted, rtol=1e-4, atol=1e-5)


def test_a_sequence_belongs_to_the_caller() -> None:
    m = model([node("Relu", "x", "r"), node("SequenceConstruct", "r r", "y")], ["y"])
    m.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    executor = Executor(m)
    (first,) = executor.run([np.ones((1, 3, 2, 2), np.float32)])
    executor.run([np.full((1, 3, 2, 2), 7, np.float32)])
    assert [float(a.max()) for a in first] == [1, 1]


def test_before_version_7_an_axis_says_where_the_second_input_lies() -> None:
    m = model([node("Add", "x b", "s", broadcast=1, axis=1), node("Mul", "s b", "y", broadcast=1)], ["y"],
              shape=(1, 4, 4, 4), opset=6, b=(4,))  # fmt: skip
    x, b = random.normal(size=(1, 4, 4, 4)).astype(np.float32), numpy_helper.to_array(m.graph.initializer[0])
    np.testing.assert_allclose(Executor(m).run([x])[0], (x + b[:, None, None]) * b, rtol=1e-5, atol=1e-6)


def test_strings_between_nodes() -> None:
    m = model([node("Concat", "x x", "c", axis=0), node("Reshape", "c s", "r"), node("Concat", "r r", "y", axis=0)],
              ["y"], s=np.array([-1]))  # fmt: skip
    m.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.STRING, [2]))
    m.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.STRING, None))
    assert Executor(m).run([np.array(["a", "b"], object)])[0].tolist() == ["a", "b"] * 4


def test_programs_are_bounded_where_shapes_follow_from_data() -> None:
    """Each NonZero begins a region; all the programs of one depth together are as many as the whole model may have."""
    nodes = [node("NonZero", "x", "z"), node("Shape", "z", "s"), node("Cast", "s", "f", to=TensorProto.FLOAT),
             node("Expand", "f zs", "e"), node("Concat", "e x", "g", axis=0), node("NonZero", "g", "h"),
             node("Shape", "h", "t"), node("Cast", "t", "y", to=TensorProto.FLOAT)]  # fmt: skip
    executor = Executor(model(nodes, ["y"], shape=("n",), zs=np.array([2])))
    for n in range(2, 6):
        for count in range(n):
            x = (np.arange(n) < count).astype(np.float32)
            assert executor.run([x])[0].tolist() == [1, count + (2 if count else 1)]
    recent = executor._region.settings.recent
    assert {depth: len(programs) for depth, programs in recent.items()} == {0: 4, 1: PROGRAMS, 2: PROGRAMS}


def test_what_constants_fold_to_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "FOLDED_IN_ALL", 5000)
    nodes = [node("Expand", "one sizes", f"e{i}") for i in range(3)] + [node("Sum", "x e0 e1 e2", "y")]
    m = model(nodes, ["y"], ("n",), one=np.ones(1, np.float32), sizes=np.array([600]))
    assert passed(m) == ["Expand", "Sum"]
    hold(m, (600,))


def test_an_axis_out_of_range_is_refused() -> None:
    for op, more in (("Concat", {}), ("Softmax", {}), ("Split", {})):
        m = model([helper.make_node(op, ["x"], ["y"], axis=7, **more)], ["y"])
        with pytest.raises(ValueError, match="there is no axis 7 in 4 dimensions"):
            Executor(m).run([X])
