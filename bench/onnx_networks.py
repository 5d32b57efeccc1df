"""Whole networks as ONNX models: ``fastconv.backends.onnx`` beside ONNX Runtime, OpenVINO and PyTorch.

    python -m bench.onnx_networks --out bench/results/onnx_networks.json

One image of 224×224. Each library runs alone in a process of its own, and the processes take turns, ``--rounds``
times; of the rounds' medians the best is kept. Before a process is timed its result is compared with float64 (that of
``onnx.reference``; PyTorch, whose networks have weights of their own, with itself): off by more than 1e-4 of the
largest element, it has no time. PyTorch runs eagerly, channels last.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import machine
from .compare import HEAP, ROOT, UNTUNED
from .onnx_models import NETWORKS, build
from .tasks import median_seconds

LIBRARIES = ("fastconv", "onnxruntime", "openvino", "torch-channels-last")
GOALS = {"vgg16": 2.0, "vgg16-convolutions": 2.5, "unet": 2.0, "resnet18": 1.8, "resnet50": 1.35, "mobilenetv2": 1.0}
TOLERANCE = 1e-4


def image(size: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 3, size, size), np.float32)


def exact(name: str, size: int) -> np.ndarray:
    """The network's result in float64, by ``onnx.reference``."""
    from onnx import TensorProto, numpy_helper
    from onnx.reference import ReferenceEvaluator

    model = build(name)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    result: np.ndarray = ReferenceEvaluator(model).run(None, {"x": image(size).astype(np.float64)})[0]
    return result


def ready(library: str, name: str, size: int, threads: int, truth: np.ndarray) -> tuple[Callable[[], Any], np.ndarray]:
    """The call to time, and how far each element of its result is off."""
    x = image(size)
    if library == "torch-channels-last":
        import torch

        from . import torch_models

        torch.set_num_threads(threads)
        given = torch.from_numpy(x)
        with torch.inference_mode():
            truth = torch_models.build(name).double()(given.double()).numpy()
            network = torch_models.build(name).to(memory_format=torch.channels_last)
            given = given.to(memory_format=torch.channels_last)
        call = torch.inference_mode()(lambda: network(given))
        return call, np.abs(call().numpy() - truth) / np.abs(truth).max()
    if library == "fastconv":
        import fastconv
        from fastconv.backends.onnx.executor import Executor

        fastconv.set_num_threads(threads)
        executor = Executor(build(name))
        y = executor.run([x])[0]
        return lambda: executor.run([x]), np.abs(y - truth) / np.abs(truth).max()
    out = np.empty(truth.shape, np.float32)
    model = build(name).SerializeToString()
    if library == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for bind, key, a in ((binding.bind_input, "x", x), (binding.bind_output, "y", out)):
            bind(key, "cpu", 0, np.float32, a.shape, a.ctypes.data)

        def call() -> Any:
            session.run_with_iobinding(binding)
            return x, out  # which the binding does not keep alive
    else:
        import openvino as ov

        settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        core = ov.Core()
        network = core.read_model(model)
        network.reshape({"x": list(x.shape)})
        request = core.compile_model(network, "CPU", settings).create_infer_request()
        request.set_input_tensor(ov.Tensor(x, shared_memory=True))
        request.set_output_tensor(ov.Tensor(out, shared_memory=True))

        def call() -> Any:
            request.start_async()
            request.wait()
            return x, out

    call()
    return call, np.abs(out - truth) / np.abs(truth).max()


def measure(library: str, name: str, truth: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The median time of a call in this process, in milliseconds, and how far the result is off."""
    call, errors = ready(library, name, options.size, options.threads, np.load(truth))
    off = float(errors.max())
    if not off <= TOLERANCE:
        return {"off": off, "ms": None}
    return {"off": off, "ms": median_seconds(call, options.seconds) * 1e3}


def run(library: str, name: str, truth: Path, options: argparse.Namespace) -> dict[str, Any]:
    """:func:`measure` in a process of its own."""
    threads = str(options.threads)
    limits = {f"{n}_NUM_THREADS": threads for n in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    command = [sys.executable, "-m", "bench.onnx_networks", "--worker", library, name, str(truth)]
    command += ["--threads", threads, "--seconds", str(options.seconds), "--size", str(options.size)]
    done = subprocess.run(
        command, env={**os.environ, **limits, **HEAP, **UNTUNED}, stdout=subprocess.PIPE, text=True, check=True,
        cwd=ROOT,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Milliseconds of the best round, and how many times faster than the best of the others fastconv is."""
    lines = ["| network | " + " | ".join(f"{n}, ms" for n in LIBRARIES) + " | best other ÷ fastconv | goal | off by |"]
    lines.append("|---" * (len(LIBRARIES) + 4) + "|")
    for name, libraries in results.items():
        best = {
            n: min((r["ms"] for r in rounds if r["ms"] is not None), default=None) for n, rounds in libraries.items()
        }
        cells = [f"{best[n]:.2f}" if best.get(n) else "wrong" if n in best else "" for n in LIBRARIES]
        others = [ms for n, ms in best.items() if n != "fastconv" and ms is not None]
        ours = best.get("fastconv")
        ratio = f"{min(others) / ours:.2f}" if ours and others else ""
        off = max((r["off"] for r in libraries.get("fastconv", ())), default=float("nan"))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {ratio} | {GOALS[name]} | {off:.1e} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--truths", type=Path, help="folder in which float64 results are kept for the next run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("LIBRARY", "NETWORK", "TRUTH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        library, name, truth = options.worker
        print(json.dumps(measure(library, name, Path(truth), options)))
        return
    results: dict[str, Any] = {name: {library: [] for library in options.libraries} for name in options.network}
    with tempfile.TemporaryDirectory() as folder:
        kept = options.truths or Path(folder)
        for name in options.network:
            truth = kept / f"{name}-{options.size}.npy"
            if not truth.exists():
                np.save(truth, exact(name, options.size))
            for turn in range(options.rounds):
                for i in range(len(options.libraries)):
                    library = options.libraries[(turn + i) % len(options.libraries)]
                    results[name][library].append(run(library, name, truth, options))
    text = table(results)
    print(text)
    if options.out:
        facts = {
            "date": datetime.date.today().isoformat(), "machine": machine.describe(), "versions": machine.versions(),
            "command": shlex.join(["python", "-m", "bench.onnx_networks", *(arguments or sys.argv[1:])]),
        }  # fmt: skip
        options.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
