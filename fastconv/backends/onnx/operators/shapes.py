"""Operators that only move data, or say what shape it has: views wherever NumPy gives one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..graph import Array
from .task import Call, Spec, Task, operator


def _known(array: Any) -> Task:
    array = np.asarray(array)
    return Task((Spec(array.shape, array.dtype),), known=array)


def _reshaped(call: Call, shape: Sequence[int]) -> Task:
    """The first input in another shape: a view of what is contiguous."""
    spec = call.spec()
    target = tuple(int(n) for n in shape)
    if math.prod(target) != math.prod(spec.shape) or min(target, default=0) < 0:
        raise ValueError(f"{call.node}: cannot reshape {spec.shape} to {target}")

    def copy(x: Array, out: Array) -> None:
        out.reshape(spec.shape)[...] = x

    return Task((Spec(target, spec.dtype),), copy, (0,), view=lambda x: x.reshape(target), strided=False)


@operator("Constant")
def constant(call: Call) -> Task | None:
    node = call.node
    if "value" in node.attributes:
        return _known(node.attributes["value"])
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                        ("value_ints", np.int64)):  # fmt: skip
        if name in node.attributes:
            return _known(np.asarray(node.attributes[name], dtype))
    return None


@operator("ConstantOfShape")
def constant_of_shape(call: Call) -> Task | None:
    wanted = call.integers(0, "shape")
    if wanted is None:
        return None
    if min(wanted, default=0) < 0:
        raise ValueError(f"{call.node}: a shape of {wanted}")
    value = np.asarray(call.attribute("value", np.zeros(1, np.float32))).reshape(-1)[0]
    return Task((Spec(tuple(wanted), value.dtype),), lambda out: out.fill(value))


@operator("Shape")
def shape(call: Call) -> Task | None:
    sizes = call.spec().shape
    return _known(np.asarray(sizes[call.attribute("start", 0) : call.attribute("end")], np.int64))


@operator("Size")
def size(call: Call) -> Task | None:
    return _known(np.asarray(math.prod(call.spec().shape), np.int64))


@operator("Identity")
def identity(call: Call) -> Task | None:
    return Task((call.spec(),), lambda x, out: np.copyto(out, x), (0,), view=lambda x: x, orders="any")


@operator("Reshape")
def reshape(call: Call) -> Task | None:
    wanted = call.integers(1, "shape")
    if wanted is None:
        return None
    sizes = call.spec().shape
    if not call.attribute("allowzero", 0):
        if any(n == 0 and i >= len(sizes) for i, n in enumerate(wanted)):
            raise ValueError(f"{call.node}: 0 in the shape {wanted} copies a dimension that {sizes} does not have")
        wanted = [sizes[i] if n == 0 else n for i, n in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = math.prod(n for n in wanted if n != -1)
        if rest <= 0 or math.prod(sizes) % rest:
            raise ValueError(f"{call.node}: cannot reshape {sizes} to {tuple(wanted)}")
        wanted[wanted.index(-1)] = math.prod(sizes) // rest
    return _reshaped(call, wanted)


@operator("Flatten")
def flatten(call: Call) -> Task | None:
    sizes, axis = call.spec().shape, call.attribute("axis", 1)
    axis = axis + len(sizes) if axis < 0 else axis
    return _reshaped(call, (math.prod(sizes[:axis]), math.prod(sizes[axis:])))


@operator("Squeeze")
def squeeze(call: Call) -> Task | None:
    sizes, axes = call.spec().shape, call.integers(1, "axes")
    if axes is None:
        if call.unknown(1):
            return None
        axes = [i for i, n in enumerate(sizes) if n == 1]
    dropped = {call.axis(a, len(sizes)) for a in axes} if sizes else set()
    return _reshaped(call, [n for i, n in enumerate(sizes) if i not in dropped])


@operator("Unsqueeze")
def unsqueeze(call: Call) -> Task | None:
    sizes, axes = list(call.spec().shape), call.integers(1, "axes")
    if axes is None:
        return None
    rank = len(sizes) + len(axes)
    for axis in sorted(call.axis(a, rank) for a in axes):
        sizes.insert(axis, 1)
    return _reshaped(call, sizes)


@operator("Transpose")
def transpose(call: Call) -> Task | None:
    spec = call.spec()
    order = tuple(call.attribute("perm", range(len(spec.shape))[::-1]))
    made = Spec(tuple(spec.shape[i] for i in order), spec.dtype)
    return Task((made,), lambda x, out: np.copyto(out, x.transpose(order)), (0,), view=lambda x: x.transpose(order))


@operator("Concat")
def concat(call: Call) -> Task | None:
    specs = [call.spec(i) for i in call.present]
    rank = len(specs[0].shape)
    if not rank or len({s.dtype for s in specs}) > 1:
        return None
    axis = call.axis(call.attribute("axis", 1), rank)
    if any(s.shape[:axis] + s.shape[axis + 1 :] != specs[0].shape[:axis] + specs[0].shape[axis + 1 :] for s in specs):
        raise ValueError(f"{call.node}: cannot join shapes {[s.shape for s in specs]} along axis {axis}")
    joined = sum(s.shape[axis] for s in specs)
    made = Spec((*specs[0].shape[:axis], joined, *specs[0].shape[axis + 1 :]), specs[0].dtype)

    def run(*arrays: Array) -> None:
        np.concatenate(arrays[:-1], axis=axis, out=arrays[-1])

    return Task((made,), run, call.present, orders="any")


@operator("Split")
def split(call: Call) -> Task | None:
    spec, count = call.spec(), len(call.node.outputs)
    axis = call.axis(call.attribute("axis", 0), len(spec.shape))
    whole, parts = spec.shape[axis], call.integers(1, "split")
    if parts is None:
        if call.unknown(1):
            return None
        each = -(-whole // count)
        parts = [min(each, whole - i * each) for i in range(count)]
    if sum(parts) != whole or len(parts) != count or min(parts) < 0:
        raise ValueError(f"{call.node}: cannot split {whole} into {parts}")
    ends = np.cumsum([0, *parts])
    before = (slice(None),) * axis
    made = tuple(Spec((*spec.shape[:axis], n, *spec.shape[axis + 1 :]), spec.dtype) for n in parts)

    def run(x: Array, *outs: Array) -> None:
        for i, out in enumerate(outs):
            np.copyto(out, x[(*before, slice(ends[i], ends[i + 1]))])

    return Task(made, run, (0,), orders="any")


@operator("Slice")
def slices(call: Call) -> Task | None:
    if call.unknown(1, 2, 3, 4):
        return None
    spec = call.spec()
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    axes, steps = call.integers(3, "axes"), call.integers(4, "steps")
    if starts is None or ends is None:
        return None
    index = [slice(None)] * len(spec.shape)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = i if axes is None else call.axis(axes[i], len(spec.shape)), 1 if steps is None else steps[i]
        n = spec.shape[axis]
        least, most = (0, n) if step > 0 else (-1, n - 1)
        begin = min(max(start + n if start < 0 else start, 0), most)
        stop = min(max(end + n if end < 0 else end, least), most if step > 0 else n - 1)
        index[axis] = slice(begin, None if step < 0 and stop < 0 else stop, step)
    chosen = tuple(index)
    made = tuple(len(range(*s.indices(n))) for s, n in zip(chosen, spec.shape, strict=True))
    return Task((Spec(made, spec.dtype),), lambda x, out: np.copyto(out, x[chosen]), (0,), view=lambda x: x[chosen])


@operator("Gather")
def gather(call: Call) -> Task | None:
    spec, places = call.spec(0), call.spec(1)
    axis = call.axis(call.attribute("axis", 0), len(spec.shape))
    made = Spec((*spec.shape[:axis], *places.shape, *spec.shape[axis + 1 :]), spec.dtype)

    def run(x: Array, indices: Array, out: Array) -> None:
        n = x.shape[axis]
        if indices.size and not (-n <= indices.min() and indices.max() < n):
            raise ValueError(f"{call.node}: indices must lie in [-{n}, {n})")
        out[...] = np.take(x, indices, axis=axis)

    return Task((made,), run, (0, 1))


@operator("Cast")
def cast(call: Call) -> Task | None:
    from onnx import helper

    spec = call.spec()
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(call.attribute("to")))
    plain = {spec.dtype.kind, dtype.kind} <= set("fiub") and not (spec.dtype.kind == "f" and dtype.kind in "iu")
    if not plain or "float8" in spec.dtype.name + dtype.name:  # rounding and saturation: the reference knows
        return None
    return Task((Spec(spec.shape, dtype),), lambda x, out: np.copyto(out, x, casting="unsafe"), (0,), orders="any")


@operator("Expand")
def expand(call: Call) -> Task | None:
    wanted = call.integers(1, "shape")
    if wanted is None:
        return None
    spec = call.spec()
    made = np.broadcast_shapes(spec.shape, tuple(wanted))
    return Task((Spec(made, spec.dtype),), lambda x, out: np.copyto(out, x), (0,))


@operator("Pad")
def pad(call: Call) -> Task | None:
    spec = call.spec()
    pads = call.integers(1, "pads")
    rank = len(spec.shape)
    if pads is None or call.unknown(2, 3) or call.attribute("mode", "constant") != "constant":
        return None
    axes = [call.axis(a, rank) for a in call.integers(3, "axes") or range(rank)]
    value = call.constant(2)
    fill = call.attribute("value", 0.0) if value is None else value.item()
    around = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        around[axis] = (pads[i], pads[i + len(axes)])
    made = tuple(a + n + b for (a, b), n in zip(around, spec.shape, strict=True))
    if min(made, default=1) < 0:
        raise ValueError(f"{call.node}: padding {around} leaves nothing of {spec.shape}")
    given = tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(around, spec.shape, strict=True))
    inner = tuple(slice(max(a, 0), m - max(b, 0)) for (a, b), m in zip(around, made, strict=True))

    def run(x: Array, out: Array) -> None:
        out[...] = fill
        out[inner] = x[given]

    return Task((Spec(made, spec.dtype),), run, (0,), orders="any")


@operator("Resize", "Upsample")
def resize(call: Call) -> Task | None:
    """Nearest neighbours, where every output is a whole multiple of the input; anything else is the reference's."""
    spec = call.spec()
    scales_at = 1 if call.node.op == "Upsample" or call.node.version < 11 else 2
    if call.attribute("mode", "nearest") != "nearest" or call.unknown(1, 2, 3):
        return None
    scales = call.constant(scales_at)
    sizes = call.constant(3) if scales_at == 2 else None
    if scales is not None and scales.size:
        factors = [float(f) for f in scales]
    elif sizes is not None and call.attribute("keep_aspect_ratio_policy", "stretch") == "stretch":
        factors = [int(m) / max(n, 1) for m, n in zip(sizes, spec.shape, strict=False)]
    else:
        return None
    if len(factors) != len(spec.shape) or any(f != int(f) or f < 1 for f in factors):
        return None
    mode = call.attribute("coordinate_transformation_mode", "half_pixel")
    nearest = call.attribute("nearest_mode", "round_prefer_floor")
    corners = mode == "asymmetric" and nearest == "floor"
    centres = mode in ("half_pixel", "half_pixel_symmetric") and nearest.startswith("round")
    if not (corners or centres or scales_at == 1) or call.attribute("axes") not in (None, list(range(len(factors)))):
        return None
    n = [int(f) for f in factors]
    made = tuple(f * s for f, s in zip(n, spec.shape, strict=True))
    split_out = tuple(v for f, s in zip(n, spec.shape, strict=True) for v in (s, f))
    split_in = tuple(v for s in spec.shape for v in (s, 1))

    def run(x: Array, out: Array) -> None:
        out.reshape(split_out)[...] = x.reshape(split_in)

    return Task((Spec(made, spec.dtype),), run, (0,))
