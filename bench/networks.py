"""Whole networks from :mod:`fastconv.nn`, for 1000 classes (the U-Net for 21), in PyTorch's default initialisation.

>>> from bench.networks import NETWORKS, build
>>> model = build("resnet18", seed=0).eval()

The running statistics of batch normalisation are those of a new layer (mean 0, variance 1): the numbers that come out
mean nothing, but take as long as any others.
"""

from collections.abc import Callable
from typing import Any

from fastconv import nn
from fastconv.autograd import concatenate


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """A convolution that keeps the size (at stride 1), batch normalisation and, if wanted, an activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    layers = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Residual(nn.Module):
    """``after(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, after: nn.Module) -> None:
        self.body, self.shortcut, self.after = body, shortcut, after

    def forward(self, x: Any) -> Any:
        return self.after(self.body(x) + self.shortcut(x))


# --- ResNet: He et al., Deep residual learning for image recognition, arXiv:1512.03385, table 1 ---------------------


def basic_block(inputs: int, width: int, stride: int) -> nn.Sequential:
    """Two 3×3 convolutions (figure 5, left)."""
    return nn.Sequential(conv_norm(inputs, width, 3, stride), conv_norm(width, width, 3, activation=None))


def bottleneck(inputs: int, width: int, stride: int) -> nn.Sequential:
    """1×1, 3×3 and 1×1 to four times the width (figure 5, right).

    The stride is the 3×3 convolution's, as in PyTorch's and NVIDIA's ResNet-50 ("v1.5"); the paper strides the first.
    """
    return nn.Sequential(
        conv_norm(inputs, width, 1),
        conv_norm(width, width, 3, stride),
        conv_norm(width, 4 * width, 1, activation=None),
    )


def resnet(body: Callable[[int, int, int], nn.Module], depths: tuple[int, ...], expansion: int) -> nn.Sequential:
    """Four stages of residual blocks, of widths 64 to 512; shortcuts are projections where the shape changes."""
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for i in range(depth):
            stride = 2 if stage and not i else 1
            outputs = expansion * width
            same = stride == 1 and channels == outputs
            shortcut = nn.Identity() if same else conv_norm(channels, outputs, 1, stride, activation=None)
            layers.append(Residual(body(channels, width, stride), shortcut, nn.ReLU()))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def resnet18() -> nn.Sequential:
    return resnet(basic_block, (2, 2, 2, 2), 1)


def resnet50() -> nn.Sequential:
    return resnet(bottleneck, (3, 4, 6, 3), 4)


# --- VGG: Simonyan and Zisserman, Very deep convolutional networks, arXiv:1409.1556, table 1, column D --------------


def vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers)


# --- MobileNetV2: Sandler et al., Inverted residuals and linear bottlenecks, arXiv:1801.04381, table 2 --------------


def inverted_residual(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
    """Expand (1×1), filter each channel (3×3 depthwise), project (1×1) without an activation."""
    width = expansion * inputs
    expand = [conv_norm(inputs, width, 1, activation=nn.ReLU6)] if expansion != 1 else []
    body = nn.Sequential(
        *expand,
        conv_norm(width, width, 3, stride, groups=width, activation=nn.ReLU6),
        conv_norm(width, outputs, 1, activation=None),
    )
    return Residual(body, nn.Identity(), nn.Identity()) if stride == 1 and inputs == outputs else body


def mobilenetv2() -> nn.Sequential:
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2, activation=nn.ReLU6)]
    channels = 32
    for expansion, width, depth, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(depth):
            layers.append(inverted_residual(channels, width, 1 if i else first_stride, expansion))
            channels = width
    layers += [conv_norm(channels, 1280, 1, activation=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, 1000))


# --- U-Net: Ronneberger et al., arXiv:1505.04597, figure 1, with fewer and padded levels and batch normalisation ----


class UNet(nn.Module):
    """Levels of two 3×3 convolutions, down by 2×2 max pooling and up by 2×2 transposed convolutions.

    On its way up, every level first joins what the level of the same size passed on its way down. Height and width
    must be multiples of 2 to the number of levels.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), classes: int = 21) -> None:
        *levels, bottom = widths
        self.down = [self.level(inputs, width) for inputs, width in zip((3, *levels), levels, strict=False)]
        self.bottom = self.level(levels[-1], bottom)
        pairs = list(zip(widths[1:], levels, strict=True))[::-1]  # from the bottom up: (256, 128), (128, 64), (64, 32)
        self.up = [nn.ConvTranspose2d(below, width, 2, stride=2) for below, width in pairs]
        self.joined = [self.level(2 * width, width) for _, width in pairs]
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(levels[0], classes, 1)

    @staticmethod
    def level(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(conv_norm(inputs, width, 3), conv_norm(width, width, 3))

    def forward(self, x: Any) -> Any:
        passed = []
        for level in self.down:
            passed.append(level(x))
            x = self.pool(passed[-1])
        x = self.bottom(x)
        for up, level in zip(self.up, self.joined, strict=True):
            x = level(concatenate([passed.pop(), up(x)], axis=1))
        return self.head(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "mobilenetv2": mobilenetv2,
    "unet": UNet,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A network of ``NETWORKS`` in training mode, the same weights for the same seed."""
    nn.manual_seed(seed)
    return NETWORKS[name]()
