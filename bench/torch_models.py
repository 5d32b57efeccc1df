"""The networks of :mod:`bench.networks` as PyTorch modules, written the way PyTorch users write them.

>>> from bench.torch_models import NETWORKS, build
>>> model = build("resnet18", seed=0)

In eval mode, with statistics and scales of batch normalisation as a trained network might have them, so that folding
them wrongly shows.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int, groups: int, activation: type) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


# --- ResNet: He et al., arXiv:1512.03385, table 1; the stride of a bottleneck is its 3×3 convolution's ("v1.5") -------


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


def resnet(block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for i in range(depth):
            stride, outputs = 2 if stage and not i else 1, block.expansion * width
            shortcut = None
            if stride != 1 or channels != outputs:
                shortcut = nn.Sequential(nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            layers.append(block(channels, width, stride, shortcut))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


# --- VGG: Simonyan and Zisserman, arXiv:1409.1556, table 1, column D --------------------------------------------------


def vgg16(dense: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    if not dense:
        return nn.Sequential(*layers)
    layers += [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, 1000))


# --- MobileNetV2: Sandler et al., arXiv:1801.04381, table 2 -----------------------------------------------------------


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * inputs
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *([conv_norm(inputs, width, 1, 1, 1, nn.ReLU6)] if expansion != 1 else []),
            conv_norm(width, width, 3, stride, width, nn.ReLU6),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenetv2() -> nn.Sequential:
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2, 1, nn.ReLU6)]
    channels = 32
    for expansion, width, depth, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(depth):
            layers.append(InvertedResidual(channels, width, 1 if i else first_stride, expansion))
            channels = width
    layers += [conv_norm(channels, 1280, 1, 1, 1, nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, 1000))


# --- U-Net: Ronneberger et al., arXiv:1505.04597, figure 1, with fewer and padded levels and batch normalisation ------


class UNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), classes: int = 21) -> None:
        super().__init__()
        *levels, bottom = widths
        inputs = (3, *levels[:-1])
        self.down = nn.ModuleList([self.level(i, width) for i, width in zip(inputs, levels, strict=True)])
        self.bottom = self.level(levels[-1], bottom)
        pairs = list(zip(widths[1:], levels, strict=True))[::-1]
        self.up = nn.ModuleList([nn.ConvTranspose2d(below, width, 2, stride=2) for below, width in pairs])
        self.joined = nn.ModuleList([self.level(2 * width, width) for _, width in pairs])
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(levels[0], classes, 1)

    @staticmethod
    def level(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed = []
        for level in self.down:
            passed.append(level(x))
            x = self.pool(passed[-1])
        x = self.bottom(x)
        for up, level in zip(self.up, self.joined, strict=True):
            x = level(torch.cat([passed.pop(), up(x)], 1))
        return self.head(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": partial(resnet, BasicBlock, (2, 2, 2, 2)),
    "resnet50": partial(resnet, Bottleneck, (3, 4, 6, 3)),
    "vgg16": vgg16,
    "vgg16-convolutions": partial(vgg16, dense=False),
    "mobilenetv2": mobilenetv2,
    "unet": UNet,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A network of ``NETWORKS`` in eval mode, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.normal_(module.bias, 0, 0.1)
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()
