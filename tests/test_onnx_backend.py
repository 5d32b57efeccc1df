"""The backend interface, and single nodes through ``onnx.reference``: what runs there, and what must not."""

from typing import Any

import numpy as np
import pytest

from tests.support import require

onnx = require("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import fastconv.backends.onnx as backend  # noqa: E402
from fastconv.backends.onnx import program  # noqa: E402
from fastconv.backends.onnx.fallback import OWN, Reference  # noqa: E402
from fastconv.backends.onnx.graph import node_of  # noqa: E402

FLOAT = TensorProto.FLOAT


def model_of(text: str, *functions: Any) -> Any:
    model = helper.make_model(
        onnx.parser.parse_graph(text), opset_imports=[helper.make_opsetid("", 17)], ir_version=8, functions=functions
    )
    for function in functions:
        model.opset_import.add(domain=function.domain, version=1)
    return model


def reference(node: Any, version: int = 17) -> Reference:
    return Reference(node_of(node, {"": version}), {"": version})


# ---------------------------------------------------------------------------------------------------------- interface


def test_inputs_by_order_by_name_and_alone() -> None:
    model = model_of("net (float[2] a, float[2] b) => (float[2] y) { y = Sub (a, b) }")
    a, b = np.array([5, 7], np.float32), np.array([1, 2], np.float32)
    for inputs in ([a, b], (a, b), {"b": b, "a": a}):
        (y,) = backend.run_model(model, inputs)
        assert y.tolist() == [4, 5]
    one = backend.prepare(model_of("net (float[2] a) => (float[2] y) { y = Neg (a) }"))
    assert one.run(a)[0].tolist() == [-5, -7]
    with pytest.raises(TypeError, match="run takes the inputs alone, got device too"):
        one.run(a, device="CPU")


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([np.zeros(2, np.float32)], ValueError, r"the model has 2 inputs \(a, b\), got 1"),
        ({"a": np.zeros(2, np.float32)}, ValueError, "input 'b' is missing"),
        ({"c": np.zeros(2, np.float32)}, ValueError, "the model has no input 'c'; it has a, b"),
        ([np.zeros(2, np.float32), np.zeros(3, np.float32)], ValueError, r"'b' must have the shape \(2\), got \(3,\)"),
        ([np.zeros(2, np.float32), np.zeros(2)], TypeError, "'b' must be float32, got float64"),
        ([np.zeros(2, np.float32), [0.0, 0.0]], TypeError, "'b' must be a NumPy array, got list"),
        (None, TypeError, "inputs must be a list of arrays or a dictionary, got NoneType"),
    ],
)
def test_wrong_inputs(inputs: Any, error: type[Exception], message: str) -> None:
    net = backend.prepare(model_of("net (float[2] a, float[2] b) => (float[2] y) { y = Sub (a, b) }"))
    with pytest.raises(error, match=message):
        net.run(inputs)


def test_run_node() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    node = helper.make_node("MaxPool", ["x"], ["y", "indices"], kernel_shape=[2, 2], strides=[2, 2])
    y, indices = backend.run_node(node, [x], outputs_info=[(np.float32, (1, 1, 2, 2))])
    assert y.ravel().tolist() == indices.ravel().tolist() == [5, 7, 13, 15]
    clip = helper.make_node("Clip", ["x", "", "most"], ["y"])
    assert backend.run_node(clip, [x, np.array(3, np.float32)])[0].max() == 3
    old = helper.make_node("Clip", ["x"], ["y"], max=3.0)
    assert backend.run_node(old, [x], opset_version=6)[0].max() == 3
    with pytest.raises(TypeError, match=r"run_node: node must be an onnx\.NodeProto, got str"):
        backend.run_node("Clip", [])
    with pytest.raises(ValueError, match=r"run_node: Clip has 2 inputs \(x, most\), got 1"):
        backend.run_node(clip, [x])


def test_what_can_be_prepared() -> None:
    assert backend.is_compatible(model_of("net (float[2] a) => (float[2] y) { y = Neg (a) }"))
    assert not backend.is_compatible(onnx.ModelProto())
    assert not backend.is_compatible(b"")


def test_a_models_own_functions() -> None:
    body = [helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    function = helper.make_function("own", "NegatedSquare", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    net = backend.prepare(model_of("net (float[2] x) => (float[2] y) { y = own.NegatedSquare (x) }", function))
    assert net.run([np.array([2, 3], np.float32)])[0].tolist() == [-4, -9]


# ----------------------------------------------------------------------------------------------------- onnx.reference


@pytest.mark.parametrize("op", sorted(OWN))
def test_convolutions_and_poolings_never_run_through_the_reference(op: str) -> None:
    node = helper.make_node(op, ["x", "w"][: 2 if "Conv" in op or "Un" in op else 1], ["y"])
    with pytest.raises(ValueError, match=f"{op} runs on fastconv, never on onnx.reference"):
        reference(node)


def test_quantised_convolutions_may_run_through_the_reference() -> None:
    x, w = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3), np.ones((1, 1, 2, 2), np.uint8)
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"])
    assert backend.run_node(node, [x, w])[0].ravel().tolist() == [8, 12, 20, 24]


def test_a_convolution_inside_a_sub_graph_runs_on_fastconv(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches of an If run in onnx.reference; the convolutions in them do not, nor in loops inside them."""
    branches = {}
    for name, op in (("then_branch", "Conv"), ("else_branch", "MaxPool")):
        inputs, more = (["x", "w"], {}) if op == "Conv" else (["x"], {"kernel_shape": [2, 2]})
        node = helper.make_node(op, inputs, [name], **more)
        inner = helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, FLOAT, [1, 1, 2, 2])])
        if op == "MaxPool":  # one sub-graph deeper
            deeper = helper.make_node("If", ["sure"], ["result"], then_branch=inner, else_branch=inner)
            result = helper.make_tensor_value_info("result", FLOAT, [1, 1, 2, 2])
            inner = helper.make_graph([deeper], "outer", [], [result])
        branches[name] = inner
    graph = helper.make_graph(
        [helper.make_node("If", ["which"], ["y"], **branches)], "net",
        [
            helper.make_tensor_value_info("which", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", FLOAT, [1, 1, 3, 3]),
            helper.make_tensor_value_info("sure", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", FLOAT, [1, 1, 2, 2])],
        [numpy_helper.from_array(np.ones((1, 1, 2, 2), np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ran: list[str] = []
    original = program.run_node

    def spy(node: Any, *rest: Any) -> Any:
        ran.append(node.op_type)
        return original(node, *rest)

    monkeypatch.setattr(program, "run_node", spy)
    net, x = backend.prepare(model), np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    assert net.run([np.array(True), x, np.array(True)])[0].ravel().tolist() == [8, 12, 20, 24]
    assert net.run([np.array(False), x, np.array(True)])[0].ravel().tolist() == [4, 5, 7, 8]
    assert ran == ["Conv", "MaxPool"]
    assert [row.op for row in net.explain().fallbacks] == ["If"]


def test_results_of_the_reference_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx.reference.ops.op_where import Where

    x, node = np.zeros((2, 2), np.float32), helper.make_node("Where", ["c", "x", "x"], ["y"])
    for wrong, message in ((np.zeros((2, 2)), "as float64"), (np.zeros(4, np.float32), r"with the shape \(4,\)")):
        monkeypatch.setattr(Where, "_run", lambda self, *given, wrong=wrong: (wrong,))
        with pytest.raises(ValueError, match=f"Where giving y: 'y' came out of onnx.reference {message}"):
            reference(node)(x == 0, x, x)


def test_what_the_reference_raises_names_the_node() -> None:
    node = helper.make_node("Einsum", ["x", "x"], ["y"], name="sums", equation="ij,jk->ik")
    with pytest.raises(ValueError, match="Einsum sums: "):
        reference(node)(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="the operator Nothing is not known, in version 17"):
        reference(helper.make_node("Nothing", ["x"], ["y"]))
    model = model_of("net (float[2] x) => (float[2] y) { y = com.microsoft.FusedConv (x) }")
    model.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(ValueError, match=r"the operator FusedConv of the domain 'com\.microsoft' is not known"):
        backend.run_model(model, [np.zeros(2, np.float32)])
