"""The training job: configuration, data, learning, interruption, resumption, what it writes."""

import dataclasses
import gzip
import json
import os
import signal
import statistics
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import checkpoint, nn, plots
from fastconv.registry import ROWS
from fastconv.train import (
    EpochResult,
    Observer,
    Progress,
    Run,
    TrainConfig,
    TrainInterrupted,
    TrainResult,
    build_model,
    load_samples,
    resume,
    train,
)
from tests.support import require

SMALL = TrainConfig(epochs=3, batch_size=32, split=(160, 100))  # five batches an epoch
PNG = b"\x89PNG\r\n\x1a\n"


def bits(model: nn.Sequential) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.state_dict().items()}


def learned(history: list[EpochResult]) -> list[tuple[float, ...]]:
    """A history without its times."""
    return [(e.epoch, e.loss, e.accuracy, e.test_accuracy) for e in history]


@pytest.fixture(scope="module")
def whole() -> TrainResult:
    """The small run without interruption."""
    return train(SMALL)


# ------------------------------------------------------------------------------------------- configuration and data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"optimizer": "adamax"}, "optimizer must be one of adam, adamw, sgd; got 'adamax'"),
        ({"device": "tpu"}, "device must be cpu or cuda, got 'tpu'"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"lr": float("inf")}, "lr must be positive, got inf"),
        ({"split": (10, 0)}, r"split must be two sizes of at least 1 \(training, test\), got \(10, 0\)"),
        ({"split": (10,)}, "split must be two sizes"),
    ],
)
def test_wrong_configurations(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**arguments)


@pytest.mark.parametrize(("size", "features"), [(28, 1600), (32, 2304), (8, 256), (27, 2304), (4, 64)])
def test_model_sizes(size: int, features: int) -> None:
    model = build_model((1, size, size), 10)
    assert model[7].weight.shape == (1024, features)
    assert model(np.zeros((2, 1, size, size), np.float32)).shape == (2, 10)


def test_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="at least 4×4, got 8×3"):
        build_model((1, 8, 3), 10)


def test_digits_are_split_by_class_and_seed() -> None:
    (x, y), (test_x, test_y) = load_samples(TrainConfig())
    assert (x.shape, test_x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert np.bincount(test_y).min() >= 34
    everything = {image.tobytes() + bytes([label]) for image, label in zip(x, y, strict=True)}
    assert not everything & {image.tobytes() + bytes([label]) for image, label in zip(test_x, test_y, strict=True)}
    assert (load_samples(TrainConfig(seed=1))[1].y != test_y).any()


def write_idx(folder: Path, part: str, n: int, size: int = 9) -> None:
    rng = np.random.default_rng(len(part))
    images, labels = rng.integers(0, 256, (n, size, size), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">HBB3i", 0, 8, 3, n, size, size) + images.tobytes())
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBi", 0, 8, 1, n) + labels.tobytes())


def test_one_pair_of_files_needs_a_split(tmp_path: Path) -> None:
    write_idx(tmp_path, "t10k", 50)
    with pytest.raises(ValueError, match=r"one pair of files, 50 samples; .* for example split 40/10"):
        load_samples(TrainConfig(data=str(tmp_path)))
    with pytest.raises(ValueError, match=r"sizes \(45, 10\) need 55 samples, there are 50"):
        load_samples(TrainConfig(data=str(tmp_path), split=(45, 10)))
    (x, _), (test_x, _) = load_samples(TrainConfig(data=str(tmp_path), split=(40, 10)))
    assert (x.shape, test_x.shape) == ((40, 1, 9, 9), (10, 1, 9, 9))
    assert not {image.tobytes() for image in x} & {image.tobytes() for image in test_x}


def test_two_pairs_of_files_are_kept_apart_or_split_anew(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 30)
    write_idx(tmp_path, "t10k", 20)
    train_set, test_set = load_samples(TrainConfig(data=str(tmp_path)))
    assert (len(train_set.y), len(test_set.y)) == (30, 20)
    train_set, test_set = load_samples(TrainConfig(data=str(tmp_path), split=(45, 5)))
    assert (len(train_set.y), len(test_set.y)) == (45, 5)


# --------------------------------------------------------------------------------------------------------- learning


def test_it_learns() -> None:
    result = train(TrainConfig(epochs=3, batch_size=32))
    assert result.accuracy > 0.9
    assert [e.epoch for e in result.history] == [1, 2, 3]
    assert result.history[-1].loss < result.history[0].loss / 3
    assert result.accuracy == result.history[-1].test_accuracy
    assert result.confusion.sum() == 360
    per_class = [a for a in result.accuracy_per_class if a is not None]
    assert statistics.mean(per_class) == pytest.approx(result.accuracy, abs=0.02)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_learns(optimizer: str) -> None:
    result = train(TrainConfig(epochs=3, split=(800, 100), optimizer=optimizer))
    assert result.history[-1].accuracy > 0.6  # guessing gives 0.1


def test_same_seed_same_bits(whole: TrainResult) -> None:
    again, other = train(SMALL), train(dataclasses.replace(SMALL, seed=1))
    assert bits(again.model) == bits(whole.model)
    assert learned(again.history) == learned(whole.history)
    assert bits(other.model) != bits(whole.model)


def test_a_class_without_test_images() -> None:
    empty = np.diag([3, 0, 2])
    result = TrainResult(SMALL, build_model((1, 8, 8), 3), [], empty, [], 1.0, ("0", "1", "2"))
    assert result.accuracy == 1.0
    assert result.accuracy_per_class == [1.0, None, 1.0]


def test_kernels_are_named_for_every_layer_and_direction(whole: TrainResult) -> None:
    used = [(use.layer, use.kind, use.direction) for use in whole.kernels]
    assert used == [
        ("0", "Conv2d", "forward"),
        ("0", "Conv2d", "grad_weight"),
        ("2", "MaxPool2d", "forward"),
        ("2", "MaxPool2d", "grad_input"),
        ("3", "Conv2d", "forward"),
        ("3", "Conv2d", "grad_input"),
        ("3", "Conv2d", "grad_weight"),
        ("5", "MaxPool2d", "forward"),
        ("5", "MaxPool2d", "grad_input"),
    ]
    algorithms = {row.algorithm for row in ROWS if row.family != "reference"}
    assert all(use.explanation.chosen in algorithms and use.explanation.reason for use in whole.kernels)


def test_the_first_steps_are_pytorchs() -> None:
    """The same weights, batches and optimiser give the same losses: layers, gradients and updates agree."""
    torch = require("torch")
    run = Run.start(SMALL)
    layers = torch.nn
    twin = layers.Sequential(
        layers.Conv2d(1, 32, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2), layers.Conv2d(32, 64, 3, padding=1),
        layers.ReLU(), layers.MaxPool2d(2), layers.Flatten(), layers.Linear(256, 1024), layers.ReLU(),
        layers.Linear(1024, 10),
    )  # fmt: skip
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in run.model.state_dict().items()})
    optimizer = torch.optim.Adam(twin.parameters(), lr=SMALL.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    order = np.random.default_rng((SMALL.seed, 0)).permutation(160)
    seen = [progress.loss for progress in run.train_epoch()]
    total = 0.0
    for i, expected in enumerate(seen):
        rows = order[32 * i : 32 * (i + 1)]
        x, y = torch.from_numpy(run.train_set.x[rows]), torch.from_numpy(run.train_set.y[rows])
        loss = layers.functional.cross_entropy(twin(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        assert expected == pytest.approx(total / (i + 1), rel=1e-4)


def test_mnist() -> None:
    """A short run on the real files; the full one takes minutes."""
    folder = os.environ.get("FASTCONV_DATA")
    if not folder:
        pytest.skip("needs FASTCONV_DATA, a folder with MNIST's files")
    result = train(TrainConfig(data=folder, split=(2000, 500), epochs=1))
    assert result.model[7].weight.shape == (1024, 1600)
    assert result.accuracy > 0.8


# ----------------------------------------------------------------------------------------- interruption, resumption


class PressCtrlC(Observer):
    """Raises SIGINT, as a terminal does, in chosen batches (counted from 1 over the whole run)."""

    def __init__(self, *batches: int) -> None:
        self.batches = batches
        self.count = 0
        self.told = 0

    def batch_finished(self, progress: Progress) -> None:
        self.count += 1
        for _ in range(self.batches.count(self.count)):
            signal.raise_signal(signal.SIGINT)

    def interrupted(self) -> None:
        self.told += 1


@pytest.mark.parametrize("batch", [1, 7, 10, 15], ids=["first", "inside", "last of an epoch", "very last"])
def test_interrupted_and_resumed_is_as_if_uninterrupted(batch: int, whole: TrainResult, tmp_path: Path) -> None:
    observer = PressCtrlC(batch)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainInterrupted, match=f"interrupted; saved in {tmp_path}") as caught:
        train(SMALL, out=tmp_path, observer=observer)
    assert caught.value.directory == tmp_path
    assert isinstance(caught.value, KeyboardInterrupt)
    assert (observer.count, observer.told) == (batch, 1)
    assert signal.getsignal(signal.SIGINT) is before

    nn.manual_seed(12345)  # whatever else the process did meanwhile
    rest = PressCtrlC()
    result = resume(tmp_path, observer=rest)
    assert rest.count == 15 - batch
    assert bits(result.model) == bits(whole.model)
    assert learned(result.history) == learned(whole.history)
    assert (result.confusion == whole.confusion).all()


def test_interrupted_twice(whole: TrainResult, tmp_path: Path) -> None:
    with pytest.raises(TrainInterrupted):
        train(SMALL, out=tmp_path, observer=PressCtrlC(2))
    with pytest.raises(TrainInterrupted):
        resume(tmp_path, observer=PressCtrlC(6))
    assert bits(resume(tmp_path).model) == bits(whole.model)


def test_a_crash_loses_at_most_an_epoch(whole: TrainResult, tmp_path: Path) -> None:
    class Crash(PressCtrlC):
        def batch_finished(self, progress: Progress) -> None:
            super().batch_finished(progress)
            if self.count == 8:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(SMALL, out=tmp_path, observer=Crash())
    rest = PressCtrlC()
    result = resume(tmp_path, observer=rest)
    assert rest.count == 10  # epochs 2 and 3
    assert bits(result.model) == bits(whole.model)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        train(SMALL, out=tmp_path, observer=PressCtrlC(3, 3))
    assert not isinstance(caught.value, TrainInterrupted)
    assert list(tmp_path.iterdir()) == []


def test_without_a_directory_nothing_is_saved() -> None:
    with pytest.raises(TrainInterrupted, match="nothing saved") as caught:
        train(SMALL, observer=PressCtrlC(1))
    assert caught.value.directory is None


def test_other_threads_and_other_handlers_are_left_alone(whole: TrainResult) -> None:
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(train(SMALL)))
    thread.start()
    thread.join()
    assert bits(results[0].model) == bits(whole.model)

    calls = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        train(SMALL, observer=PressCtrlC(2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == [signal.SIGINT]


def test_an_interrupted_run_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(TrainInterrupted):
        train(SMALL, out=tmp_path, observer=PressCtrlC(1))
    with pytest.raises(ValueError, match="holds an interrupted run; resume it, or name another directory"):
        train(SMALL, out=tmp_path)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no interrupted run here"):
        resume(tmp_path)
    train(dataclasses.replace(SMALL, epochs=1), out=tmp_path)
    with pytest.raises(ValueError, match="this run is finished; nothing to resume"):
        resume(tmp_path)


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_idx(folder, "train", 70)
    write_idx(folder, "t10k", 20)
    config = TrainConfig(data=os.path.relpath(folder), epochs=2)
    with pytest.raises(TrainInterrupted):
        train(config, out=tmp_path / "run", observer=PressCtrlC(1))
    assert checkpoint.load(tmp_path / "run" / "checkpoint.safetensors")["config"]["data"] == str(folder.resolve())
    write_idx(folder, "train", 71)
    with pytest.raises(ValueError, match=r"not the data that the run in .* started with"):
        resume(tmp_path / "run")


# --------------------------------------------------------------------------------------------------- what it writes


def test_files_of_a_finished_run(whole: TrainResult, tmp_path: Path) -> None:
    result = train(SMALL, out=tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    assert sorted(p.name for p in folder.iterdir()) == [
        "confusion.png",
        "filters.png",
        "learning_curve.png",
        "record.json",
        "weights.safetensors",
    ]
    for name in ("confusion", "filters", "learning_curve"):
        assert (folder / f"{name}.png").read_bytes().startswith(PNG)
    model = build_model((1, 8, 8), 10)
    model.load_state_dict(nn.load(folder / "weights.safetensors"))
    assert bits(model) == bits(result.model) == bits(whole.model)

    record = json.loads((folder / "record.json").read_text("utf-8"))
    assert list(record) == ["config", "versions", "history", "timing", "test", "kernels"]
    assert record["config"]["split"] == [160, 100]
    assert record["config"]["lr"] == result.config.lr
    assert "numba" in record["versions"]
    assert [row["loss"] for row in record["history"]] == [e.loss for e in whole.history]
    assert record["test"]["accuracy"] == whole.accuracy
    assert np.array(record["test"]["confusion"]).tolist() == whole.confusion.tolist()
    assert record["timing"]["seconds"] > 0
    assert {k["direction"] for k in record["kernels"]} == {"forward", "grad_input", "grad_weight"}


def test_plots_of_unusual_numbers(tmp_path: Path) -> None:
    row = {"epoch": 1, "loss": 2.3, "accuracy": 0.1, "test_accuracy": 0.1}
    plots.learning_curve([row], tmp_path / "one.png")
    plots.filters(np.zeros((3, 3, 5, 5)), tmp_path / "zeros.png")
    plots.confusion(np.diag([5, 0, 900]), tmp_path / "perfect.png", ("a", "b", "c"))
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3
