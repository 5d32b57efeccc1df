"""The libraries compared: how each is given a task in the way that suits it best.

Each adapter takes (task, data, threads) and returns a :class:`Ready`, or raises :class:`Skipped` with the reason. The
arrays in ``data`` must live as long as the result: not every library keeps what it points to. Frameworks are imported
inside, so that a process holds one library alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .tasks import Array, Task, inputs

Data = dict[str, Array]


class Skipped(Exception):
    """A library does not do this task; the message says why."""


@dataclass
class Ready:
    """``call`` does the task once and returns its raw result, which ``result`` turns into a channels-first array.

    A floor, which does no task, has no ``result``.
    """

    call: Callable[[], Any]
    result: Callable[[Any], Array] | None
    prepacked: bool = False
    note: str = ""
    share: float = 1.0
    """The part of the task that a call does; below 1 the rest is assumed to take as long."""


def _sizes(task: Task) -> dict[str, Any]:
    c = task.case
    sizes = {"stride": c.stride, "padding": c.padding, "dilation": c.dilation}
    return {**sizes, "groups": c.groups} if c.op == "conv" else sizes


# --------------------------------------------------------------------------------------------------------- fastconv


def fastconv(task: Task, data: Data, threads: int = 1, algorithm: str = "auto") -> Ready:
    """Convolutions ``forward`` run as plans (weights packed once) into a given array; all else as function calls.

    It uses as many threads as OMP_NUM_THREADS allows.
    """
    last = task.layout == "channels_last"
    laid = {k: np.ascontiguousarray(np.moveaxis(a, 1, -1)) if last and k != "w" else a for k, a in data.items()}
    try:
        ready = (_convolution if task.case.op == "conv" else _pooling)(task, laid, algorithm)
    except ValueError as error:  # a forced algorithm says why it cannot
        raise Skipped(str(error)) from None
    if last and task.direction != "grad_weight":
        ready.result = lambda y: np.moveaxis(y, -1, 1)
    return ready


def _convolution(task: Task, data: Data, algorithm: str) -> Ready:
    import fastconv as fc
    from fastconv import grad

    op = f"conv{task.case.rank}d"
    options = {**_sizes(task), "layout": task.layout, "algorithm": algorithm}
    if task.direction == "forward":
        plan = getattr(fc, f"plan_{op}")(data["x"].shape, data["w"], **options)
        out = np.empty(plan.output_shape, data["x"].dtype)
        return Ready(lambda: plan(data["x"], out=out), np.asarray, prepacked=True, note=plan.algorithm)
    if task.direction == "call":
        whole = partial(getattr(fc, op), data["x"], data["w"], **options)
        return Ready(whole, np.asarray, note=fc.explain(whole).chosen)
    if task.direction == "grad_input":
        n, c, *spatial = task.problem.geometry.input_shape
        size = (n, *spatial, c) if task.layout == "channels_last" else (n, c, *spatial)
        work = partial(getattr(grad, f"{op}_input"), size, data["w"], data["dy"], **options)
    else:
        work = partial(getattr(grad, f"{op}_weight"), data["x"], data["w"].shape, data["dy"], **options)
    return Ready(work, np.asarray, note=fc.explain(work).chosen)


def fastconv_one_thread(task: Task, data: Data, threads: int) -> Ready:
    """The same on one thread, in the run of the others: what the other threads gain."""
    import fastconv as fc

    if task.direction != "forward" or threads == 1:
        raise Skipped("measured forward, beside several threads")
    if task.problem.flops > LONG:
        raise Skipped(f"over {LONG:.0e} operations take too long")
    fc.set_num_threads(1)
    return fastconv(task, data)


LONG = 2e10


def _pooling(task: Task, data: Data, algorithm: str) -> Ready:
    import fastconv as fc
    from fastconv import pooling
    from fastconv.problem import adaptive_pool_problem, pool_problem

    if algorithm == "im2col":
        raise Skipped("pooling has no such kernel")
    case, x = task.case, data.get("x")
    options: dict[str, Any] = {"layout": task.layout} | (_sizes(task) if case.kernel else {})
    build, size, prefix = (pool_problem, case.kernel, "") if case.kernel else (adaptive_pool_problem, 1, "adaptive_")
    if task.direction == "forward":
        function = partial(getattr(fc, f"{prefix}{case.op}{case.rank}d"), x, size, **options)
        y = function()
        return Ready(partial(function, out=y) if case.kernel else function, np.asarray)
    # What a recorded forward pass leaves for backward: compact positions of the maxima.
    wanted = "int32" if case.op == "max_pool" else None
    y, indices, problem = pooling.pool(case.op, case.rank, build, case.op, x, size, indices=wanted, **options)
    saved = () if indices is None else (indices,)
    return Ready(partial(pooling.pool_gradient, problem, data["dy"], *saved, like=y, batched=True), np.asarray)


def expected(task: Task) -> Array:
    """The truth, by the float64 reference: the first and the last image's result, or the whole weight gradient."""
    import fastconv as fc

    data = {name: a.astype(np.float64) for name, a in inputs(task).items()}
    if task.direction != "grad_weight":
        data = {name: a if name == "w" else a[[0, -1]] for name, a in data.items()}
        task = replace(task, batch=2)
    with fc.options(algorithm="reference"):
        ready = fastconv(task, data)
        return np.asarray(ready.result(ready.call()))


# ------------------------------------------------------------------------------------------------------------ PyTorch


def torch(task: Task, data: Data, threads: int, channels_last: bool = False) -> Ready:
    """Eager functions, inference mode forward; gradients by autograd, from the graph of one forward pass."""
    import torch as t
    import torch.nn.functional as f

    t.set_num_threads(threads)
    case = task.case
    if channels_last and case.rank == 1:
        raise Skipped("PyTorch has no channels-last format in one dimension")
    if channels_last and task.direction == "call":
        raise Skipped("one call on NCHW data is measured as torch")
    if task.layout == "channels_last" and not channels_last:
        raise Skipped("measured as torch-channels-last")
    formats = {2: t.channels_last, 3: t.channels_last_3d}
    memory = formats[case.rank] if channels_last else t.contiguous_format
    a = {k: t.from_numpy(v).contiguous(memory_format=memory) for k, v in data.items()}
    gradient = task.direction.startswith("grad")
    if gradient:
        g = task.problem.geometry
        wanted = "w" if task.direction == "grad_weight" else "x"
        a.setdefault("x", t.zeros(g.input_shape).contiguous(memory_format=memory))
        a[wanted].requires_grad_()
    if case.op == "conv":
        forward = partial(getattr(f, f"conv{case.rank}d"), a["x"], a["w"], **_sizes(task))
    elif case.kernel:
        sizes = _sizes(task)
        if case.op == "avg_pool":
            del sizes["dilation"]
        forward = partial(getattr(f, f"{case.op}{case.rank}d"), a["x"], case.kernel, **sizes)
    else:
        forward = partial(getattr(f, f"adaptive_{case.op}{case.rank}d"), a["x"], 1)
    if not gradient:
        return Ready(t.inference_mode()(forward), lambda y: y.numpy())
    y = forward()
    return Ready(lambda: t.autograd.grad(y, a[wanted], a["dy"], retain_graph=True)[0], lambda dx: dx.numpy())


# ------------------------------------------------------------------------------------------- inference engines (NCHW)


def _forward_only(task: Task) -> None:
    if task.direction != "forward":
        raise Skipped("an inference engine: prepares its weights, no gradients")
    if task.layout != "channels_first":
        raise Skipped("takes channels-first tensors only")


def _onnx_model(task: Task, data: Data) -> bytes:
    """A model of the one layer, its weights a constant."""
    from onnx import TensorProto, helper, numpy_helper

    case, g = task.case, task.problem.geometry
    kinds = {"conv": "Conv", "max_pool": "MaxPool", "avg_pool": "AveragePool"}
    attributes: dict[str, Any] = {}
    if case.kernel:
        attributes = {"kernel_shape": case.kernel, "strides": case.stride, "pads": case.padding * 2}
    if case.op == "conv":
        attributes |= {"group": case.groups, "dilations": case.dilation}
    if case.op == "avg_pool" and case.kernel:
        attributes["count_include_pad"] = 1
    node = helper.make_node(
        kinds[case.op] if case.kernel else "GlobalAveragePool", ["x", "w"][: len(data)], ["y"], **attributes
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, g.input_shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, g.output_shape)
    weights = [numpy_helper.from_array(data["w"], "w")] if "w" in data else []
    graph = helper.make_graph([node], "layer", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def onnxruntime(task: Task, data: Data, threads: int) -> Ready:
    """One session, input and output bound to fixed arrays: no copies and no allocation in the timed call."""
    _forward_only(task)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = ort.InferenceSession(_onnx_model(task, data), options, providers=["CPUExecutionProvider"])
    out = np.empty(task.problem.geometry.output_shape, np.float32)
    binding = session.io_binding()
    for bind, name, a in ((binding.bind_input, "x", data["x"]), (binding.bind_output, "y", out)):
        bind(name, "cpu", 0, np.float32, a.shape, a.ctypes.data)
    return Ready(lambda: session.run_with_iobinding(binding), lambda _: out, prepacked="w" in data)


def openvino(task: Task, data: Data, threads: int) -> Ready:
    """One request, one stream, float32 arithmetic asked for (the default is bfloat16 where the CPU has it)."""
    _forward_only(task)
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    core = ov.Core()
    request = core.compile_model(core.read_model(_onnx_model(task, data)), "CPU", settings).create_infer_request()
    out = np.empty(task.problem.geometry.output_shape, np.float32)
    request.set_input_tensor(ov.Tensor(data["x"], shared_memory=True))
    request.set_output_tensor(ov.Tensor(out, shared_memory=True))

    def infer() -> None:
        request.start_async()
        request.wait()

    return Ready(infer, lambda _: out, prepacked="w" in data)


def ncnn(task: Task, data: Data, threads: int) -> Ready:
    """A network of one layer, float32 throughout; its Winograd kernels are allowed."""
    _forward_only(task)
    if task.batch != 1:
        raise Skipped("ncnn takes one image at a time")
    import ncnn as nc

    case = task.case
    p = {1: (case.kernel or (1,))[0], 4: (case.padding or (0,))[0], 3: (case.stride or (1,))[0]}
    if case.op == "conv":
        kind = "ConvolutionDepthWise" if case.groups > 1 else "Convolution" + {1: "1D", 2: "", 3: "3D"}[case.rank]
        p |= {0: case.filters, 2: case.dilation[0], 6: data["w"].size} | ({7: case.groups} if case.groups > 1 else {})
    else:
        kind = "Pooling"
        p = {0: int(case.op == "avg_pool"), 1: p[1], 2: p[3], 3: p[4], 4: int(not case.kernel), 5: 1, 6: 1}
    text = f"7767517\n2 2\nInput in 0 1 x\n{kind} layer 1 1 x y " + " ".join(f"{k}={v}" for k, v in p.items())
    net = nc.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = threads, False
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
        if hasattr(net.opt, f"use_{option}"):
            setattr(net.opt, f"use_{option}", False)
    weights = (b"\0" * 4 + data["w"].tobytes()) if "w" in data else b""
    if net.load_param_mem(text + "\n"):
        raise Skipped(f"ncnn refuses the layer {text.splitlines()[-1]!r}")
    net.load_model_mem(weights)
    data["packed"] = np.frombuffer(weights, np.uint8)  # the network may go on reading them there
    x = nc.Mat(data["x"][0]).clone()

    def infer() -> Any:
        extractor = net.create_extractor()
        extractor.input("x", x)
        return extractor.extract("y")[1]

    shape = task.problem.geometry.output_shape
    return Ready(infer, lambda y: np.array(y).reshape(shape), prepacked="w" in data)


def floor(task: Task, data: Data, threads: int) -> Ready:
    """No library: see :mod:`bench.floor`."""
    from .floor import least

    if task.direction != "forward":
        raise Skipped("measured forward")
    call, share, note = least(task, threads)
    return Ready(call, None, note=note, share=share)


FLOOR = "floor"
LIBRARIES: dict[str, Callable[[Task, Data, int], Ready]] = {
    "fastconv": fastconv,
    "fastconv-one-thread": fastconv_one_thread,
    "fastconv-direct": partial(fastconv, algorithm="direct"),
    "fastconv-im2col": partial(fastconv, algorithm="im2col"),
    "torch": torch,
    "torch-channels-last": partial(torch, channels_last=True),
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ncnn": ncnn,
    FLOOR: floor,
}
