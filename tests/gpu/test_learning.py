"""Networks on a GPU, and PyTorch's tensors there."""

import json

import numpy as np
import pytest

import fastconv as fc
from fastconv import nn, optim
from fastconv.testing import integers
from fastconv.train import build_model
from tests.gpu import operations
from tests.support import require


def losses(model, x, labels, steps, lr=1e-3):
    opt = optim.Adam(model.parameters(), lr=lr)
    found = []
    for _ in range(steps):
        loss = nn.cross_entropy(model(x), labels)
        opt.zero_grad()
        loss.backward()
        opt.step()
        found.append(loss.item())
    return found


def test_the_lecture_network_learns(cupy):
    require("numba")
    x, labels = integers((8, 1, 12, 12), seed=6), np.arange(8) % 4
    results = []
    for array in (np.asarray, cupy.asarray):
        nn.manual_seed(0)
        model = build_model((1, 12, 12), 4)
        if array is not np.asarray:
            model.to("cuda")
        results.append(losses(model, array(x), array(labels), 4))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3)
    assert results[1][-1] < results[1][0]


def test_a_residual_network_learns(cupy):
    """Batch normalisation, strides, additions, global average pooling."""
    nn.manual_seed(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.down, self.side = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(8, 16, 1, stride=2)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            y = nn.ReLU()(self.norm(self.stem(x)))
            y = nn.ReLU()(self.down(y) + self.side(y))
            return self.head(nn.Flatten()(nn.AdaptiveAvgPool2d(1)(y)))

    model = Net().to("cuda")
    x, labels = cupy.asarray(integers((6, 3, 10, 10), seed=2)), cupy.asarray(np.arange(6) % 3)
    found = losses(model, x, labels, 12, lr=0.02)
    assert found[-1] < 0.8 * found[0]


@pytest.mark.parametrize("kind", operations.KINDS)
def test_every_operation_of_networks(cupy, kind):
    require("numba")
    operations.compare(kind, cupy.asarray, "cuda")


def test_networks_on_the_second_device(gpu):
    require("numba")
    if gpu.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")

    def put(array):
        with gpu.cuda.Device(1):
            return gpu.asarray(array)

    for kind in operations.KINDS:
        operations.compare(kind, put, "cuda:1")


def test_dropout(cupy):
    """Drawn on the device, by the seed."""
    x, drop = cupy.asarray(np.ones((100, 100), np.float32)), nn.Dropout(0.25)
    results = []
    for _ in range(2):
        nn.manual_seed(5)
        results.append(drop(x).get())
    np.testing.assert_array_equal(*results)
    assert np.array_equal(np.unique(results[0]), np.float32([0, 1 / 0.75]))
    assert abs(results[0].mean() - 1) < 0.03
    assert not np.array_equal(drop(x).get(), results[0])


def test_the_training_program(cupy, tmp_path, monkeypatch):
    for name in ("sklearn", "safetensors", "matplotlib", "typer"):
        require(name)
    from fastconv import cli

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--epochs", "2", "--split", "60/30", "--batch-size", "20", "--device", "cuda", "--out", "r"])
    assert end.value.code == 0
    record = json.loads((tmp_path / "r" / "record.json").read_text())
    assert record["config"]["device"] == "cuda"
    assert len(record["history"]) == 2


def test_pytorchs_tensors(gpu):
    """Through DLPack, in the order of PyTorch's stream, even where that is still busy with them."""
    torch = require("torch")
    x, w = integers((4, 32, 40, 40)), integers((32, 32, 3, 3), seed=1)
    with fc.options(algorithm="reference"):
        expected = fc.conv2d(x.astype(np.float64), w.astype(np.float64), padding=1)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        there, weights = torch.zeros(x.shape, device="cuda"), torch.zeros(w.shape, device="cuda")
        here = [torch.from_numpy(a).pin_memory() for a in (x, w)]
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        there.copy_(here[0], non_blocking=True)
        weights.copy_(here[1], non_blocking=True)
        y = fc.conv2d(there, weights, padding=1)
    assert type(y) is gpu.ndarray
    got = torch.from_dlpack(y).cpu().numpy()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_pytorchs_functions(gpu):
    torch = require("torch")
    from fastconv.backends.torch import functions as f

    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    x = torch.randn(3, 8, 14, 14, device="cuda", requires_grad=True)
    w = torch.randn(16, 8, 3, 3, device="cuda", requires_grad=True)
    gradients = []
    for conv, pool in (
        (torch.nn.functional.conv2d, torch.nn.functional.max_pool2d),
        (f.conv2d, f.max_pool2d),
    ):
        y = pool(conv(x, w, padding=1), 2)
        y.square().sum().backward()
        gradients.append([y.detach(), x.grad.clone(), w.grad.clone()])
        x.grad = w.grad = None
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()


def test_a_converted_pytorch_model(gpu):
    """Plans with weights packed and normalisation folded in, in both formats and on a stream of PyTorch's."""
    torch = require("torch")
    from fastconv.backends.torch import convert

    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    layers = [
        torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 16, 1), torch.nn.ConvTranspose2d(16, 4, 2, stride=2),
    ]  # fmt: skip
    model = torch.nn.Sequential(*layers).cuda().eval()
    x = torch.randn(2, 8, 20, 24, device="cuda")
    with torch.no_grad():
        model[1].running_mean.normal_()
        expected = model(x)
        convert(model)
        for form in (torch.contiguous_format, torch.channels_last):
            given = x.to(memory_format=form)
            torch.cuda.synchronize()
            for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
                with torch.cuda.stream(stream):
                    results = [model(given) for _ in range(3)]
                    stream.synchronize()
                    for got in results:
                        assert got.is_contiguous(memory_format=form)
                        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
