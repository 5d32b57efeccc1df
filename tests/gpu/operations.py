"""Every array operation, layer, loss and optimiser of the package, to be run on NumPy's arrays and on a GPU's.

``tests/test_cuda.py`` runs them on a stand-in that refuses NumPy's functions, ``tests/gpu`` on CuPy itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastconv as fc
from fastconv import autograd as ag
from fastconv import nn, optim

X = np.linspace(-2.5, 3.5, 24, dtype=np.float32).reshape(4, 6)[:, ::-1].copy()
Y = np.linspace(0.25, 3.0, 24, dtype=np.float32).reshape(4, 6)
IMAGES = np.sin(np.arange(2 * 3 * 5 * 4, dtype=np.float32)).reshape(2, 3, 5, 4)
LABELS = np.arange(4) % 3


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "arithmetic": lambda x, y: (x + y) * (x - y) / y - 2 * x + 1 / y - (3 - x),
    "rows and columns": lambda x, y: x * y[:1] + x[:, 2:3] - y[0],
    "powers": lambda x, y: x**2 + y**0.5 + y**x + 2.0**x,
    "exp and log": lambda x, y: ag.exp(x) + ag.log(y) + ag.sqrt(y) + abs(x),
    "extrema": lambda x, y: ag.maximum(x, y) + ag.minimum(x, 0.5) + ag.maximum(x, x),
    "where": lambda x, y: ag.where(x > y, x, y) + ag.where(x > 0, x, 0.0),
    "sums": lambda x, y: x.sum(0) + y.mean(axis=0, keepdims=True) + x.sum() + x.mean(axis=(0, 1)),
    "largest": lambda x, y: x.max(axis=1, keepdims=True) + y.min(1, keepdims=True) + x.max(),
    "shapes": lambda x, y: x.reshape(6, 4).T + y.transpose(1, 0).reshape(4, -1),
    "slices": lambda x, y: x[1:3, ::2] + y[..., -1:][2:] + x[None, 0, :3],
    "fancy indices": lambda x, y: x[[0, 2, 2]] + y[:, [1, 1, 0, 3, 2, 5]][:3],
    "masks": lambda x, y: x[x > 0].sum() + y + [1, 2, 3, 4, 5, 6],
    "pad": lambda x, y: ag.pad(x, [(1, 0), (0, 2)], 0.5) * 2,
    "join": lambda x, y: ag.concatenate([x, y[:2]], axis=0).sum() + ag.stack([x, y], axis=1),
    "matrices": lambda x, y: x @ y.T + (x @ y[0])[:, None] + x[0] @ y.T + ag.stack([x, x]) @ y.T,
    "types": lambda x, y: x.astype(np.float64) * y,
    "relu": lambda x, y: ag.relu(x) + ag.relu6(4 * x) + ag.leaky_relu(x, 0.1),
    "sigmoid": lambda x, y: ag.sigmoid(x) + ag.tanh(x) + ag.silu(x),
    "gelu": lambda x, y: ag.gelu(x) + ag.hardswish(x),
    "softmax": lambda x, y: nn.softmax(x) + nn.log_softmax(y, 0),
    "cross-entropy": lambda x, y: nn.cross_entropy(x, LABELS) + nn.cross_entropy(y, LABELS, label_smoothing=0.1),
    "picked": lambda x, y: nn.nll_loss(nn.log_softmax(x), LABELS, reduction="sum"),
    "differences": lambda x, y: nn.mse_loss(x, y) + nn.l1_loss(x, y, reduction="none"),
    "linear": lambda x, y: nn.linear(x, y[:3], y[0, :3]),
}
"""Functions of two Tensors, 4 x 6: the second one positive."""

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.BatchNorm2d(3),
    "norm, mean of all": lambda: nn.BatchNorm2d(3, momentum=None),
    "norm, evaluated": lambda: nn.BatchNorm2d(3).eval(),
    "norm, bare": lambda: nn.BatchNorm2d(3, affine=False),
    "convolution": lambda: nn.Conv2d(3, 4, 3, padding="same"),
    "reflected": lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect", groups=3),
    "transposed": lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1),
    "maximum": lambda: nn.MaxPool2d(2, padding=1),
    "minimum": lambda: nn.MinPool2d(3, stride=2),
    "average": lambda: nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
    "norms": lambda: nn.LPPool2d(2, 2),
    "global average": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2), nn.SiLU()),
    "adaptive maximum": lambda: nn.AdaptiveMaxPool2d((2, 3)),
}
"""Modules of images, 2 x 3 x 5 x 4."""

OPTIMISERS: dict[str, Callable[[list[Any]], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "damped": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1),
    "adam": lambda p: optim.Adam(p, lr=0.1, weight_decay=0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.1),
}


def operation(name: str, put: Callable[[Any], Any], device: str) -> list[np.ndarray]:
    """Result and gradients; ``put`` makes arrays of the ``device``."""
    x, y = (fc.Tensor(put(a), requires_grad=True) for a in (X, Y))
    result = OPERATIONS[name](x, y)
    (result * result).sum().backward()
    return [_host(a) for a in (result.data, x.grad, y.grad) if a is not None]


def layer(name: str, put: Callable[[Any], Any], device: str) -> list[np.ndarray]:
    """Result, gradients and buffers, of weights that are the same on every device."""
    nn.manual_seed(2)
    module = LAYERS[name]().to(device)
    x = fc.Tensor(put(IMAGES), requires_grad=True)
    result = module(x)
    (result * result).sum().backward()
    found = [result.data, x.grad, *(p.grad for p in module.parameters()), *module.buffers()]
    module.load_state_dict(module.state_dict())
    return [_host(a) for a in found]


def optimiser(name: str, put: Callable[[Any], Any], device: str) -> list[np.ndarray]:
    """A parameter after steps, some of them after saving and loading."""
    p, target = nn.Parameter(put(X.copy())), put(Y)
    opt = OPTIMISERS[name]([p])
    for step in range(4):
        if step == 2:
            saved, opt = opt.state_dict(), OPTIMISERS[name]([p])
            opt.load_state_dict(saved)
        opt.zero_grad()
        ((p - target) ** 2).mean().backward()
        opt.step()
    return [_host(p.data)]


KINDS: dict[str, tuple[Callable[..., list[np.ndarray]], Any]] = {
    "operation": (operation, OPERATIONS), "layer": (layer, LAYERS), "optimiser": (optimiser, OPTIMISERS),
}  # fmt: skip


def compare(kind: str, put: Callable[[Any], Any], device: str) -> None:
    """Everything of a kind on a device and on the CPU."""
    run, names = KINDS[kind]
    for name in names:
        for here, there in zip(run(name, np.asarray, "cpu"), run(name, put, device), strict=True):
            assert here.dtype == there.dtype, name
            np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4, err_msg=name)


def _host(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.get()
