"""A model as plain data: what the passes rewrite and the executor compiles.

    Graph    inputs (name -> Value), constants (name -> array), nodes in an order in which they can run, output names
    Node     one operator: names in, names out ("" where an optional one is absent), attributes as Python values

Every name is assigned once, as in ONNX itself. :func:`build` makes a graph of a checked ``ModelProto``; nothing else
here knows ONNX's own classes, but for ``Node.proto``, which is kept for operators that run elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...extras import extra

Array = np.ndarray[Any, Any]

DEFAULT_DOMAIN = ("", "ai.onnx")


class Value(NamedTuple):
    """What a model says of one of its inputs: a dimension may be a number, a name, or unknown; None is no tensor."""

    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. Attributes: numbers, strings, lists of them, tensors as arrays, sub-graphs as they came.

    ``captured`` are the names that the sub-graphs of the node take from around it. The values they stand for are the
    last of ``inputs``, one for each.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    name: str = ""
    version: int = 0
    proto: Any = None
    captured: tuple[str, ...] = ()

    def has(self, place: int) -> bool:
        """Whether the input at this place is given."""
        return len(self.inputs) > place and self.inputs[place] != ""

    @property
    def label(self) -> str:
        """Its name in a table: where it has none, that of its first output."""
        return self.name or next(filter(None, self.outputs), "")

    def __str__(self) -> str:
        return f"{self.op} {self.name}" if self.name else f"{self.op} giving {self.label}"


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can run, and the names they begin and end with."""

    inputs: Mapping[str, Value]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    nodes: tuple[Node, ...]
    opsets: Mapping[str, int] = field(default_factory=dict)

    def producers(self) -> dict[str, Node]:
        """The node that assigns each name."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def uses(self) -> dict[str, int]:
        """How often each name is read, by nodes and as an output of the graph."""
        found = dict.fromkeys(self.outputs, 0)
        for name in (*self.outputs, *(name for node in self.nodes for name in node.inputs)):
            found[name] = found.get(name, 0) + 1
        return found

    def with_nodes(self, nodes: Iterable[Node], constants: Mapping[str, Array] | None = None) -> Graph:
        """The same graph of other nodes, and with more constants."""
        more = {**self.constants, **constants} if constants else self.constants
        return replace(self, nodes=tuple(nodes), constants=more)


# ---------------------------------------------------------------------------------------------------------- from ONNX


def build(model: Any, folder: str | Path | None = None, tensors: Mapping[str, Array] | None = None) -> Graph:
    """The graph of a checked ``ModelProto``; a constant is a tensor of its own or, by name, one of ``tensors``.

    Parameters
    ----------
    model : what ``model.load`` returns as ``proto``.
    folder : where files of external data lie; not needed where ``tensors`` holds them all.
    tensors : constants that have been read already.

    Raises
    ------
    ValueError : a tensor cannot be read.
    """
    if model.functions:
        inliner = extra("onnx.inliner", "onnx", "a model with functions of its own")
        model = inliner.inline_local_functions(model)
    opsets = {"" if o.domain in DEFAULT_DOMAIN else o.domain: o.version for o in model.opset_import}
    return build_graph(model.graph, opsets, "" if folder is None else str(folder), tensors or {})


def build_graph(graph: Any, opsets: Mapping[str, int], folder: str, tensors: Mapping[str, Array]) -> Graph:
    """The graph of a ``GraphProto``, the model's own or one inside a node."""
    constants = {t.name: tensors[t.name] if t.name in tensors else _array(t, folder) for t in graph.initializer}
    for sparse in graph.sparse_initializer:
        constants[sparse.values.name] = _dense(sparse, folder)
    inputs = {v.name: _value(v.type) for v in graph.input if v.name not in constants}
    read = _reader(folder)
    nodes = [_node(node, opsets, read) for node in graph.node]
    return Graph(inputs, tuple(v.name for v in graph.output), constants, tuple(nodes), dict(opsets))


def _array(tensor: Any, folder: str) -> Array:
    helper = extra("onnx.numpy_helper", "onnx", "reading a model")
    try:
        array: Array = helper.to_array(tensor, folder)
    except Exception as error:  # whatever protobuf and NumPy make of wrong sizes
        raise ValueError(f"the tensor {tensor.name!r} of the model cannot be read: {error}") from error
    array.flags.writeable = False
    return array


def _dense(sparse: Any, folder: str) -> Array:
    values, places = _array(sparse.values, folder), _array(sparse.indices, folder)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    dense[tuple(places.T) if places.ndim == 2 else np.unravel_index(places, dense.shape)] = values
    return dense


def _value(proto: Any) -> Value:
    if proto.WhichOneof("value") != "tensor_type":
        return Value(None, None)
    helper = extra("onnx.helper", "onnx", "reading a model")
    tensor = proto.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Value(dtype, None)
    sizes = {"dim_value": int, "dim_param": str}
    shape = tuple(
        None if (kind := d.WhichOneof("value")) is None else sizes[kind](getattr(d, kind)) for d in tensor.shape.dim
    )
    return Value(dtype, shape)


def _reader(folder: str) -> Callable[[Any], Any]:
    helper = extra("onnx.helper", "onnx", "reading a model")
    kinds = extra("onnx", "onnx", "reading a model").AttributeProto

    def read(attribute: Any) -> Any:
        if attribute.type == kinds.TENSOR:
            return _array(attribute.t, folder)
        if attribute.type in (kinds.GRAPH, kinds.GRAPHS, kinds.SPARSE_TENSOR, kinds.SPARSE_TENSORS):
            return helper.get_attribute_value(attribute)
        value = helper.get_attribute_value(attribute)
        if attribute.type == kinds.STRING:
            return value.decode("utf-8", "replace")
        if attribute.type == kinds.STRINGS:
            return [v.decode("utf-8", "replace") for v in value]
        return value

    return read


def node_of(proto: Any, opsets: Mapping[str, int]) -> Node:
    """The node of a ``NodeProto`` without external data."""
    return _node(proto, opsets, _reader(""))


def _node(proto: Any, opsets: Mapping[str, int], read: Callable[[Any], Any]) -> Node:
    domain = "" if proto.domain in DEFAULT_DOMAIN else proto.domain
    attributes = {a.name: read(a) for a in proto.attribute}
    captured = tuple(sorted(_captured(proto)))
    return Node(
        proto.op_type, (*proto.input, *captured), tuple(proto.output), attributes, domain, proto.name,
        opsets.get(domain, 0), proto, captured,
    )  # fmt: skip


def _captured(node: Any) -> set[str]:
    """The names that the sub-graphs of a ``NodeProto`` take from outside."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            own |= {t.values.name for t in graph.sparse_initializer}
            for inner in graph.node:
                found |= ({name for name in inner.input if name} | _captured(inner)) - own
                own |= set(inner.output)
            found |= {v.name for v in graph.output} - own
    return found
