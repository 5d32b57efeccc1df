"""The networks of :mod:`bench.networks` as ONNX models, as an exporter would write them: nothing folded or fused.

>>> from bench.onnx_models import NETWORKS, build
>>> model = build("resnet18")

Weights are random, scaled to keep the size of what passes through; batch normalisation has statistics and scales as a
trained network might have them, so that folding them wrongly shows. Any batch, height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET, IR = 17, 8


class Builder:
    """Nodes and weights, in the order in which they are asked for. Methods take and give names."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant(self.random.standard_normal(shape, np.float32) * np.float32(scale))

    def conv(
        self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> str:
        w = self.normal(outputs, inputs // groups, kernel, kernel, scale=(2 / (inputs // groups * kernel**2)) ** 0.5)
        more = (self.normal(outputs, scale=0.1),) if bias else ()
        return self.node(
            "Conv", x, w, *more, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups,
            dilations=[1, 1],
        )  # fmt: skip

    def norm(self, x: str, channels: int) -> str:
        uniform = self.random.uniform
        scale, variance = uniform(0.5, 1.0, channels), uniform(0.5, 1.5, channels)
        shift, mean = (self.normal(channels, scale=0.1) for _ in range(2))
        return self.node("BatchNormalization", x, self.constant(scale), shift, mean, self.constant(variance))

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.constant(0), self.constant(6))

    def max_pool(self, x: str, kernel: int, stride: int, padding: int = 0) -> str:
        return self.node("MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        w = self.normal(outputs, inputs, scale=inputs**-0.5)
        return self.node("Gemm", x, w, self.normal(outputs, scale=0.1), transB=1)

    def head(self, x: str, channels: int) -> str:
        return self.linear(self.node("Flatten", self.node("GlobalAveragePool", x)), channels, 1000)


def resnet(b: Builder, x: str, depths: tuple[int, ...], bottleneck: bool) -> str:
    """He et al., arXiv:1512.03385, table 1; the stride of a bottleneck is its 3×3 convolution's ("v1.5")."""
    x = b.max_pool(b.relu(b.norm(b.conv(x, 3, 64, 7, 2), 64)), 3, 2, 1)
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        outputs = 4 * width if bottleneck else width
        for i in range(depth):
            stride = 2 if stage and not i else 1
            if bottleneck:
                y = b.relu(b.norm(b.conv(x, channels, width, 1), width))
                y = b.relu(b.norm(b.conv(y, width, width, 3, stride), width))
                y = b.norm(b.conv(y, width, outputs, 1), outputs)
            else:
                y = b.relu(b.norm(b.conv(x, channels, width, 3, stride), width))
                y = b.norm(b.conv(y, width, width, 3), width)
            if stride != 1 or channels != outputs:
                x = b.norm(b.conv(x, channels, outputs, 1, stride), outputs)
            x, channels = b.relu(b.node("Add", y, x)), outputs
    return b.head(x, channels)


def vgg16(b: Builder, x: str, dense: bool = True) -> str:
    """Simonyan and Zisserman, arXiv:1409.1556, table 1, column D; or what comes before its dense layers."""
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            x = b.relu(b.conv(x, channels, width, 3, bias=True))
            channels = width
        x = b.max_pool(x, 2, 2)
    if not dense:
        return x
    x = b.node("Flatten", x)
    for inputs, outputs in ((512 * 7 * 7, 4096), (4096, 4096)):
        x = b.relu(b.linear(x, inputs, outputs))
    return b.linear(x, 4096, 1000)


def mobilenetv2(b: Builder, x: str) -> str:
    """Sandler et al., arXiv:1801.04381, table 2."""
    x = b.relu6(b.norm(b.conv(x, 3, 32, 3, 2), 32))
    channels = 32
    for expansion, width, depth, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(depth):
            stride, hidden, y = 1 if i else first_stride, channels * expansion, x
            if expansion != 1:
                y = b.relu6(b.norm(b.conv(y, channels, hidden, 1), hidden))
            y = b.relu6(b.norm(b.conv(y, hidden, hidden, 3, stride, hidden), hidden))
            y = b.norm(b.conv(y, hidden, width, 1), width)
            x, channels = b.node("Add", x, y) if stride == 1 and channels == width else y, width
    return b.head(b.relu6(b.norm(b.conv(x, channels, 1280, 1), 1280)), 1280)


def unet(b: Builder, x: str, widths: tuple[int, ...] = (32, 64, 128, 256), classes: int = 21) -> str:
    """Ronneberger et al., arXiv:1505.04597, figure 1, with fewer and padded levels and batch normalisation."""

    def level(x: str, inputs: int, width: int) -> str:
        x = b.relu(b.norm(b.conv(x, inputs, width, 3), width))
        return b.relu(b.norm(b.conv(x, width, width, 3), width))

    passed, channels = [], 3
    for width in widths[:-1]:
        passed.append(level(x, channels, width))
        x, channels = b.max_pool(passed[-1], 2, 2), width
    x = level(x, channels, widths[-1])
    for below, width in list(zip(widths[1:], widths[:-1], strict=True))[::-1]:
        up = b.node(
            "ConvTranspose", x, b.normal(below, width, 2, 2, scale=below**-0.5), b.normal(width, scale=0.1),
            kernel_shape=[2, 2], strides=[2, 2],
        )  # fmt: skip
        x = level(b.node("Concat", passed.pop(), up, axis=1), 2 * width, width)
    return b.conv(x, widths[0], classes, 1, bias=True)


NETWORKS: dict[str, Callable[[Builder, str], str]] = {
    "resnet18": partial(resnet, depths=(2, 2, 2, 2), bottleneck=False),
    "resnet50": partial(resnet, depths=(3, 4, 6, 3), bottleneck=True),
    "vgg16": vgg16,
    "vgg16-convolutions": partial(vgg16, dense=False),
    "mobilenetv2": mobilenetv2,
    "unet": unet,
}


def build(name: str, seed: int = 0) -> ModelProto:
    """A network of ``NETWORKS``, the same for the same seed; input ``x``, output ``y``."""
    b = Builder(seed)
    y = NETWORKS[name](b, "x")
    b.nodes[-1].output[0] = "y"
    assert y != "x"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(b.nodes, name, [x], [given], b.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
