"""A training run in the terminal: a live bar while it runs, tables at its end; one line an epoch in a log file."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from .loop import Observer
from .results import KernelUse, TrainResult
from .run import EpochResult, Run
from .run import Progress as Position

LOG_WIDTH = 110  # of tables where the output is no terminal


def console() -> Console:
    """A console for standard output; a log file's lines are not cut at a terminal's 80 columns."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=LOG_WIDTH)


class ConsoleObserver(Observer):
    """Shows a run; use it as a context manager, so that the bar goes away whatever happens."""

    def __init__(self, output: Console) -> None:
        self.output = output
        columns: list[ProgressColumn] = [
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        ]
        self.bar = Progress(*columns, console=output, transient=True, disable=not output.is_terminal)
        self.task: Any = None
        self.epochs = 0

    def __enter__(self) -> ConsoleObserver:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def started(self, run: Run) -> None:
        config = run.config
        self.epochs = config.epochs
        shape = "×".join(map(str, run.train_set.x.shape[1:]))
        parameters = sum(p.size for p in run.model.parameters())
        source = config.data or "scikit-learn digits"
        say = self.output.print
        say(f"data      {source}: {len(run.train_set.y)} training, {len(run.test_set.y)} test images of {shape}")
        say(f"network   {parameters:,} parameters, weights from seed {config.seed}")
        say(
            f"training  {config.epochs} epochs, batches of {config.batch_size}, {config.optimizer}, "
            f"learning rate {config.lr:g} → 0, on {config.device}"
        )
        if run.epoch or run.batch:
            say(f"resumed   after {run.epoch} epochs and {run.batch} of {run.batches} batches")
        self.task = self.bar.add_task(
            "",
            total=config.epochs * run.batches,
            completed=run.epoch * run.batches + run.batch,
            epoch=f"{run.epoch + 1}/{config.epochs}",
            numbers="",
        )

    def batch_finished(self, progress: Position) -> None:
        self.bar.update(
            self.task,
            advance=1,
            epoch=f"{progress.epoch}/{self.epochs}",
            numbers=f"{progress.images_per_second:,.0f} images/s  "
            f"loss {progress.loss:.4f}  accuracy {progress.accuracy:.2%}",
        )

    def epoch_finished(self, result: EpochResult) -> None:
        self.output.print(
            f"epoch {result.epoch:>3}/{self.epochs}  {result.images_per_second:>9,.0f} images/s  "
            f"loss {result.loss:.4f}  accuracy {result.accuracy:7.2%}  test {result.test_accuracy:7.2%}"
        )

    def interrupted(self) -> None:
        self.output.print("interrupted: finishing this batch (Ctrl-C again stops at once, without saving)")


def show(result: TrainResult, output: Console, folder: Path | None) -> None:
    """Print a finished run: accuracy, confusion matrix, kernels, files."""
    right, total = int(result.confusion.trace()), int(result.confusion.sum())
    output.print("\nconfusion matrix (row: true, column: predicted)")
    output.print(confusion_table(result))
    output.print("\nkernels (fastconv explain tells more)")
    output.print(kernel_table(result.kernels))
    output.print("the dense layers run as matrix products of the array library (NumPy's BLAS, or cuBLAS)")
    output.print()
    output.print(f"test accuracy {result.accuracy:.2%} ({right} of {total} images), trained in {result.seconds:.1f} s")
    if folder is not None:
        names = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
        output.print(f"written to {folder}: {names}", soft_wrap=True)


def confusion_table(result: TrainResult) -> Table:
    """Rows are true classes, columns predictions; the last column is each class's accuracy."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right", style="bold")
    for name in result.classes:
        table.add_column(name, justify="right")
    table.add_column("accuracy", justify="right")
    for t, name in enumerate(result.classes):
        row = result.confusion[t]
        cells = [f"[bold]{n}[/]" if t == p else f"[red]{n}[/]" if n else "." for p, n in enumerate(row.tolist())]
        accuracy = result.accuracy_per_class[t]
        table.add_row(name, *cells, "none in the test set" if accuracy is None else f"{accuracy:.1%}")
    return table


def kernel_table(kernels: list[KernelUse]) -> Table:
    """Which kernel each layer ran with, and why."""
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "direction", "kernel", "why"):
        table.add_column(heading)
    for use in kernels:
        table.add_row(f"{use.layer} {use.kind}", use.direction, use.explanation.chosen, use.explanation.reason)
    return table
