"""Rewriting a graph so that less is left to run. Each pass takes a graph and returns a graph with the same results.

:data:`PASSES` need no shapes and run once a model. :func:`fuse_residuals` compares shapes, so it runs when these are
known, followed by :func:`fuse_activations` once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .graph import Array, Graph, Node
from .operators.arithmetic import normalisation

CONVOLUTIONS = ("Conv", "ConvTranspose")
LARGEST_FOLDED = 64 << 20
"""Bytes: a larger constant is computed anew at each run rather than kept."""
FOLDED_IN_ALL = 1 << 30
"""Bytes of all of them: a small model may ask for more than any machine has."""


def optimise(graph: Graph) -> Graph:
    """All passes that need no shapes, in order."""
    for each in PASSES:
        graph = each(graph)
    return graph


def _plain(node: Node) -> bool:
    return node.domain == "" and not node.captured


def renamed(graph: Graph, names: Mapping[str, str], nodes: list[Node]) -> Graph:
    """The graph of these nodes, reading other names in place of some; chains of renamings are followed."""
    if not names:
        return graph.with_nodes(nodes)

    def now(name: str) -> str:
        while name in names:
            name = names[name]
        return name

    nodes = [replace(n, inputs=tuple(map(now, n.inputs))) for n in nodes]
    return graph.with_nodes(nodes)


# ------------------------------------------------------------------------------------------------------ what falls away


def inline_constants(graph: Graph) -> Graph:
    """Constant nodes become constants."""
    from .operators import Call, task_of

    constants, nodes = {}, []
    for node in graph.nodes:
        task = task_of(Call(node, (), ())) if node.op == "Constant" and node.domain == "" else None
        if task is None or task.known is None:
            nodes.append(node)
        else:
            constants[node.outputs[0]] = task.known
    return graph.with_nodes(nodes, constants)


def fold_constants(graph: Graph) -> Graph:
    """Nodes of nothing but constants become constants."""
    from .operators import evaluate

    constants, nodes, left = dict(graph.constants), [], FOLDED_IN_ALL
    for node in graph.nodes:
        found = None
        if node.inputs and not node.captured and all(name in constants for name in node.inputs if name):
            found = evaluate(node, [constants.get(name) for name in node.inputs], min(LARGEST_FOLDED, left))
        if found is None:
            nodes.append(node)
        else:
            constants.update((name, value) for name, value in zip(node.outputs, found, strict=False) if name)
            left -= sum(value.nbytes for value in found)
    return graph.with_nodes(nodes, constants)


def remove_identities(graph: Graph) -> Graph:
    """Identity, and Dropout as it is when nothing is being trained. One that gives an output of the graph stays."""
    names, nodes = {}, []
    uses = graph.uses()
    for node in graph.nodes:
        idle = _plain(node) and (node.op == "Identity" or (node.op == "Dropout" and _inert(graph, node, uses)))
        if idle and node.outputs[0] not in graph.outputs:
            names[node.outputs[0]] = node.inputs[0]
        elif idle and node.op == "Dropout":
            nodes.append(Node("Identity", node.inputs[:1], node.outputs[:1], name=node.name, version=node.version))
        else:
            nodes.append(node)
    return renamed(graph, names, nodes)


def _inert(graph: Graph, node: Node, uses: Mapping[str, int]) -> bool:
    """Whether a Dropout drops nothing, and nobody asks for its mask."""
    if any(uses.get(name) for name in node.outputs[1:]):
        return False
    if node.version < 7:
        return bool(node.attributes.get("is_test", 0))
    return not node.has(2) or (node.inputs[2] in graph.constants and not graph.constants[node.inputs[2]].any())


def remove_dead(graph: Graph) -> Graph:
    """Nodes whose results nobody reads, and constants likewise."""
    wanted, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if any(name in wanted for name in node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    constants = {name: value for name, value in graph.constants.items() if name in wanted}
    return replace(graph, nodes=tuple(reversed(kept)), constants=constants)


# -------------------------------------------------------------------------------------------------- into a convolution


class _Followers:
    """Merging a convolution with what alone reads its result."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.uses = graph, graph.uses()
        self.producers = graph.producers()

    def convolution(self, name: str) -> Node | None:
        """The convolution that gives ``name``, if nothing but one node reads it."""
        node = self.producers.get(name)
        fits = node is not None and _plain(node) and node.op in CONVOLUTIONS and self.uses[name] == 1
        return node if fits and name not in self.graph.outputs else None

    def dense(self, name: str) -> Node | None:
        """The dense layer, its weights constant, that gives ``name``, if nothing but one node reads it."""
        node = self.producers.get(name)
        fits = node is not None and _plain(node) and node.op == "Gemm" and self.uses[name] == 1
        if not fits or node is None or name in self.graph.outputs or node.attributes.get("transA", 0):
            return None
        constants = [self.graph.constants.get(name) for name in node.inputs[1:] if name]
        known = all(c is not None and c.dtype.kind == "f" and c.size for c in constants)
        return node if known and all(c is not None and c.ndim == 1 for c in constants[1:]) else None

    def merge(self, convolution: Node, follower: Node, **changes: Any) -> Node:
        """``follower`` is done by the convolution from now on, which takes its place in the order."""
        merged = replace(convolution, outputs=follower.outputs[:1], proto=None, **changes)
        self.producers.pop(convolution.outputs[0])
        self.producers[follower.outputs[0]] = merged
        return merged


def _walk(graph: Graph, rewrite: Any) -> Graph:
    """``rewrite(node, followers)`` gives (the convolution that goes, the node that comes), or None to leave a node."""
    followers, nodes, constants = _Followers(graph), {}, {}
    for node in graph.nodes:
        found = rewrite(node, followers) if _plain(node) else None
        if found is None:
            nodes[node.outputs] = node
            continue
        gone, merged, more = found
        del nodes[gone.outputs]
        nodes[merged.outputs] = merged
        constants.update(more)
    return graph.with_nodes(nodes.values(), constants)


def fold_affine(graph: Graph) -> Graph:
    """Batch normalisation, and sums and products with a constant for each channel, into weights and bias.

    In float64, rounded once a node.
    """
    constants = dict(graph.constants)
    taken = {*graph.inputs, *graph.producers()}

    def new(node: Node, what: str) -> str:
        name = f"{node.outputs[0]}/{what}"
        while name in constants or name in taken:
            name += "'"
        return name

    def rewrite(node: Node, followers: _Followers) -> Any:
        for place in range(min(2 if node.op in ("Add", "Mul") else 1, len(node.inputs))):
            convolution = followers.convolution(node.inputs[place])
            if convolution is None or "activation" in convolution.attributes or convolution.has(3):
                continue
            names = [name for name in convolution.inputs[1:3] if name]
            if any(name not in constants for name in names):
                continue
            change = _affine(node, place, constants, constants[convolution.inputs[1]].ndim)
            if change is not None:
                scaled = _scaled(convolution, [constants[name] for name in names], *change)
                if scaled is None:
                    continue
                more = dict(zip((new(node, "weights"), new(node, "bias")), scaled, strict=True))
                constants.update(more)
                return convolution, followers.merge(convolution, node, inputs=(convolution.inputs[0], *more)), more
        return None

    return _walk(graph, rewrite)


def _affine(node: Node, place: int, constants: Mapping[str, Array], rank: int) -> tuple[Array, Array] | None:
    """Factors and summands of each channel (or of all), where the node computes factor * x + summand."""
    if node.op == "BatchNormalization":
        known = [constants.get(name) for name in node.inputs]
        training = node.attributes.get("training_mode", 0) or any(node.outputs[1:])
        if training or any(v is None for v in known[1:5]):
            return None
        return normalisation(known, node.attributes.get("epsilon", 1e-5))
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2 or node.version < 7:
        return None
    other = constants.get(node.inputs[1 - place])
    if other is None or other.dtype.kind != "f" or other.ndim > rank:
        return None
    shape = (1,) * (rank - other.ndim) + other.shape
    if shape[0] != 1 or any(n != 1 for n in shape[2:]):
        return None
    value, one, zero = other.astype(np.float64).reshape(-1), np.ones(1), np.zeros(1)
    if node.op in ("Add", "Sub"):
        return one, value if node.op == "Add" else -value
    return (value if node.op == "Mul" else 1 / value), zero


def _scaled(convolution: Node, weights: list[Array], factor: Array, summand: Array) -> tuple[Array, Array] | None:
    """Weights and bias of ``factor * convolution + summand``, None where there are none."""
    w, groups = weights[0], convolution.attributes.get("group", 1)
    transposed = convolution.op == "ConvTranspose"
    channels = w.shape[1] * groups if transposed else w.shape[0]
    if any(v.shape not in ((1,), (channels,)) for v in (factor, summand)):
        return None  # one channel that becomes several
    factor, summand = (np.broadcast_to(v, (channels,)) for v in (factor, summand))
    bias = weights[1].astype(np.float64) if len(weights) > 1 else np.zeros(channels)
    if transposed:  # (C_in, C_out/groups, …): the groups of output channels lie along the first axis
        by_group = w.astype(np.float64).reshape(groups, -1, *w.shape[1:])
        wide = (by_group * factor.reshape(groups, 1, -1, *(1,) * (w.ndim - 2))).reshape(w.shape)
    else:
        wide = w.astype(np.float64) * factor.reshape(-1, *(1,) * (w.ndim - 1))
    new = wide.astype(w.dtype), (bias * factor + summand).astype(w.dtype)
    # an infinite factor times a weight of 0 is NaN, times a sum of products it may be infinite
    return new if all(np.isfinite(v.astype(np.float64)).all() for v in new) else None


def fuse_activations(graph: Graph) -> Graph:
    """An activation after a convolution or a dense layer becomes part of it; x * sigmoid(x), which is SiLU, too."""

    def rewrite(node: Node, followers: _Followers) -> Any:
        name = _activation(node, graph.constants)
        convolution = followers.convolution(node.inputs[0]) if name else None
        if name and convolution is None:
            convolution = followers.dense(node.inputs[0])
        if convolution is None or "activation" in convolution.attributes:
            return None
        attributes = {**convolution.attributes, "activation": name}
        return convolution, followers.merge(convolution, node, attributes=attributes), {}

    return _walk(_joined_silu(graph), rewrite)


def _activation(node: Node, constants: Mapping[str, Array]) -> str | None:
    """The name under which a convolution fuses what the node does."""
    read = node.attributes.get
    if node.op in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Silu"):
        return node.op.lower()
    if node.op == "LeakyRelu":
        return "leaky_relu" if abs(read("alpha", 0.01) - 0.01) < 1e-9 else None
    if node.op == "Gelu":
        return "gelu" if read("approximate", "none") == "none" else None
    if node.op == "Clip":
        if any(name and name not in constants for name in node.inputs[1:]):
            return None
        bounds = [constants[node.inputs[i]].item() if node.has(i) else read(key) for i, key in ((1, "min"), (2, "max"))]
        names: dict[tuple[Any, ...], str] = {(0, 6): "relu6", (0, None): "relu"}
        return names.get(tuple(bounds))
    return None


def _joined_silu(graph: Graph) -> Graph:
    """Sigmoid and Mul, or HardSigmoid and Mul, of one convolution's result become one node; Swish likewise."""
    producers, uses = graph.producers(), graph.uses()
    gone, nodes = set(), {}
    for node in graph.nodes:
        nodes[node.outputs] = node
        if not _plain(node) or node.op not in ("Mul", "Swish"):
            continue
        if node.op == "Swish":
            x = node.inputs[0]
            alone = uses[x] == 1 and x not in graph.outputs
            if alone and node.attributes.get("alpha", 1.0) == 1.0 and _from_convolution(producers, x):
                nodes[node.outputs] = replace(node, op="Silu", proto=None)
            continue
        for x, gate in (node.inputs, node.inputs[::-1]):
            sigmoid = producers.get(gate)
            if sigmoid is None or not _plain(sigmoid) or sigmoid.inputs[:1] != (x,) or uses[gate] != 1 or uses[x] != 2:
                continue
            name = {"Sigmoid": "Silu", "HardSigmoid": "HardSwish"}.get(sigmoid.op)
            if sigmoid.op == "HardSigmoid":
                alpha, beta = (sigmoid.attributes.get(k, v) for k, v in (("alpha", 0.2), ("beta", 0.5)))
                name = name if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5 else None
            if name and gate not in graph.outputs and x not in graph.outputs and _from_convolution(producers, x):
                gone.add(sigmoid.outputs)
                nodes[node.outputs] = replace(node, op=name, inputs=(x,), attributes={}, proto=None)
                break
    return graph.with_nodes(n for outputs, n in nodes.items() if outputs not in gone)


def _from_convolution(producers: Mapping[str, Node], name: str) -> bool:
    """Whether a convolution gives this, one that has no activation yet: then what follows is sure to be fused."""
    node = producers.get(name)
    return node is not None and node.op in CONVOLUTIONS and _plain(node) and "activation" not in node.attributes


def fuse_residuals(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """A sum of a convolution's result and an array of its shape becomes part of the convolution, the later of two."""
    order = {node.outputs[0]: i for i, node in enumerate(graph.nodes) if node.outputs}

    def rewrite(node: Node, followers: _Followers) -> Any:
        if node.op not in ("Add", "Sum") or len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
            return None
        x, y = node.inputs
        if shapes.get(x) is None or shapes.get(x) != shapes.get(y):
            return None
        for mine, other in sorted(((x, y), (y, x)), key=lambda pair: -order.get(pair[0], -1)):
            convolution = followers.convolution(mine)
            fits = convolution is not None and convolution.op == "Conv" and not convolution.has(3)
            if fits and convolution is not None and "activation" not in convolution.attributes:
                inputs = (*convolution.inputs, "")[:3]
                return convolution, followers.merge(convolution, node, inputs=(*inputs, other)), {}
        return None

    return _walk(graph, rewrite)


def absorb_pads(graph: Graph) -> Graph:
    """Zeros around the image, added for a convolution or an average that counts them, become its own padding."""
    producers, uses = graph.producers(), graph.uses()
    gone, nodes = set(), []
    for node in graph.nodes:
        padding = producers.get(node.inputs[0]) if node.inputs else None
        around = None
        if padding is not None and _plain(node) and _plain(padding) and uses[node.inputs[0]] == 1:
            around = _absorbed(node, padding, graph.constants)
        if around is None or padding is None or node.inputs[0] in graph.outputs:
            nodes.append(node)
            continue
        gone.add(padding.outputs)
        own = node.attributes.get("pads") or [0] * len(around)
        attributes = {**node.attributes, "pads": [a + b for a, b in zip(around, own, strict=True)]}
        nodes.append(replace(node, inputs=(padding.inputs[0], *node.inputs[1:]), attributes=attributes, proto=None))
    return graph.with_nodes(n for n in nodes if n.outputs not in gone)


def _absorbed(node: Node, padding: Node, constants: Mapping[str, Array]) -> list[int] | None:
    """The padding of the spatial dimensions as the attribute ``pads``, where it can be the node's own."""
    if padding.op != "Pad" or padding.attributes.get("mode", "constant") != "constant" or padding.has(3):
        return None
    if node.op == "AveragePool":
        own = any(node.attributes.get("pads") or ()) and not node.attributes.get("count_include_pad", 0)
        if own or not node.attributes.get("count_include_pad", 0) or node.attributes.get("ceil_mode", 0):
            return None
    elif node.op != "Conv":
        return None
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
        return None
    known = [constants.get(name) if name else np.zeros(1) for name in padding.inputs[1:3]]
    if any(v is None or (i == 1 and v.any()) for i, v in enumerate(known)) or padding.attributes.get("value", 0):
        return None
    pads = known[0].tolist() if known and known[0] is not None else padding.attributes.get("pads", [])
    rank = len(pads) // 2
    before, after = pads[:rank], pads[rank:]
    if rank < 3 or min(pads) < 0 or any(before[:2]) or any(after[:2]):
        return None
    kernel = node.attributes.get("kernel_shape", ())
    around = [int(n) for n in (*before[2:], *after[2:])]
    if node.op == "AveragePool":
        before_that = node.attributes.get("pads") or [0] * len(around)
        if any(p + q >= k for p, q, k in zip(around, before_that, [*kernel, *kernel], strict=True)):
            return None  # a window wholly on padding
    return around


PASSES = (
    inline_constants, fold_constants, remove_identities, absorb_pads, fold_affine, fuse_activations, remove_dead,
)  # fmt: skip
