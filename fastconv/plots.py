"""Pictures of a training run as PNG files: learning curve, first-layer filters, confusion matrix.

Figures are made without pyplot: no window, no display, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .extras import extra


def _figure(width: float, height: float) -> Any:
    """A Matplotlib figure that draws with Agg, in inches."""
    figures = extra("matplotlib.figure", "plot", "drawing figures")
    backend = extra("matplotlib.backends.backend_agg", "plot", "drawing figures")
    figure = figures.Figure(figsize=(width, height), layout="constrained")
    backend.FigureCanvasAgg(figure)
    return figure


def learning_curve(history: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Loss, and accuracy in training and on the test set, by epoch.

    Parameters
    ----------
    history : one mapping an epoch, with ``epoch``, ``loss``, ``accuracy`` and ``test_accuracy`` (fractions).
    path : the PNG file to write.
    """
    figure = _figure(8, 3.5)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    loss.plot(epochs, [row["loss"] for row in history], marker=".")
    loss.set(xlabel="epoch", ylabel="training loss (cross-entropy)", yscale="log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter("")  # decades are enough: labels between them run into each other
    accuracy.plot(epochs, [100 * row["accuracy"] for row in history], marker=".", label="training")
    accuracy.plot(epochs, [100 * row["test_accuracy"] for row in history], marker=".", label="test")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    accuracy.legend()
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=120)


def filters(weights: np.ndarray, path: str | Path) -> None:
    """Each filter as a small picture, blue for negative and red for positive weights, all on one scale.

    Parameters
    ----------
    weights : (filters, channels, height, width); several channels are shown as their mean.
    path : the PNG file to write.
    """
    pictures = np.asarray(weights, np.float64).mean(axis=1)
    columns = min(8, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = _figure(columns * 0.9 + 0.8, rows * 0.9)
    grid = figure.subplots(rows, columns, squeeze=False)
    scale = float(np.abs(pictures).max()) or 1.0
    shown = None
    for axes in grid.flat:
        axes.axis("off")
    for axes, picture in zip(grid.flat, pictures, strict=False):  # the last row may have empty places
        shown = axes.imshow(picture, cmap="RdBu_r", vmin=-scale, vmax=scale)
    figure.colorbar(shown, ax=grid.ravel().tolist(), shrink=0.8)
    figure.savefig(path, dpi=120)


def confusion(matrix: np.ndarray, path: str | Path, labels: Sequence[str]) -> None:
    """A confusion matrix with its counts; mistakes are coloured on a scale of their own, so that single ones show.

    Parameters
    ----------
    matrix : (classes, classes) integers; row: the true class, column: the predicted one.
    path : the PNG file to write.
    labels : the classes' names.
    """
    matrix = np.asarray(matrix)
    n = len(matrix)
    figure = _figure(1.2 + 0.5 * n, 1 + 0.45 * n)
    axes = figure.subplots()
    mistakes = matrix * (1 - np.eye(n, dtype=matrix.dtype))
    axes.imshow(
        np.where(np.eye(n, dtype=bool), np.nan, mistakes), cmap="Reds", vmin=0, vmax=max(4, int(mistakes.max()))
    )
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            weight = "bold" if row == column else "normal"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=9, fontweight=weight)
    axes.set(xlabel="predicted", ylabel="true", xticks=range(n), yticks=range(n))
    axes.set_xticklabels(labels)
    axes.set_yticklabels(labels)
    figure.savefig(path, dpi=120)
