"""One training run: its configuration, its data, its network, and its state between two batches."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoint, data, nn, optim
from ..autograd import array_module, no_grad

LEARNING_RATES = {"adam": 3e-3, "adamw": 3e-3, "sgd": 0.05}
"""Optimisers that :class:`TrainConfig` takes, with the learning rate each starts from unless told."""
UNPADDED_FROM = 28
EVALUATION_BATCH = 256
CHECKPOINT = "checkpoint.safetensors"
RECORD = "record.json"
POSITION = ("epoch", "batch", "loss_sum", "correct", "seconds", "epoch_seconds")


@dataclass(frozen=True)
class TrainConfig:
    """What decides the result of a run, bit for bit.

    >>> TrainConfig(optimizer="sgd").lr
    0.05

    Parameters
    ----------
    data : a directory with MNIST's IDX files or any set in that form; None for the 8×8 digits that come with
        scikit-learn (split into 1437 for training and 360 for testing, every class by its share, by ``seed``).
    split : (training, test) samples, drawn by a permutation seeded with ``seed`` from all that ``data`` holds;
        None keeps the data's own two parts.
    epochs, batch_size : at least 1.
    lr : the first learning rate; it falls to 0 along half a cosine. None for the optimiser's usual one.
    optimizer : ``"adam"``, ``"adamw"`` or ``"sgd"`` (momentum 0.9).
    seed : of the initial weights, the split and the order of samples.
    device : ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    ValueError : naming the parameter.
    """

    data: str | None = None
    split: tuple[int, int] | None = None
    epochs: int = 20
    batch_size: int = 32
    lr: float | None = None
    optimizer: str = "adam"
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.optimizer not in LEARNING_RATES:
            raise ValueError(f"optimizer must be one of {', '.join(LEARNING_RATES)}; got {self.optimizer!r}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.lr is None:
            object.__setattr__(self, "lr", LEARNING_RATES[self.optimizer])
        elif not (0 < self.lr < math.inf):
            raise ValueError(f"lr must be positive, got {self.lr}")
        if self.split is not None and (len(self.split) != 2 or min(self.split) < 1):
            raise ValueError(f"split must be two sizes of at least 1 (training, test), got {self.split}")


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch: mean training loss, accuracies as fractions, seconds, training images a second."""

    epoch: int
    loss: float
    accuracy: float
    test_accuracy: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a batch; loss and accuracy are the current epoch's so far."""

    epoch: int
    batch: int
    batches: int
    loss: float
    accuracy: float
    images_per_second: float


def build_model(image_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The lecture's classifier for images of (channels, height, width); its output are logits.

    >>> build_model((1, 28, 28), 10)[7].weight.shape
    (1024, 1600)

    Raises
    ------
    ValueError : images smaller than 4×4, of which nothing would be left.
    """
    channels, *size = image_shape
    if min(size) < 4:
        raise ValueError(f"images must be at least 4×4, got {size[0]}×{size[1]}")
    padding = 0 if min(size) >= UNPADDED_FROM else 1
    for _ in range(2):
        size = [(s - 2 + 2 * padding) // 2 for s in size]
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * size[0] * size[1], 1024),
        nn.ReLU(),
        nn.Linear(1024, classes),
    )


def load_samples(config: TrainConfig) -> tuple[data.Samples, data.Samples]:
    """The training and test samples that a configuration names.

    Raises
    ------
    ValueError, OSError : no such data, damaged files, or a split that asks for more than there is.
    ImportError : scikit-learn is missing, for the embedded digits.
    """
    found = data.digits(seed=config.seed) if config.data is None else data.mnist(config.data)
    parts = [part for part in found if part is not None]
    if config.split is None:
        if len(parts) == 2:
            return parts[0], parts[1]
        have = len(parts[0].x)
        raise ValueError(
            f"{config.data} holds one pair of files, {have} samples; say how many are for training and how many "
            f"for testing, for example split {have * 4 // 5}/{have - have * 4 // 5}"
        )
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    train, test = data.split(x, y, sizes=config.split, seed=config.seed)
    return train, test


@dataclass
class Run:
    """A run between two batches: all that its continuation depends on, and nothing else."""

    config: TrainConfig
    train_set: data.Samples
    test_set: data.Samples
    model: nn.Sequential
    optimizer: optim.Optimizer
    schedule: optim.Schedule
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    history: list[EpochResult] = field(default_factory=list)
    seconds: float = 0.0
    epoch_seconds: float = 0.0

    @classmethod
    def start(cls, config: TrainConfig) -> Run:
        """Load the data and build the network, its weights drawn from the seed."""
        if config.data is not None:
            config = replace(config, data=str(Path(config.data).resolve()))
        train, test = load_samples(config)
        nn.manual_seed(config.seed)
        model = build_model(train.x.shape[1:], int(max(train.y.max(), test.y.max())) + 1)
        model.to(config.device)
        optimizer = _optimizer(config, model)
        batches = -(-len(train.y) // config.batch_size)
        return cls(
            config, train, test, model, optimizer, optim.CosineAnnealingLR(optimizer, T_max=config.epochs * batches)
        )

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Run:
        """The run that a directory's checkpoint holds.

        Raises
        ------
        ValueError : there is none, it is damaged, or the data have changed since.
        """
        folder = Path(directory)
        if not (folder / CHECKPOINT).exists():
            finished = (folder / RECORD).exists()
            raise ValueError(
                f"{folder}: {'this run is finished' if finished else 'no interrupted run here'}; nothing to resume"
            )
        state = checkpoint.load(folder / CHECKPOINT)
        config = state["config"]
        run = cls.start(TrainConfig(**config | {"split": config["split"] and tuple(config["split"])}))
        if state["digest"] != run.digest:
            source = config["data"] or "the digits"
            raise ValueError(f"{source}: not the data that the run in {folder} started with; nothing is resumed")
        nn.set_rng_state(state["rng"])
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.schedule.load_state_dict(state["schedule"])
        run.history = [EpochResult(**row) for row in state["history"]]
        for name in POSITION:
            setattr(run, name, state[name])
        return run

    def save(self, directory: Path) -> None:
        """Write the checkpoint, atomically."""
        state: dict[str, Any] = {name: getattr(self, name) for name in POSITION}
        state |= {
            "config": asdict(self.config),
            "digest": self.digest,
            "history": [asdict(row) for row in self.history],
        }
        state |= {"model": _on_cpu(self.model.state_dict()), "optimizer": _on_cpu(self.optimizer.state_dict())}
        state |= {"schedule": self.schedule.state_dict(), "rng": nn.get_rng_state()}
        checkpoint.save(directory / CHECKPOINT, state)

    @cached_property
    def digest(self) -> str:
        """A digest of the samples, to tell that a resumed run sees the same ones."""
        digest = hashlib.sha256()
        for array in (*self.train_set, *self.test_set):
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.train_set.y) // self.config.batch_size)

    def train_epoch(self) -> Iterator[Progress]:
        """Train to the end of the current epoch, yielding after each batch; safe to leave after any of them."""
        config, samples = self.config, self.train_set
        self.model.train()
        batches = data.batches(samples.x, samples.y, config.batch_size, shuffle=True, seed=(config.seed, self.epoch))
        for x, y in islice(batches, self.batch, None):
            start = time.perf_counter()
            x, y = self.on_device(x), self.on_device(y)
            logits = self.model(x)
            loss = nn.cross_entropy(logits, y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.loss_sum += loss.item() * len(y)
            self.correct += int((logits.data.argmax(axis=1) == y).sum())
            self.batch += 1
            self.epoch_seconds += time.perf_counter() - start
            seen = min(self.batch * config.batch_size, len(samples.y))
            yield Progress(
                epoch=self.epoch + 1,
                batch=self.batch,
                batches=self.batches,
                loss=self.loss_sum / seen,
                accuracy=self.correct / seen,
                images_per_second=seen / self.epoch_seconds,
            )

    def finish_epoch(self) -> EpochResult:
        """Test the network, add the epoch to the history and stand at the beginning of the next."""
        start = time.perf_counter()
        n = len(self.train_set.y)
        confusion = self.confusion()
        result = EpochResult(
            epoch=self.epoch + 1,
            loss=self.loss_sum / n,
            accuracy=self.correct / n,
            test_accuracy=float(np.trace(confusion) / confusion.sum()),
            seconds=self.epoch_seconds,
            images_per_second=n / self.epoch_seconds,
        )
        self.history.append(result)
        self.seconds += self.epoch_seconds + time.perf_counter() - start
        self.epoch, self.batch, self.loss_sum, self.correct, self.epoch_seconds = self.epoch + 1, 0, 0.0, 0, 0.0
        return result

    def confusion(self) -> np.ndarray:
        """The confusion matrix of the test set: row the true class, column the predicted one."""
        x, y = self.test_set
        classes = self.model[-1].out_features
        confusion = np.zeros((classes, classes), np.int64)
        self.model.eval()
        with no_grad():
            for images, labels in data.batches(x, y, EVALUATION_BATCH):
                predicted = self.model(self.on_device(images)).numpy().argmax(axis=1)
                np.add.at(confusion, (labels, predicted), 1)
        return confusion

    def on_device(self, array: np.ndarray) -> Any:
        """The array as the model's parameters lie: on the CPU or the GPU."""
        return array_module(next(iter(self.model.parameters())).data).asarray(array)


def _optimizer(config: TrainConfig, model: nn.Module) -> optim.Optimizer:
    assert config.lr is not None
    if config.optimizer == "sgd":
        return optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)
    return {"adam": optim.Adam, "adamw": optim.AdamW}[config.optimizer](model.parameters(), lr=config.lr)


def _on_cpu(state: Any) -> Any:
    """Nested state with every array as a NumPy array."""
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [_on_cpu(value) for value in state]
    return state.get() if array_module(state) is not np else state
