"""Whole networks, one image forward, and whole training steps, with the kernels that fastconv chooses.

pytest bench --benchmark-only -k networks
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest

from fastconv import nn, no_grad, optim
from fastconv.train import build_model

from .networks import NETWORKS, build

Parameters = Iterable[nn.Parameter]


def lecture_cnn() -> nn.Module:
    nn.manual_seed(0)
    return build_model((1, 28, 28), 10)


def momentum(parameters: Parameters) -> optim.Optimizer:
    return optim.SGD(parameters, lr=1e-3, momentum=0.9)


# name: network, shape of a batch of inputs, shape of its labels, number of classes, optimiser
STEPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], int, Any]] = {
    "lecture-batch64": (lecture_cnn, (64, 1, 28, 28), (64,), 10, optim.Adam),
    "lecture-batch256": (lecture_cnn, (256, 1, 28, 28), (256,), 10, optim.Adam),
    "resnet18-batch16": (partial(build, "resnet18"), (16, 3, 64, 64), (16,), 1000, momentum),
    "unet-batch2": (partial(build, "unet"), (2, 3, 128, 128), (2, 128, 128), 21, optim.Adam),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward(benchmark: Any, name: str) -> None:
    model = build(name).eval()
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    with no_grad():
        assert np.isfinite(model(x).numpy()).all()  # and everything is compiled
        benchmark(model, x)


@pytest.mark.parametrize("name", STEPS)
def test_training_step(benchmark: Any, name: str) -> None:
    make, shape, label_shape, classes, make_optimizer = STEPS[name]
    model, random = make(), np.random.default_rng(0)
    optimizer = make_optimizer(model.parameters())
    x = random.standard_normal(shape, dtype=np.float32)
    labels = random.integers(classes, size=label_shape)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    assert np.isfinite(step())  # and everything is compiled
    benchmark(step)
