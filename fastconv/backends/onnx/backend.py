"""ONNX's own backend interface: a class that prepares models, and what it prepares.

It is what ONNX's backend tests call, and every program that was written for ``onnx.backend.base``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend import base

from .executor import Executor, Explanation

OUTSIDE_CPU = (
    "device must be 'CPU', got {!r}: ONNX models run on the CPU only; fastconv's functions and fastconv.nn run on CuPy "
    "arrays"
)


class Prepared(base.BackendRep):
    """A model that is ready to run, from :func:`prepare`. ``executor`` is the :class:`Executor` behind it."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs for these inputs: a list of arrays in the model's order, a dictionary, or a single array."""
        if kwargs:
            raise TypeError(f"run takes the inputs alone, got {', '.join(kwargs)} too")
        return self.executor.run([inputs] if isinstance(inputs, np.ndarray) else inputs)

    def explain(self, inputs: Sequence[Any] | Mapping[str, Any] | None = None) -> Explanation:
        """Which kernel each node runs on, and what is left to ``onnx.reference``; see :meth:`Executor.explain`."""
        return self.executor.explain(inputs)


class Backend(base.Backend):
    """``onnx.backend.base.Backend`` on fastconv; the module's functions of the same names are its methods."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model can be prepared: it is sound, and every operator is known."""
        try:
            cls.prepare(model, device, **kwargs)
        except (ValueError, TypeError):
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", *, threads: int | None = None, **kwargs: Any) -> Prepared:
        """Make a model ready to run many times.

        >>> import numpy as np, onnx
        >>> from fastconv.backends.onnx import prepare
        >>> graph = onnx.parser.parse_graph("net (float[n, 1, 4, 4] x) => (float[n, 1, 2, 2] y) "
        ...     "{ y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }")
        >>> model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        >>> net = prepare(model)
        >>> net.run([np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)])[0].tolist()
        [[[[5.0, 7.0], [13.0, 15.0]]]]

        Parameters
        ----------
        model : a path, the bytes of a file, or an ``onnx.ModelProto``. External data is read from the folder of a path.
        device : ``"CPU"``.
        threads : CPU threads of each run; None means as many as :func:`fastconv.get_num_threads` says.

        Returns
        -------
        :class:`Prepared`, whose ``run([x, …])`` gives a tuple of arrays.

        Raises
        ------
        ValueError : the model is damaged or not what ONNX allows, or the device is another.
        TypeError : ``model`` is none of those.
        OSError : the file cannot be read.
        """
        if kwargs:
            raise TypeError(f"prepare takes model, device and threads, got {', '.join(kwargs)} too")
        if not cls.supports_device(device):
            raise ValueError(OUTSIDE_CPU.format(device))
        return Prepared(Executor(model, threads=threads))

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Prepare a model and run it once: ``prepare(model, device, **kwargs).run(inputs)``."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: Any, inputs: Any, device: str = "CPU", outputs_info: Any = None, *, opset_version: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Run a single ``onnx.NodeProto``, of ONNX's own domain, on arrays: a list in the order of its inputs.

        >>> import numpy as np, onnx
        >>> from fastconv.backends.onnx import run_node
        >>> run_node(onnx.helper.make_node("Relu", ["x"], ["y"]), [np.array([-1, 2], np.float32)])
        (array([0., 2.], dtype=float32),)

        ``opset_version`` is the version of the operator set, by default the newest that the installed onnx knows.
        ``outputs_info``, which the interface has, is not needed. Raises as :func:`prepare` does.
        """
        if not isinstance(node, onnx.NodeProto):
            raise TypeError(f"run_node: node must be an onnx.NodeProto, got {type(node).__name__}")
        names = [name for name in node.input if name]
        if len(names) != len(inputs):
            raise ValueError(
                f"run_node: {node.op_type} has {len(names)} inputs ({', '.join(names)}), got {len(inputs)}"
            )
        given = dict(zip(names, inputs, strict=True))
        helper = onnx.helper
        version = onnx.defs.onnx_opset_version() if opset_version is None else opset_version
        graph = helper.make_graph(
            [node],
            node.name or node.op_type,
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in given.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=onnx.IR_VERSION)
        return cls.prepare(model, device, **kwargs).run(given)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run on this device: ``"CPU"`` only."""
        return isinstance(device, str) and device.split(":")[0] == "CPU"


def explain(model: Any, inputs: Sequence[Any] | Mapping[str, Any] | None = None, **kwargs: Any) -> Explanation:
    """Say how a model runs: which kernel each node runs on, and what is left to ``onnx.reference``.

    >>> import onnx
    >>> from fastconv.backends.onnx import explain
    >>> graph = onnx.parser.parse_graph("net (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) "
    ...     "{ y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }")
    >>> model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    >>> [row.op for row in explain(model).rows], explain(model).fallbacks
    (['MaxPool'], ())

    ``inputs`` are needed where the model does not state all their shapes; ``kwargs`` go to :func:`prepare`, whose
    errors this raises.
    """
    return Backend.prepare(model, **kwargs).explain(inputs)
