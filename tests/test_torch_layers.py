"""Layers as people write them: a table of kinds, kernels and sizes, in eval mode, in training and one by one.

The kinds are those of KernelBench's first level (convolutions of every rank, square, oblong, strided, dilated, grouped,
depthwise, separable and transposed; poolings), smaller.
"""

import pytest

from tests.support import require

torch = require("torch")
nn = torch.nn

from fastconv.backends import torch as fct  # noqa: E402  # needs PyTorch

SQUARE, WIDE, TALL = (2, 16, 24, 24), (2, 16, 12, 40), (2, 16, 41, 13)
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
CUBE, BRICK, LINE = (1, 8, 10, 10, 10), (1, 8, 6, 9, 14), (2, 16, 130)


def separable(inputs, outputs, kernel, **depthwise):
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, kernel, groups=inputs, bias=False, **depthwise), nn.Conv2d(inputs, outputs, 1)
    )


LAYERS = {
    "1-D": (nn.Conv1d(16, 24, 3), LINE),
    "1-D, dilated and strided": (nn.Conv1d(16, 24, 3, stride=3, dilation=4), LINE),
    "1-D, long kernel, causal": (nn.Sequential(nn.ConstantPad1d((30, 0), 0.0), nn.Conv1d(16, 16, 31, groups=16)), LINE),
    "2-D": (nn.Conv2d(16, 24, 3), SQUARE),
    "2-D, wide input": (nn.Conv2d(16, 24, 3, padding=1), WIDE),
    "2-D, oblong kernel": (nn.Conv2d(16, 24, (3, 7), padding=(1, 3), bias=False), SQUARE),
    "2-D, both oblong": (nn.Conv2d(16, 24, (5, 2), stride=(2, 1)), TALL),
    "2-D, dilated and padded": (nn.Conv2d(16, 24, (3, 5), padding=(2, 4), dilation=(2, 3)), SQUARE),
    "2-D, first layer": (nn.Conv2d(3, 32, 7, stride=2, padding=3), (2, 3, 50, 51)),
    "2-D, patches": (nn.Conv2d(3, 40, 8, stride=8), (2, 3, 48, 64)),
    "2-D, same": (nn.Conv2d(16, 24, 5, padding="same"), WIDE),
    "2-D, reflected": (nn.Conv2d(16, 24, 3, padding=2, padding_mode="reflect"), SQUARE),
    "2-D, circular": (nn.Conv2d(16, 24, 3, padding=1, padding_mode="circular"), TALL),
    "2-D, groups": (nn.Conv2d(16, 32, 3, padding=1, groups=4), SQUARE),
    "pointwise": (nn.Conv2d(16, 64, 1, bias=False), SQUARE),
    "pointwise, strided": (nn.Conv2d(16, 64, 1, stride=2), TALL),
    "depthwise": (nn.Conv2d(16, 16, 3, groups=16), SQUARE),
    "depthwise, oblong kernel": (nn.Conv2d(16, 16, (3, 1), stride=(1, 2), groups=16), WIDE),
    "depthwise, large": (nn.Conv2d(16, 16, 7, padding=3, groups=16), SQUARE),
    "depthwise, multiplied": (nn.Conv2d(16, 48, 3, stride=2, padding=1, groups=16), SQUARE),
    "separable": (separable(16, 24, 3, padding=1), SQUARE),
    "separable, dilated": (separable(16, 24, 3, stride=2, padding=2, dilation=2), SQUARE),
    "3-D": (nn.Conv3d(8, 12, 3), CUBE),
    "3-D, flat kernel": (nn.Conv3d(8, 12, (1, 3, 3), padding=(0, 1, 1)), BRICK),
    "3-D, strided, dilated, groups": (nn.Conv3d(8, 12, 3, stride=2, padding=2, dilation=2, groups=4), BRICK),
    "transposed 1-D": (nn.ConvTranspose1d(16, 24, 3), LINE),
    "transposed 1-D, dilated": (nn.ConvTranspose1d(16, 24, 3, dilation=3), LINE),
    "transposed 1-D, all at once": (nn.ConvTranspose1d(16, 24, 5, stride=2, padding=1, dilation=2), LINE),
    "transposed 2-D": (nn.ConvTranspose2d(16, 24, 3), SQUARE),
    "transposed 2-D, doubling": (nn.ConvTranspose2d(16, 24, 2, stride=2), SQUARE),
    "transposed 2-D, doubling smoothly": (nn.ConvTranspose2d(16, 24, 4, stride=2, padding=1, bias=False), WIDE),
    "transposed 2-D, an odd size": (nn.ConvTranspose2d(16, 24, 3, stride=2, padding=1, output_padding=1), TALL),
    "transposed 2-D, oblong": (nn.ConvTranspose2d(16, 24, (3, 7), stride=(3, 4), padding=(1, 2)), TALL),
    "transposed 2-D, all at once": (
        nn.ConvTranspose2d(16, 24, (3, 5), (2, 3), (1, 2), (1, 0), groups=4, dilation=(2, 1)), WIDE,
    ),
    "transposed 2-D, depthwise": (nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1, groups=16), SQUARE),
    "transposed 3-D": (nn.ConvTranspose3d(8, 12, 3), CUBE),
    "transposed 3-D, strided groups": (nn.ConvTranspose3d(8, 12, (3, 2, 4), 2, 1, groups=4), BRICK),
    "maximum 1-D": (nn.MaxPool1d(4, stride=2, padding=2, dilation=3), LINE),
    "maximum 2-D": (nn.MaxPool2d(4, stride=1, padding=1), SQUARE),
    "maximum 2-D, ceiling": (nn.MaxPool2d((3, 2), stride=(2, 3), dilation=(1, 2), ceil_mode=True), TALL),
    "maximum 3-D": (nn.MaxPool3d(3, stride=2, padding=1, dilation=2), CUBE),
    "average 1-D": (nn.AvgPool1d(8, stride=1, padding=4), LINE),
    "average 2-D": (nn.AvgPool2d(11, stride=11), SQUARE),
    "average 2-D, without padding": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), WIDE),
    "average 3-D": (nn.AvgPool3d(3, stride=2, padding=1), BRICK),
    "norm 1-D": (nn.LPPool1d(2, 4), LINE),
    "norm 2-D": (nn.LPPool2d(1, (2, 3), stride=2), SQUARE),
    "adaptive": (nn.Sequential(nn.AdaptiveMaxPool2d((7, None)), nn.AdaptiveAvgPool2d(5)), TALL),
    "global": (nn.AdaptiveAvgPool3d(1), BRICK),
}  # fmt: skip


def gradients(layer, x):
    leaves = [x, *layer.parameters()]
    y = layer(x)
    return [y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), leaves)]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name):
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    layer.train()
    theirs = gradients(layer, x)
    with torch.no_grad():
        unbatched = layer(x[0])
    fct.convert(layer)
    try:
        ours = gradients(layer, x)
        layer.eval()
        with torch.no_grad():
            forms = [x, *(x.to(memory_format=form) for rank, form in LAST.items() if rank == x.dim())]
            ours += [layer(form) for form in forms for _ in range(3)]
            torch.testing.assert_close(layer(x[0]), unbatched, rtol=1e-4, atol=1e-4)
        assert not any("PyTorch" in line.runs for line in fct.explain(layer).lines), fct.explain(layer)
    finally:
        fct.revert(layer)
    theirs += [theirs[0]] * (len(ours) - len(theirs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.detach().abs().max())))
