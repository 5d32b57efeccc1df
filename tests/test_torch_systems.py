"""Converted PyTorch models under PyTorch's other parts: autocast, compilers, transforms, processes."""

import copy
import multiprocessing
import os
import socket

import pytest

from tests.support import require

torch = require("torch")
nn = torch.nn

from fastconv.backends import torch as fct  # noqa: E402  # needs PyTorch
from tests.test_torch_modules import chain, close, folds_used, image  # noqa: E402


@pytest.mark.parametrize("gradients", [False, True])
def test_autocast(gradients):
    theirs, x = chain(bias=True), image()
    ours = fct.convert(copy.deepcopy(theirs))
    with torch.set_grad_enabled(gradients):
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = ours(x), theirs(x)
        assert y.dtype == expected.dtype == torch.bfloat16
        close(y.float(), expected.float(), 5e-2)
        assert ours(x).dtype == torch.float32
        close(ours(x), theirs(x))
        with pytest.raises(RuntimeError):  # as in PyTorch: outside autocast dtypes must agree
            ours(x.bfloat16())
    assert len(folds_used(ours[0])) == (0 if gradients else 2)


def test_training_learns_the_same():
    x, target = image(), torch.randn(2, 8, 4, 5)
    models = [nn.Sequential(*chain(bias=True), nn.AvgPool2d(2)).train() for _ in range(2)]
    fct.convert(models[0])
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
        model.eval()
    with torch.no_grad():
        close(models[0](x), models[1](x), 1e-4)
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        close(a, b, 1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_compiled(training):
    torch._dynamo.reset()
    model, x = fct.convert(nn.Sequential(*chain(), nn.MaxPool2d(2))).train(training), image()
    other = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    close(compiled(x), other(x))
    with torch.no_grad():
        close(compiled(x), other(x))
        close(model(x), other(x))


def test_exported():
    model, x = fct.convert(nn.Sequential(*chain(), nn.MaxPool2d(2))).eval(), image()
    with torch.no_grad():
        expected = model(x)
        program = torch.export.export(model, (x,))
    assert "fastconv.conv" in str(program.graph)
    assert "fastconv.max_pool" in str(program.graph)
    close(program.module()(x), expected)


def test_transforms():
    model, x = fct.convert(chain()), image()
    state = {k: v.detach() * 1.5 for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        close(torch.func.vmap(model)(x[:, None]), expected[:, None])
        other = copy.deepcopy(model)
        other.load_state_dict(state)
        close(torch.func.functional_call(model, state, (x,)), other(x), 1e-4)
        close(model(x), expected)


def test_tensors_without_version_counters():
    with torch.inference_mode():
        conv = fct.convert(nn.Conv2d(4, 4, 3)).eval()
        x = image()
        for _ in range(2):
            close(conv(x), nn.functional.conv2d(x, conv.weight, conv.bias))
            conv.weight.mul_(2)
    assert not conv._fastconv.plans


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode_derivatives_are_not_forgotten():
    conv, x = fct.convert(nn.Conv2d(4, 4, 3).eval().requires_grad_(False)), image()
    conv(x)
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(conv(forward_ad.make_dual(x, x))).tangent
    close(tangent, nn.functional.conv2d(x, conv.weight))


# ---------------------------------------------------------------------------------------------------------- processes


class Features(torch.utils.data.Dataset):
    """A dataset whose items are made by a converted model."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 6

    def __getitem__(self, i):
        with torch.no_grad():
            return self.model(image(1, 4, 9, 10, seed=i))[0]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning")
def test_in_forked_data_loaders():
    data = Features(fct.convert(nn.Sequential(*chain(), nn.MaxPool2d(2)).eval()))
    expected = torch.stack([data[i] for i in range(len(data))])  # both thread pools have run in this process
    loader = torch.utils.data.DataLoader(
        data, 3, num_workers=2, multiprocessing_context="fork", collate_fn=lambda items: torch.stack(items) * 1
    )
    assert torch.equal(torch.cat(list(loader)), expected)


def distributed(rank, port, results):
    """One of two processes that train on half the images each."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        model = nn.parallel.DistributedDataParallel(fct.convert(small()))
        model(image(4, 3, 8, 8)[2 * rank : 2 * rank + 2]).square().mean().backward()
        results.put((rank, [p.grad.numpy() for p in model.parameters()]))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 2, 2, 2))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_distributed_gradients_are_those_of_one_process():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=distributed, args=(rank, port, results)) for rank in range(2)]
    for p in processes:
        p.start()
    try:
        found = dict(results.get(timeout=120) for _ in processes)
    finally:
        for p in processes:
            p.join(20)
            if p.is_alive():
                p.kill()
    assert [p.exitcode for p in processes] == [0, 0]
    model = small()
    model(image(4, 3, 8, 8)).square().mean().backward()
    for rank in found:
        close([torch.from_numpy(g) for g in found[rank]], [p.grad for p in model.parameters()], 1e-5)
