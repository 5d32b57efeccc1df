"""Operators that fastconv has no code for, one node at a time, by ``onnx.reference``: correct, and slow.

Convolutions and poolings never run here (:data:`OWN`), not even inside the sub-graph of an ``If`` or a ``Loop``: the
reference's evaluator is given operators of those names that call fastconv. The quantised ones may.

Before a node runs, ONNX's shape inference says what it will give, from the shapes of its inputs and the values of small
ones. A result that cannot fit the machine's memory is refused before it is begun, and what comes out is compared with
what was inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...extras import extra
from ..memory import check_fits
from .graph import Node

Array = np.ndarray[Any, Any]

OWN = frozenset({
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool",
    "MaxUnpool",
})  # fmt: skip
"""Operators of ONNX's own domain that only ever run on fastconv's kernels."""
TOLD = 64  # inputs of at most so many elements are shapes, axes or scales: inference sees their values
KEPT = 8  # signatures of inputs, of each node, for which inference is remembered

Own = Callable[[Any, Mapping[str, int], Sequence[Any]], Sequence[Any]]
"""Runs a ``NodeProto`` of :data:`OWN`: (node, operator set versions, inputs) to outputs."""


class Reference:
    """A node, prepared for ``onnx.reference``: call it with the values of ``node.inputs``, None for absent ones.

    >>> import numpy as np, onnx
    >>> cos = onnx.helper.make_node("Cos", ["x"], ["y"])
    >>> Reference(Node("Cos", ("x",), ("y",), proto=cos, version=7), {"": 17})(np.zeros(2, np.float32))
    [array([1., 1.], dtype=float32)]

    Parameters
    ----------
    node : of a graph; one of :data:`OWN` raises ValueError.
    opsets : the version of each domain's operator set.
    own : what runs the convolutions and poolings of the node's sub-graphs; without it they are refused.

    Raises
    ------
    ValueError : the operator is not known, or its inputs cannot be what they are.
    """

    def __init__(self, node: Node, opsets: Mapping[str, int], own: Own | None = None) -> None:
        if node.op in OWN and not node.domain:
            raise ValueError(f"{node}: {node.op} runs on fastconv, never on onnx.reference")
        self.node, self.opsets = node, dict(opsets)
        self.proto = node.proto
        self.schema = _schema(node)
        self.own = own
        self.evaluators: dict[Any, Any] = {}
        self.inferred: dict[Any, dict[str, Any]] = {}

    def __call__(self, *inputs: Any) -> list[Any]:
        names = [*self.proto.input, *self.node.captured]
        given = {name: value for name, value in zip(names, inputs, strict=True) if name}
        expected = self._expected(given)
        try:
            with np.errstate(all="ignore"):  # infinities and NaN are results, as everywhere in ONNX
                results = self._evaluator(given).run(None, given)
        except Exception as error:  # the reference raises whatever its NumPy code runs into
            raise ValueError(f"{self.node}: {_line(error)}") from error
        for name, value in zip(self._outputs(), results, strict=True):
            _compare(f"{self.node}: {name!r}", value, expected.get(name))
        found = dict(zip(self._outputs(), results, strict=True))
        return [found.get(name) for name in self.node.outputs]

    def _outputs(self) -> list[str]:
        return [name for name in self.proto.output if name]

    # ------------------------------------------------------------------------------------------- what it will give

    def _expected(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The types of the outputs as inferred, checked against the machine's memory; empty where none are inferred."""
        if self.schema is None:
            return {}
        key = tuple(_signature(value) for value in given.values())
        if (known := self.inferred.get(key)) is not None:
            return known
        inference = extra("onnx.shape_inference", "onnx", "a model")
        helper = extra("onnx.numpy_helper", "onnx", "a model")
        onnx = extra("onnx", "onnx", "a model")
        types = {name: t for name, value in given.items() if (t := _type(value)) is not None}
        if len(types) != len(given):  # sequences, maps: inference would have to be told their elements' types
            return {}
        told = {
            name: helper.from_array(value, name)
            for name, value in given.items()
            if _is_told(value) and name not in self.node.captured
        }
        opsets = [onnx.OperatorSetIdProto(domain=d, version=v) for d, v in self.opsets.items()]
        try:
            found = inference.infer_node_outputs(self.schema, self.proto, types, told, opset_imports=opsets)
        except Exception:  # it refuses what the reference takes, a Range of arrays of one element; running will tell
            found = {}
        for name, kind in found.items():
            check_fits(f"{self.node}: {name!r}", _bytes(kind))
        while len(self.inferred) >= KEPT:
            self.inferred.pop(next(iter(self.inferred)), None)
        self.inferred[key] = found
        return found

    # ------------------------------------------------------------------------------------------------- what runs it

    def _evaluator(self, given: Mapping[str, Any]) -> Any:
        """The reference's evaluator of a model of this node alone, its inputs typed as those given."""
        types = {name: _type(value, shape=False) for name, value in given.items()}
        key = tuple(None if t is None else t.SerializeToString() for t in types.values())
        if (known := self.evaluators.get(key)) is not None:
            return known
        onnx = extra("onnx", "onnx", "a model")
        reference = extra("onnx.reference", "onnx", "a model")
        graph = onnx.GraphProto(name="node")
        graph.node.append(self.proto)
        for name, kind in types.items():
            graph.input.add(name=name).type.CopyFrom(kind or onnx.TypeProto())
        for name in self._outputs():
            graph.output.add(name=name)
        model = onnx.ModelProto(ir_version=onnx.IR_VERSION, graph=graph)
        for domain, version in self.opsets.items():
            model.opset_import.add(domain=domain, version=version)
        built = reference.ReferenceEvaluator(model, new_ops=_own_operators(self.own, self.opsets))
        while len(self.evaluators) >= KEPT:
            self.evaluators.pop(next(iter(self.evaluators)), None)
        self.evaluators[key] = built
        return built


def _own_operators(own: Own | None, opsets: Mapping[str, int]) -> list[type]:
    """Operators of the names in :data:`OWN` for the evaluators of sub-graphs."""
    base = extra("onnx.reference.op_run", "onnx", "a model").OpRun

    def run(self: Any, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        if own is None:
            raise ValueError(f"{self.onnx_node.op_type} inside a sub-graph needs something to run it")
        return tuple(own(self.onnx_node, opsets, inputs))

    return [type(name, (base,), {"op_domain": "", "_run": run}) for name in sorted(OWN)]


def _schema(node: Node) -> Any:
    """ONNX's description of the operator; None where ONNX has none, and then the reference must know it."""
    defs = extra("onnx.defs", "onnx", "a model")
    try:
        return defs.get_schema(node.op, node.version, node.domain)
    except defs.SchemaError:
        domain = f" of the domain {node.domain!r}" if node.domain else ""
        raise ValueError(
            f"{node}: the operator {node.op}{domain} is not known, in version {node.version} of its operator set"
        ) from None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


# -------------------------------------------------------------------------------------------------------------- values


def _is_told(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size <= TOLD and value.dtype.kind in "iufb" and value.ndim <= 1


def _signature(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return None
    return value.dtype.str, value.dtype.name, value.shape, value.tobytes() if _is_told(value) else None


def _type(value: Any, shape: bool = True) -> Any:
    """The ``TypeProto`` of an array; None for anything else."""
    helper = extra("onnx.helper", "onnx", "a model")
    if not isinstance(value, np.ndarray):
        return None
    kind = np.dtype(object) if value.dtype.kind in "OUS" else value.dtype
    number = helper.np_dtype_to_tensor_dtype(kind)
    return helper.make_tensor_type_proto(number, value.shape if shape else [None] * value.ndim)


def _bytes(kind: Any) -> int:
    """Bytes of a result of this type, as far as it says."""
    helper = extra("onnx.helper", "onnx", "a model")
    tensor = kind.tensor_type
    if kind.WhichOneof("value") != "tensor_type" or not tensor.elem_type or not tensor.HasField("shape"):
        return 0
    size = int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize)
    for dimension in tensor.shape.dim:
        size *= dimension.dim_value if dimension.HasField("dim_value") else 1
    return size


def _compare(what: str, value: Any, kind: Any) -> None:
    """A result against what was inferred of it: the reference is NumPy code, which may promote or drop dimensions."""
    if kind is None or kind.WhichOneof("value") != "tensor_type" or not isinstance(value, np.ndarray):
        return
    found = _type(value).tensor_type
    tensor = kind.tensor_type
    if tensor.elem_type and tensor.elem_type != found.elem_type:
        raise ValueError(f"{what} came out of onnx.reference as {value.dtype}, not as ONNX defines it")
    if tensor.HasField("shape") and len(tensor.shape.dim) != value.ndim:  # sizes inferred for STFT are wrong
        rank = len(tensor.shape.dim)
        raise ValueError(f"{what} came out of onnx.reference with the shape {value.shape}, ONNX says {rank} dimensions")
