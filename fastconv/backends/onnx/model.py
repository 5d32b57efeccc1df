"""A model from a file, bytes or a ``ModelProto``, checked before anything believes it.

A model comes from strangers. What it claims is compared with what it holds before memory is taken for it: sizes of
tensors with their bytes, offsets of external data with their file, names with where they are assigned. External data
lies in the model's folder or below; nothing else is read. Whatever is wrong is a ``ValueError`` that says what.

What is *not* checked here: shapes that only follow from running the model. Those raise when it runs.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from ...extras import extra

Array = np.ndarray[Any, Any]

OLDEST_IR = 3  # those before have no operator set versions
LARGEST_FILE = 2**31 - 1  # bytes, of protobuf
MOST_DIMENSIONS = 32  # of an array, in NumPy 1
MOST_INLINED = 1_000_000  # nodes, after a model's own functions are put in place of their calls
MAPPED = 1 << 20  # bytes from which external data is mapped instead of read

BITS = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
"""Of element types that share bytes; all others have NumPy's size."""


@dataclass(frozen=True)
class Loaded:
    """A checked model. ``tensors`` holds the initializers that lie in files, by name; ``name`` is for messages."""

    proto: Any
    name: str = "model"
    folder: Path | None = None
    tensors: Mapping[str, Array] = field(default_factory=dict)


def load(model: Any) -> Loaded:
    """Read and check a model.

    >>> load(b"no model at all")
    Traceback (most recent call last):
    ...
    ValueError: model: not an ONNX model in its binary form: Error parsing message with type 'onnx.ModelProto': ...

    Parameters
    ----------
    model : a path, the bytes of a file, or an ``onnx.ModelProto``, which is left as it is. Only a path can have
        external data.

    Raises
    ------
    ValueError : what is wrong with the model, and where.
    TypeError : it is none of those.
    OSError : the file cannot be read.
    """
    onnx = extra("onnx", "onnx", "a model")
    folder = None
    if isinstance(model, onnx.ModelProto):
        name, proto = "model", model
    elif isinstance(model, (bytes, bytearray, memoryview)):
        name, proto = "model", _parse("model", bytes(model))
    elif isinstance(model, (str, os.PathLike)):
        path = Path(model)
        name, proto, folder = path.name, _parse(path.name, _read(path)), path.parent
    else:
        raise TypeError(f"model must be a path, bytes or an onnx.ModelProto, got {type(model).__name__}")
    return check(Loaded(proto, name, folder))


def check(given: Loaded) -> Loaded:
    """The same model, checked, its external data found. Tensors inside nodes are read into the proto."""
    name, proto, folder = given.name, given.proto, given.folder
    try:
        _check_versions(proto)
        tensors = {}
        for tensor in proto.graph.initializer:
            if (data := _checked_data(tensor, folder)) is not None:
                if _plain(tensor):
                    tensors[tensor.name] = data.view(_dtype(tensor)).reshape(tuple(tensor.dims))
                else:
                    _embed(tensor, data)
        for tensor in _inner_tensors(proto):
            if (data := _checked_data(tensor, folder)) is not None:
                _embed(tensor, data)
        for graph in _graphs(proto.graph):
            _check_graph(graph)
        _check_functions(proto)
        _check_with_onnx(proto)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: a name is not text in UTF-8: {error.object[:40]!r}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Loaded(proto, name, folder, tensors)


# ------------------------------------------------------------------------------------------------------------ parsing


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    if not path.is_file():
        raise ValueError(f"{path}: not a file")
    if size > LARGEST_FILE:
        raise ValueError(
            f"{path}: {size} bytes; a model file has at most {LARGEST_FILE}, larger weights are external data"
        )
    return path.read_bytes()


def _parse(name: str, data: bytes) -> Any:
    onnx = extra("onnx", "onnx", "a model")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's own, of a module that differs between its versions
        raise ValueError(f"{name}: not an ONNX model in its binary form: {_line(error)}") from None
    if not proto.HasField("graph"):
        raise ValueError(f"{name}: not an ONNX model: it holds no graph")
    return proto


def _line(error: Exception) -> str:
    """A message of onnx's or protobuf's, which may run over a page, as one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


# ----------------------------------------------------------------------------------------------------- walking a model


def _inner(node: Any) -> Iterator[Any]:
    """The sub-graphs of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and all inside it."""
    yield graph
    for node in graph.node:
        for inner in _inner(node):
            yield from _graphs(inner)


def _inner_tensors(proto: Any) -> Iterator[Any]:
    """Every tensor that a model holds, but for the initializers of its graph: in nodes, sub-graphs, sparse ones."""
    graphs = list(_graphs(proto.graph))
    nodes = [node for graph in graphs for node in graph.node]
    for function in proto.functions:
        inside = [g for node in function.node for inner in _inner(node) for g in _graphs(inner)]
        graphs += inside
        nodes += [*function.node, *(node for graph in inside for node in graph.node)]
    sparse = [s for graph in graphs for s in graph.sparse_initializer]
    for graph in graphs:
        if graph is not proto.graph:
            yield from graph.initializer
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            sparse += attribute.sparse_tensors
    for tensor in sparse:
        _check_sparse(tensor)
        yield tensor.values
        yield tensor.indices


# ------------------------------------------------------------------------------------------------------------ versions


def _check_versions(proto: Any) -> None:
    onnx = extra("onnx", "onnx", "a model")
    if not OLDEST_IR <= proto.ir_version <= onnx.IR_VERSION:
        raise ValueError(
            f"IR version {proto.ir_version}; this release of onnx ({onnx.__version__}) reads {OLDEST_IR} to "
            f"{onnx.IR_VERSION}"
        )
    newest = onnx.defs.onnx_opset_version()
    seen: dict[str, int] = {}
    for opset in proto.opset_import:
        domain = "" if opset.domain == "ai.onnx" else opset.domain
        if seen.setdefault(domain, opset.version) != opset.version:
            raise ValueError(f"two versions of the operator set {opset.domain or 'ai.onnx'!r}")
        if domain == "" and not 1 <= opset.version <= newest:
            raise ValueError(
                f"operator set version {opset.version}; this release of onnx ({onnx.__version__}) knows 1 to {newest}"
            )
    if not seen:
        raise ValueError("no operator set version (opset_import)")


# ------------------------------------------------------------------------------------------------------------- tensors


def _dtype(tensor: Any) -> np.dtype[Any]:
    helper = extra("onnx.helper", "onnx", "a model")
    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _type_name(tensor: Any) -> str:
    """``FLOAT`` for 1: the element type's name in ONNX."""
    types = extra("onnx", "onnx", "a model").TensorProto.DataType
    if tensor.data_type not in types.values() or tensor.data_type == types.Value("UNDEFINED"):
        raise ValueError(f"{_called(tensor)}: unknown element type {tensor.data_type}")
    return str(types.Name(tensor.data_type))


def _called(tensor: Any) -> str:
    return f"the tensor {tensor.name!r}" if tensor.name else "a tensor without name"


def _plain(tensor: Any) -> bool:
    """Whether bytes are elements as NumPy has them."""
    return _type_name(tensor) not in BITS and np.little_endian


def _elements(called: str, dims: Iterable[int]) -> int:
    shape = tuple(dims)
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{called} has {len(shape)} dimensions; at most {MOST_DIMENSIONS} are possible")
    if any(d < 0 for d in shape):
        raise ValueError(f"{called} has the shape {shape}: no size may be negative")
    if math.prod(d for d in shape if d) > 2**59:
        raise ValueError(f"{called} has the shape {shape}: more elements than can be addressed")
    return math.prod(shape)


def _check_tensor(tensor: Any, external: int | None) -> None:
    """What a tensor claims against what it holds; ``external`` are the bytes found in a file."""
    called, kind = _called(tensor), _type_name(tensor)
    if tensor.HasField("segment"):
        raise ValueError(f"{called} is stored in segments, which ONNX never defined")
    elements = _elements(called, tensor.dims)
    shape = tuple(tensor.dims)
    if kind == "STRING":
        if external is not None or tensor.HasField("raw_data"):
            raise ValueError(f"{called} holds strings as raw bytes")
        wanted, held, unit = elements, len(tensor.string_data), "strings"
    elif external is not None or tensor.HasField("raw_data"):
        bits = BITS.get(kind) or 8 * _dtype(tensor).itemsize
        wanted, unit = -(-elements * bits // 8), "bytes"
        held = len(tensor.raw_data) if external is None else external
    else:
        helper = extra("onnx.helper", "onnx", "a model")
        entries = {2: 4, 4: 2}.get(BITS.get(kind, 8), 1)
        wanted = -(-elements // entries) * (2 if kind.startswith("COMPLEX") else 1)
        held, unit = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))), "values"
    if held != wanted:
        raise ValueError(f"{called} of {kind} claims the shape {shape}, {wanted} {unit}, and holds {held}")


def _check_sparse(sparse: Any) -> None:
    called = f"the sparse {_called(sparse.values).removeprefix('the ').removeprefix('a ')}"
    if _elements(called, sparse.dims) * 16 > LARGEST_FILE:
        raise ValueError(f"{called} would have the shape {tuple(sparse.dims)}: too large to be written out")
    if list(sparse.values.dims) != [len(sparse.indices.dims) and sparse.indices.dims[0]]:
        raise ValueError(f"{called} has not as many values as indices")


def _checked_data(tensor: Any, folder: Path | None) -> Array | None:
    """The tensor is checked; what is returned are its bytes if they lie in a file."""
    data = _external(tensor, folder) if tensor.data_location == tensor.EXTERNAL else None
    _check_tensor(tensor, None if data is None else data.nbytes)
    return data


def _embed(tensor: Any, data: Array) -> None:
    """External data as the tensor's own; only ever in a proto that was read from a file here."""
    tensor.raw_data = data.tobytes()
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _external(tensor: Any, folder: Path | None) -> Array:
    """The bytes of a tensor that lie in a file, from inside the model's folder: mapped, or read where they are few."""
    called = _called(tensor)
    if folder is None:
        raise ValueError(f"{called} lies in a file of its own, and only a model given by its path has a folder")
    told = {entry.key: entry.value for entry in tensor.external_data}
    path = _inside(called, told.get("location", ""), folder)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):  # a pipe could be waited for, a device read for ever
            raise ValueError(f"{called}: {told['location']!r} is not a file")
        offset = _count(called, "offset", told.get("offset", "0"))
        length = _count(called, "length", told["length"]) if "length" in told else max(found.st_size - offset, 0)
        if offset + length > found.st_size:
            raise ValueError(
                f"{called} claims {length} bytes from byte {offset} of {told['location']!r}, which has {found.st_size}"
            )
        _check_tensor(tensor, length)
        if length >= MAPPED:
            return np.memmap(file, np.uint8, "r", offset, (length,))
        file.seek(offset)
        return np.frombuffer(file.read(length), np.uint8)


def _count(called: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise ValueError(f"{called}: the {key} of its external data must be a number of bytes, got {text[:40]!r}")
    return int(text)


def _inside(called: str, location: str, folder: Path) -> Path:
    """The file that a location names, if it lies in the folder or below it, symbolic links followed."""
    parts = PureWindowsPath(location).parts  # knows both kinds of slash, and drives
    if not location or "\0" in location or Path(location).is_absolute() or PureWindowsPath(location).anchor:
        raise ValueError(f"{called}: the location of its external data must be a relative path, got {location[:200]!r}")
    if ".." in parts:
        raise ValueError(f"{called}: the location of its external data leaves the model's folder: {location[:200]!r}")
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, location))
    if os.path.commonpath([root, path]) != root:
        raise ValueError(f"{called}: the location of its external data leads out of the model's folder: {location!r}")
    if not os.path.isfile(path):
        raise ValueError(f"{called}: its external data is missing: {location[:200]!r} is no file in the model's folder")
    return Path(path)


# --------------------------------------------------------------------------------------------------------------- names


def _check_graph(graph: Any) -> None:
    """Names are assigned once and outputs are assigned at all. That nodes come after what they read, onnx checks."""
    where = f"the graph {graph.name!r}" if graph.name else "the graph"
    sparse = [s.values.name for s in graph.sparse_initializer]
    for what, names in (
        ("input", [v.name for v in graph.input]),
        ("initializer", [t.name for t in graph.initializer] + sparse),
        ("output", [v.name for v in graph.output]),
    ):
        if "" in names:
            raise ValueError(f"{where} has an {what} without a name")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"{where} has two {what}s of the name {twice!r}"
                if what != "output"
                else f"{where} gives {twice!r} twice"
            )
    for value in (*graph.input, *graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            _elements(f"{where}: {value.name!r}", (d.dim_value for d in value.type.tensor_type.shape.dim))
    types = extra("onnx", "onnx", "a model").TensorProto.DataType.values()
    for value in graph.input:
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type not in types:
            raise ValueError(
                f"{where}: the input {value.name!r} has the unknown element type {value.type.tensor_type.elem_type}"
            )


def _check_functions(proto: Any) -> None:
    """A model's own functions call each other in no circle, and are not too many nodes once they are in place."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    if len(bodies) != len(proto.functions):
        raise ValueError("two functions of one domain and name")
    sizes: dict[tuple[str, str], int] = {}

    def calls(nodes: Iterable[Any]) -> Iterator[tuple[str, str]]:
        for node in nodes:
            yield node.domain, node.op_type
            for inner in _inner(node):
                yield from calls(inner.node)

    order: list[tuple[tuple[str, str], bool]] = [(key, False) for key in bodies]
    open_: set[tuple[str, str]] = set()
    while order:  # depth first, without recursion: a chain of calls may be long
        key, done = order.pop()
        if done:
            open_.discard(key)
            sizes[key] = sum(sizes.get(call, 1) for call in calls(bodies[key].node))
        elif key not in sizes:
            if key in open_:
                raise ValueError(f"the function {key[1]!r} calls itself")
            open_.add(key)
            order.append((key, True))
            order += [(call, False) for call in calls(bodies[key].node) if call in bodies]
    if bodies and sum(sizes.get(call, 1) for call in calls(proto.graph.node)) > MOST_INLINED:
        raise ValueError(f"its functions call each other so often that it has more than {MOST_INLINED} nodes")


def _check_with_onnx(proto: Any) -> None:
    """ONNX's own check of a copy whose initializers are empty: their contents are checked already."""
    onnx = extra("onnx", "onnx", "a model")
    checker = extra("onnx.checker", "onnx", "a model")
    copy = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    graph = copy.graph
    graph.name = proto.graph.name
    for part in ("node", "input", "output"):
        getattr(graph, part).extend(getattr(proto.graph, part))
    for value in (*graph.input, *graph.output):  # exporters leave shapes and types out, which is harmless
        if value.type.WhichOneof("value") is None:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    graph.initializer.extend(
        onnx.TensorProto(name=t.name, data_type=t.data_type, dims=[0]) for t in proto.graph.initializer
    )
    try:
        checker.check_model(copy)
    except UnicodeDecodeError:
        raise
    except Exception as error:  # ValidationError, or what C++ raises of its own
        raise ValueError(_line(error)) from None
    given = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    given |= {s.values.name for s in graph.sparse_initializer} | {o for node in graph.node for o in node.output}
    for output in graph.output:
        if output.name not in given:
            raise ValueError(f"nothing gives the output {output.name!r}")
