"""The training loop: observers, interruption, resumption."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .results import TrainResult, check_libraries, finish, write
from .run import CHECKPOINT, EpochResult, Progress, Run, TrainConfig


class Observer:
    """What happens during a run; override what you want to see."""

    def started(self, run: Run) -> None:
        """The data are loaded and the network is built (or read from a checkpoint)."""

    def batch_finished(self, progress: Progress) -> None:
        """After each batch."""

    def epoch_finished(self, result: EpochResult) -> None:
        """After each epoch and its test."""

    def interrupted(self) -> None:
        """Ctrl-C was pressed; the run ends after this batch. Called from a signal handler."""


class TrainInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run, whose state is saved. ``directory`` is where; None if the run had no ``out``."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        super().__init__(
            f"interrupted; saved in {directory}" if directory else "interrupted; nothing saved (no out directory)"
        )


def train(
    config: TrainConfig | None = None, *, out: str | os.PathLike[str] | None = None, observer: Observer | None = None
) -> TrainResult:
    """Train the lecture's classifier.

    >>> from fastconv.train import TrainConfig, train
    >>> train(TrainConfig(epochs=2, split=(200, 50))).confusion.sum()
    np.int64(50)

    Parameters
    ----------
    config : data, network and schedule; the default trains 20 epochs on the embedded digits.
    out : directory for the results (see :func:`write`) and, until they are there, for a checkpoint that is saved after
        every epoch and on Ctrl-C. None keeps everything in memory.
    observer : told about every batch and epoch.

    Raises
    ------
    TrainInterrupted : Ctrl-C (in the main thread, unless the program handles SIGINT itself).
    ValueError : bad data; or ``out`` holds an interrupted run, which is not overwritten.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        check_libraries()
        if (folder / CHECKPOINT).exists():
            raise ValueError(f"{folder} holds an interrupted run; resume it, or name another directory")
    run = Run.start(config or TrainConfig())
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return _fit(run, folder, observer or Observer())


def resume(directory: str | os.PathLike[str], *, observer: Observer | None = None) -> TrainResult:
    """Continue the interrupted run in a directory with its own configuration; see :func:`train`.

    Raises
    ------
    ValueError : no interrupted run is there, or its data have changed.
    """
    return _fit(Run.load(directory), Path(directory), observer or Observer())


def _fit(run: Run, folder: Path | None, observer: Observer) -> TrainResult:
    """Train to the last epoch and write the results, which take the checkpoint's place."""
    observer.started(run)
    with _interruptible(observer) as stop:
        while run.epoch < run.config.epochs:
            for progress in run.train_epoch():
                observer.batch_finished(progress)
                if stop.is_set():
                    break
            else:
                observer.epoch_finished(run.finish_epoch())
            if folder is not None:
                run.save(folder)
            if stop.is_set():
                raise TrainInterrupted(folder)
    result = finish(run)
    if folder is not None:
        write(result, folder)
    return result


@contextmanager
def _interruptible(observer: Observer) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event; the second one interrupts at once, as ever."""
    stop = threading.Event()
    default = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, default)
        stop.set()
        observer.interrupted()

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, default)
