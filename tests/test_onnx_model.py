"""Models from strangers: read, checked, refused with one clear error; and nothing read outside their folder."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support import require

onnx = require("onnx")

from onnx import TensorProto, external_data_helper, helper, numpy_helper  # noqa: E402

from fastconv.backends.onnx import prepare  # noqa: E402
from fastconv.backends.onnx.graph import build  # noqa: E402
from fastconv.backends.onnx.model import load  # noqa: E402

ModelProto = onnx.ModelProto


def good() -> ModelProto:
    """Convolution, activation, pooling, and a shape that is computed, with weights inside and in a node."""
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array([1, -1]), "inner")),
        helper.make_node("Reshape", ["p", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None])],
        [
            numpy_helper.from_array(draw.normal(size=(4, 3, 3, 3)).astype(np.float32), "w"),
            numpy_helper.from_array(draw.normal(size=4).astype(np.float32), "b"),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def nested(depth: int) -> bytes:
    """A model of sub-graphs inside sub-graphs, byte by byte: protobuf's own writer refuses."""

    def field(number: int, data: bytes) -> bytes:
        n, length = len(data), b""
        while n > 127:
            length, n = length + bytes([n & 127 | 128]), n >> 7
        return bytes([number << 3 | 2]) + length + bytes([n]) + data

    graph = b""
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    return field(7, graph)


# ------------------------------------------------------------------------------------------------------------ reading


def test_all_forms_of_a_model_are_the_same(tmp_path: Path) -> None:
    model = good()
    data = model.SerializeToString()
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    for form in (model, data, bytearray(data), path, str(path)):
        graph = build((loaded := load(form)).proto, loaded.folder, loaded.tensors)
        assert [n.op for n in graph.nodes] == ["Conv", "Relu", "MaxPool", "Constant", "Reshape"]
        assert graph.constants["w"].shape == (4, 3, 3, 3)
    assert model.SerializeToString() == data


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "it holds no graph"),
        (b"x = 1\n", "not an ONNX model in its binary form"),
        (good().SerializeToString()[:-9], "not an ONNX model in its binary form"),
        (b"\x3a\xff\xff\xff\xff\x07", "not an ONNX model in its binary form"),  # a graph of 2 GB in six bytes
        (nested(10_000), "not an ONNX model in its binary form"),
        (nested(20), "IR version 0"),
        (onnx.ModelProto(), "IR version 0"),
    ],
)
def test_what_is_no_model(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(given)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"text\.onnx: not an ONNX model in its binary form"):
        load(tmp_path / "text.onnx")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx: no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="not a file"):
        load(tmp_path)
    with pytest.raises(TypeError, match=r"model must be a path, bytes or an onnx\.ModelProto, got int"):
        load(3)


# --------------------------------------------------------------------------------------------------- hostile contents


def sized(model: ModelProto, name: str, *dims: int) -> None:
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    tensor.ClearField("dims")
    tensor.dims.extend(dims)


def calls(model: ModelProto, name: str, *called: str) -> None:
    body = [helper.make_node(c, ["a"], [f"v{i}"], domain="own") for i, c in enumerate(called)]
    body.append(helper.make_node("Identity", ["a"], ["r"]))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", name, ["a"], ["r"], body, opsets))


def laughs(model: ModelProto) -> None:
    """Thirty functions, each calling the one below twice: a thousand million nodes in a few kilobytes."""
    model.opset_import.append(helper.make_opsetid("own", 1))
    calls(model, "f0")
    for i in range(1, 30):
        calls(model, f"f{i}", f"f{i - 1}", f"f{i - 1}")
    model.graph.node[1].CopyFrom(helper.make_node("f29", ["c"], ["r"], domain="own"))


def circle(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("own", 1))
    calls(model, "f", "g")
    calls(model, "g", "f")
    model.graph.node[1].CopyFrom(helper.make_node("f", ["c"], ["r"], domain="own"))


def sparse(model: ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "b2")
    indices = numpy_helper.from_array(np.array([0]), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40]))


HOSTILE: dict[str, tuple[Callable[[ModelProto], object], str]] = {
    "size of 2^62": (lambda m: sized(m, "w", 2**62, 3, 3, 3), "'w' has the shape .* more elements than can be address"),
    "size below 0": (lambda m: sized(m, "w", 4, 3, 3, -3), "'w' has the shape .* no size may be negative"),
    "2 GB in 432 bytes": (lambda m: sized(m, "w", 2**29), "'w' of FLOAT claims .*2147483648 bytes, and holds 432"),
    "0 of 2^62": (lambda m: sized(m, "w", 2**62, 0), "more elements than can be addressed"),
    "40 dimensions": (lambda m: sized(m, "w", *[1] * 40), "'w' has 40 dimensions"),
    "unknown type": (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "'w': unknown element type 99"),
    "tensor in a node": (
        lambda m: m.graph.node[3].attribute[0].t.dims.__setitem__(0, 2**40), "'inner' of INT64 claims .* and holds 16"
    ),
    "input of 2^62": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 2**62), "'x' has the shape"
    ),
    "input below 0": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", -3), "no size may be negative"
    ),
    "circle": (lambda m: m.graph.node[0].input.__setitem__(0, "p"), "topologically sorted.*'p'"),
    "missing input": (lambda m: m.graph.node[1].input.__setitem__(0, "lost"), "'lost'"),
    "missing output": (lambda m: setattr(m.graph.output[0], "name", "lost"), "lost"),
    "assigned twice": (lambda m: m.graph.node[1].output.__setitem__(0, "c"), "single static assignment"),
    "two initializers": (lambda m: setattr(m.graph.initializer[1], "name", "w"), "two initializers of the name 'w'"),
    "two inputs": (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs of the name 'x'"),
    "attribute of another type": (
        lambda m: m.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("pads", "all")), "pads"
    ),
    "unknown attribute": (lambda m: setattr(m.graph.node[0].attribute[0], "name", "pad"), "Unrecognized .*pad"),
    "unknown operator": (lambda m: setattr(m.graph.node[1], "op_type", "Rely"), "Rely"),
    "opset of tomorrow": (lambda m: setattr(m.opset_import[0], "version", 9999), "operator set version 9999"),
    "opset of never": (lambda m: setattr(m.opset_import[0], "version", -1), "operator set version -1"),
    "no opset": (lambda m: m.ClearField("opset_import"), "no operator set version"),
    "two opsets": (lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 12)), "two versions of the operator"),
    "IR of tomorrow": (lambda m: setattr(m, "ir_version", 999), "IR version 999"),
    "functions in a circle": (circle, "calls itself"),
    "functions without end": (laughs, "more than 1000000 nodes"),
    "a sparse tensor of 16 TB": (sparse, "too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_a_clear_error(name: str) -> None:
    spoil, message = HOSTILE[name]
    model = good()
    spoil(model)
    for form in (model, model.SerializeToString()):
        with pytest.raises(ValueError, match=f"model: .*{message}") as caught:
            load(form)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ external data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``inside/net.onnx`` with its weights in ``inside/weights/net.bin``, and ``secret.bin`` beside the folder."""
    inside = tmp_path / "inside"
    (inside / "weights").mkdir(parents=True)
    model = good()
    external_data_helper.convert_model_to_external_data(model, location="weights/net.bin", size_threshold=0)
    model = external_data_helper.write_external_data_tensors(model, str(inside))
    (inside / "net.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    return inside


def edit(folder: Path, **entries: str) -> Path:
    """``net.onnx`` with other entries for its first tensor's external data."""
    path = folder / "net.onnx"
    model = onnx.ModelProto.FromString(path.read_bytes())
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.pop(entry.key, entry.value)
    for key, value in entries.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX's files")
def test_external_data_is_read_where_it_lies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {t.name: numpy_helper.to_array(t) for t in good().graph.initializer}
    loaded = load(folder / "net.onnx")
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded.tensors[name], array)
    monkeypatch.setattr("fastconv.backends.onnx.model.MAPPED", 64)
    mapped = load(folder / "net.onnx").tensors["w"]
    assert isinstance(mapped.base, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, expected["w"])
    with pytest.raises(ValueError, match="only a model given by its path has a folder"):
        load((folder / "net.onnx").read_bytes())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret.bin"}, "leaves the model's folder"),
        ({"location": "weights/../../secret.bin"}, "leaves the model's folder"),
        ({"location": "weights\\..\\..\\secret.bin"}, "leaves the model's folder"),
        ({"location": "/etc/passwd"}, "must be a relative path"),
        ({"location": "C:\\secret.bin"}, "must be a relative path"),
        ({"location": ""}, "must be a relative path"),
        ({"location": "weights/net.bin\0.txt"}, "must be a relative path"),
        ({"location": "link.bin"}, "leads out of the model's folder"),
        ({"location": "linked/secret.bin"}, "leads out of the model's folder"),
        ({"location": "pipe"}, "is no file"),
        ({"location": "weights"}, "is no file"),
        ({"location": "lost.bin"}, "its external data is missing: 'lost.bin'"),
        ({"location": "x" * 5000}, "its external data is missing"),
        ({"offset": "-4"}, "offset of its external data must be a number of bytes, got '-4'"),
        ({"offset": "1e3"}, "must be a number of bytes"),
        ({"offset": "9" * 5000}, "must be a number of bytes"),
        ({"offset": "440"}, "claims 432 bytes from byte 440"),
        ({"length": "431"}, "claims the shape .*432 bytes, and holds 431"),
        ({"length": "2147483648"}, "claims 2147483648 bytes from byte 0 of 'weights/net.bin', which has 448"),
    ],
)
def test_external_data_stays_in_its_folder(folder: Path, entries: dict[str, str], message: str) -> None:
    os.symlink(folder.parent / "secret.bin", folder / "link.bin")
    os.symlink(folder.parent, folder / "linked")
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match=f"(?s)net.onnx: the tensor 'w'.*{message}"):
        load(edit(folder, **entries))


def test_a_node_cannot_read_files_either(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Constant too; and where the process happens to stand does not matter."""
    monkeypatch.chdir(folder.parent)
    model = good()
    tensor = model.graph.node[3].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    tensor.external_data.add(key="length", value="16")
    with pytest.raises(ValueError, match="only a model given by its path has a folder"):
        load(model)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"its external data is missing: 'secret\.bin'"):
        load(folder / "net.onnx")


# ---------------------------------------------------------------------------------------------------------- mutations


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, set, cut out or put in; more often at the front, where the structure is."""
    spoilt = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = min(draw.randrange(len(data)) if draw.random() < 0.4 else draw.randrange(200), len(spoilt) - 1)
        match draw.randrange(4):
            case 0:
                spoilt[at] ^= 1 << draw.randrange(8)
            case 1:
                spoilt[at] = draw.randrange(256)
            case 2:
                del spoilt[at : at + draw.randint(1, 4)]
            case _:
                spoilt[at:at] = draw.randbytes(draw.randint(1, 4))
    return bytes(spoilt)


NUMBERS = [-(2**63), -(2**31), -1, 0, 1, 2, 7, 2**20, 2**31, 2**40, 2**62]


def altered(message, draw: random.Random) -> None:
    """One field of a model, somewhere inside it, set to something else, removed or repeated."""
    while True:
        fields = message.ListFields()
        if not fields:
            return
        field, value = draw.choice(fields)
        inner = field.message_type is not None
        repeated = not hasattr(value, "ListFields") and hasattr(value, "append")
        if inner and draw.random() < 0.85:
            message = draw.choice(value) if repeated else value
            continue
        if draw.random() < 0.25:
            message.ClearField(field.name)
        elif repeated and inner:
            value.append(value[0])
        elif repeated:
            value.append(value[draw.randrange(len(value))]) if draw.random() < 0.3 else replace(value, draw)
        elif not inner and field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            setattr(message, field.name, draw.choice(NUMBERS) % (2**63))
        elif not inner and field.cpp_type == field.CPPTYPE_INT32:
            setattr(message, field.name, draw.randrange(30))
        elif not inner and isinstance(value, str):
            setattr(message, field.name, draw.choice(["", "x", "w", "y", "Conv", "Loop", "pads", "\0"]))
        elif not inner and isinstance(value, bytes):
            setattr(message, field.name, value[:-1])
        return


def replace(values, draw: random.Random) -> None:
    at = draw.randrange(len(values))
    if isinstance(values[at], int):
        values[at] = draw.choice(NUMBERS)
    elif isinstance(values[at], float):
        values[at] = float("nan")
    elif isinstance(values[at], str):
        values[at] = draw.choice(["", "x", "w", "y", "r"])


RICH = """
net (float[1, 3, 8, 8] x) => (float[m, m] y) <
    int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, float[4] sizes = {1.0, 1.0, 2.0, 2.0}, int64[2] flat = {1, -1},
    float[4, 3, 1, 1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4, 1, 1, 1] v = {1, 2, 3, 4},
    float[4] b = {1, 2, 3, 4}, int64[2] four = {4, 4}, int64[2] two = {2, 2}
> {
    c = Conv <strides = [1, 1], dilations = [1, 1], group = 1> (x, w, b)
    d = BatchNormalization <epsilon = 0.001> (c, b, b, b, b)
    e = LeakyRelu <alpha = 0.1> (d)
    f = Pad (e, pads)
    g = AveragePool <kernel_shape = [3, 3], ceil_mode = 1, pads = [0, 0, 0, 0]> (f)
    h = ConvTranspose <strides = [2, 2], output_padding = [0, 0], group = 4> (g, v)
    i = Resize <mode = "nearest"> (h, , sizes)
    j = Concat <axis = 1> (i, i)
    k = ConstantOfShape (four)
    l = Expand (b, four)
    r = Reshape (j, flat)
    q = ReduceMean <axes = [1], keepdims = 1> (r)
    t = Cos (q)
    o = Tile (t, two)
    u = Gemm <alpha = 0.5, transB = 1> (o, o)
    y = Softmax <axis = -1> (u)
}"""


def rich() -> ModelProto:
    graph = onnx.parser.parse_graph(RICH)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def peak() -> int:
    """Kilobytes that this process has used at most; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("build_good", [good, rich])
def test_spoilt_models_are_refused_or_run(build_good: Callable[[], ModelProto]) -> None:
    """Bytes and fields changed at random: a clear error or a result; no other exception, and no memory to speak of."""
    x = np.ones((1, 3, 8, 8), np.float32)
    whole = build_good()
    prepare(whole).run([x])  # compile what is needed, so that memory below is that of the models
    data = whole.SerializeToString()
    draw = random.Random(0)
    ran, refused = 0, list[str]()
    before = peak()
    for i in range(600):
        model = build_good()
        for _ in range(draw.randint(1, 3)):
            altered(model, draw)
        try:
            prepare(model if i % 3 else mutated(data, draw)).run([x])
            ran += 1
        except (ValueError, TypeError) as error:
            refused.append(str(error))
    assert ran > 40
    assert len(refused) > 300
    assert [said for said in refused if "\n" in said or len(said) > 1000] == []
    assert peak() - before < 200_000  # kilobytes


RESULTS = {
    "Expand": ("Expand (x, shape)", {"shape": [2**36]}),
    "ConstantOfShape": ("ConstantOfShape (shape)", {"shape": [2**36]}),
    "Tile": ("Tile (x, shape)", {"shape": [2**36]}),
    "Pad": ("Pad (x, shape)", {"shape": [0, 2**36]}),
    "Range": ("Range (zero, many, one)", {"zero": 0, "many": 2**40, "one": 1}),
    "Conv": ("Conv <pads = [1000000, 1000000, 1000000, 1000000]> (image, image)", {}),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_without_end_is_refused_before_it_is_begun(name: str) -> None:
    """A few bytes of model that ask for terabytes, by constants and by inputs."""
    node, integers = RESULTS[name]
    arrays = {n: np.array(v) for n, v in integers.items()}
    arrays |= {n: np.ones(s, np.float32) for n, s in (("x", 1), ("image", (1, 1, 2, 2))) if f"({n}" in node}
    graph = onnx.parser.parse_graph(f"net () => (float[n] y) {{ y = {node} }}")
    for inside in (True, False):
        graph.ClearField("initializer")
        graph.ClearField("input")
        if inside:
            graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
        else:
            types = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in arrays.items()}
            graph.input.extend(helper.make_tensor_value_info(n, types[n], a.shape) for n, a in arrays.items())
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        with pytest.raises(ValueError, match=f"{name} giving y.* would take"):
            prepare(model).run({} if inside else arrays)
