"""Running a whole model: :class:`Executor`."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from ...arguments import is_sequence
from ...settings import check_threads, options
from . import passes
from .graph import Array, Value, build
from .model import load
from .operators import Packed
from .program import Program, Region, Row, Settings

PROGRAMS = 8
"""Signatures of inputs for which a model is kept compiled."""


class Explanation:
    """How a model runs, node by node; ``print`` shows a table. ``fallbacks`` are the rows run by ``onnx.reference``."""

    def __init__(self, rows: Sequence[Row], folded: int, arena: int) -> None:
        self.rows, self.folded, self.arena = tuple(rows), folded, arena
        self.fallbacks = tuple(row for row in rows if row.how == "onnx.reference")

    def __str__(self) -> str:
        lines = [f"{len(self.rows)} steps of {self.folded} nodes, {self.arena / 1e6:.1f} MB for what lies between them"]
        lines += [f"{'operator':<20}{'runs as':<34}{'gives':<20}{'order':<16}name"]
        for r in self.rows:
            order = "channels last" if r.channels_last else "channels first" if len(r.shape) > 2 else ""
            lines.append(f"{r.op:<20}{r.how:<34}{'x'.join(map(str, r.shape)):<20}{order:<16}{r.name}")
        return "\n".join(lines)


class Executor:
    """An ONNX model on fastconv's kernels.

    >>> import numpy as np
    >>> from onnx import TensorProto, helper
    >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, 8, 8]) for n in "xy")
    >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    >>> model = Executor(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))
    >>> model.run([np.full((1, 3, 8, 8), -1, np.float32)])[0].max()
    np.float32(0.0)

    A run with inputs of new shapes compiles the model for them: shapes are inferred, convolutions planned and their
    weights packed, memory laid out. The last eight sets of shapes are kept. Threads that run one executor wait for each
    other.

    Parameters
    ----------
    model : a path, the bytes of a file, or an ``onnx.ModelProto``.
    threads : CPU threads to use; None means as many as :func:`fastconv.get_num_threads` says.

    Raises
    ------
    ValueError : the model is damaged, or not what ONNX allows; no such number of threads.
    TypeError : ``model`` is none of those; ``threads`` is no integer.
    """

    def __init__(self, model: Any, *, threads: int | None = None) -> None:
        if threads is not None:
            check_threads("prepare", threads, "threads")
        loaded = load(model)
        graph = build(loaded.proto, loaded.folder, loaded.tensors)
        self.nodes = len(graph.nodes)
        with np.errstate(all="ignore"):
            graph = passes.optimise(graph)
        self.inputs: Mapping[str, Value] = graph.inputs
        self.outputs = graph.outputs
        self.threads = threads
        self._region = Region(graph, Settings(Packed(), PROGRAMS))
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Any] | Mapping[str, Any]) -> tuple[Array, ...]:
        """The outputs for these inputs: arrays in the model's order, or by name. They are left as they are.

        Raises
        ------
        ValueError : an input is missing or unknown, or its shape does not fit.
        TypeError : an input is not an array, or of another dtype.
        """
        given = self._checked(inputs)
        with self._running():
            results = self._region.run(given)
        return tuple(results[name] for name in self.outputs)

    def profile(self, inputs: Sequence[Any] | Mapping[str, Any], *, repeats: int = 10) -> list[Row]:
        """The steps of a run with the seconds that each takes, the median of ``repeats`` runs after one to warm up."""
        given = self._checked(inputs)
        runs: list[list[Row]] = []
        with self._running():
            for _ in range(repeats + 1):
                rows: list[Row] = []
                self._region.run(given, rows)
                runs.append(rows)
        return [
            row._replace(seconds=statistics.median(r[i].seconds or 0.0 for r in runs[1:]))
            for i, row in enumerate(runs[-1])
        ]

    def explain(self, inputs: Sequence[Any] | Mapping[str, Any] | None = None) -> Explanation:
        """How the model runs: for these inputs, for those of the last run, or for the shapes that the model states.

        Raises
        ------
        ValueError : there was no run yet, no inputs are given, and the model does not state all shapes.
        """
        with self._running():
            if inputs is None and not self._region.programs:
                inputs = self._stated()
            if inputs is not None:
                self._region.run(self._checked(inputs))
            program: Program | None = next(reversed(self._region.programs.values()))
            rows: list[Row] = []
            arena = 0
            while program is not None:
                rows += program.rows()
                arena += program.block.nbytes
                last, rest = program.last, None
                if last is not None:
                    rows.append(Row(last.label, last.op, program.how, (), False))
                    rest = next(reversed(program.rest.programs.values()), None)
                program = rest
        return Explanation(rows, self.nodes, arena)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One run at a time, on the threads asked for; infinities and NaN are results, not warnings."""
        chosen = nullcontext() if self.threads is None else options(num_threads=self.threads)
        with self._lock, chosen, np.errstate(all="ignore"):
            yield

    def _stated(self) -> list[Array]:
        """Zeros of the shapes that the model states."""
        arrays = []
        for name, (dtype, shape) in self.inputs.items():
            if dtype is None or shape is None or any(not isinstance(n, int) for n in shape):
                raise ValueError(f"explain: the model does not state the shape of {name!r}; give inputs")
            arrays.append(np.zeros([int(n or 0) for n in shape], dtype))
        return arrays

    def _checked(self, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
        """The inputs by name; everything that the model says of them holds."""
        if isinstance(inputs, Mapping):
            unknown = sorted(set(inputs) - set(self.inputs))
            if unknown:
                raise ValueError(f"run: the model has no input {unknown[0]!r}; it has {', '.join(self.inputs)}")
            given = dict(inputs)
        else:
            if isinstance(inputs, np.ndarray):
                raise TypeError("run: inputs must be a list of arrays or a dictionary, got one array; run([x])")
            if not is_sequence(inputs):
                raise TypeError(f"run: inputs must be a list of arrays or a dictionary, got {type(inputs).__name__}")
            if len(inputs) != len(self.inputs):
                raise ValueError(
                    f"run: the model has {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(inputs)}"
                )
            given = dict(zip(self.inputs, inputs, strict=True))
        sizes: dict[str, int] = {}
        for name, value in self.inputs.items():
            if name not in given:
                raise ValueError(f"run: input {name!r} is missing")
            if value.dtype is not None or value.shape is not None:
                given[name] = _fitting(name, given[name], value, sizes)
        return {name: given[name] for name in self.inputs}


def _fitting(name: str, x: Any, value: Value, sizes: dict[str, int]) -> Array:
    """An input as an array, of the stated dtype and shape. ``sizes``: what named dimensions are so far."""
    if isinstance(x, np.generic):  # NumPy's reductions and indexing give these for arrays without dimensions
        x = np.asarray(x)
    if not isinstance(x, np.ndarray):
        raise TypeError(f"run: input {name!r} must be a NumPy array, got {type(x).__name__}")
    if value.dtype is not None and x.dtype != value.dtype and not (value.dtype == object and x.dtype.kind in "US"):
        raise TypeError(f"run: input {name!r} must be {value.dtype}, got {x.dtype}; convert with .astype")
    if value.shape is None:
        return x
    wanted = ", ".join(map(str, value.shape))
    if len(x.shape) != len(value.shape):
        raise ValueError(f"run: input {name!r} must have the shape ({wanted}), got {x.shape}")
    for n, stated in zip(x.shape, value.shape, strict=True):
        expected = sizes.setdefault(stated, n) if isinstance(stated, str) else stated
        if expected is not None and n != expected:
            known = "" if isinstance(stated, int) else f" with {stated} = {expected}"
            raise ValueError(f"run: input {name!r} must have the shape ({wanted}){known}, got {x.shape}")
    return x
