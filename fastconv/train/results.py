"""What a finished run leaves: numbers, pictures, weights and a record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import doctor, nn, plots
from ..autograd import Tensor, no_grad
from ..dispatch import Explanation, explain, select
from ..extras import extra
from ..inspection import gradient_problem
from .run import CHECKPOINT, RECORD, EpochResult, Run, TrainConfig


@dataclass(frozen=True)
class KernelUse:
    """The kernel that a layer (its position and kind) runs with in one direction, and why."""

    layer: str
    kind: str
    direction: str
    explanation: Explanation


@dataclass
class TrainResult:
    """A finished run. ``confusion[t, p]`` counts test images of class t that were taken for class p."""

    config: TrainConfig
    model: nn.Sequential
    history: list[EpochResult]
    confusion: np.ndarray
    kernels: list[KernelUse]
    seconds: float
    classes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Fraction of the test images that the network gets right."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def accuracy_per_class(self) -> list[float | None]:
        """The same for the images of each class; None for a class the test set lacks."""
        totals = self.confusion.sum(axis=1)
        return [
            float(right / total) if total else None
            for right, total in zip(np.diag(self.confusion), totals, strict=True)
        ]


def finish(run: Run) -> TrainResult:
    """Test a run's network and ask which kernels it used."""
    confusion = run.confusion()
    classes = tuple(map(str, range(len(confusion))))
    return TrainResult(run.config, run.model, run.history, confusion, kernels_used(run), run.seconds, classes)


def kernels_used(run: Run) -> list[KernelUse]:
    """Which kernel each layer runs with on a training batch, in every direction that training needs."""
    x = Tensor(run.on_device(run.train_set.x[: run.config.batch_size]))
    found = []
    with no_grad():
        for i, layer in enumerate(run.model):
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
                forward = explain(layer, x)
                found.append(KernelUse(str(i), type(layer).__name__, "forward", forward))
                gradients = ("input",) * (i > 0) + ("weight",) * isinstance(layer, nn.Conv2d)
                for gradient in gradients:  # nobody asks for the images' own gradient
                    why = explain(select, gradient_problem(forward.problem, gradient))
                    found.append(KernelUse(str(i), type(layer).__name__, f"grad_{gradient}", why))
            x = layer(x)
    return found


def record(result: TrainResult) -> dict[str, Any]:
    """The run as plain values: configuration, versions, history, timing, accuracy, kernels."""
    return {
        "config": asdict(result.config),
        "versions": doctor.versions(),
        "history": [asdict(epoch) for epoch in result.history],
        "timing": {"seconds": result.seconds, "images_per_second": max(e.images_per_second for e in result.history)},
        "test": {
            "accuracy": result.accuracy,
            "images": int(result.confusion.sum()),
            "classes": list(result.classes),
            "accuracy_per_class": result.accuracy_per_class,
            "confusion": result.confusion.tolist(),
        },
        "kernels": [
            {
                "layer": f"{use.layer} {use.kind}",
                "direction": use.direction,
                "problem": str(use.explanation.problem),
                "algorithm": use.explanation.chosen,
                "reason": use.explanation.reason,
            }
            for use in result.kernels
        ],
    }


def check_libraries() -> None:
    """Raise ImportError now, rather than after the training, if something that :func:`write` needs is missing."""
    for module in ("safetensors.numpy", "matplotlib.figure"):
        extra(module, "examples", "training with an output directory")


def write(result: TrainResult, folder: Path) -> list[Path]:
    """Write ``record.json``, ``weights.safetensors`` and three pictures; the checkpoint is then removed.

    Raises
    ------
    ImportError : Matplotlib or safetensors is missing.
    OSError : the directory cannot be written.
    """
    paths = [
        folder / name for name in ("weights.safetensors", "learning_curve.png", "filters.png", "confusion.png", RECORD)
    ]
    nn.save(paths[0], result.model)
    plots.learning_curve([asdict(epoch) for epoch in result.history], paths[1])
    plots.filters(result.model[0].weight.numpy(), paths[2])
    plots.confusion(result.confusion, paths[3], result.classes)
    paths[4].write_text(json.dumps(record(result), indent=1) + "\n", "utf-8")
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return paths
