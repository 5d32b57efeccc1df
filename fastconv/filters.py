"""The lecture's 3×3 image filters, on photographs: sharpen, detect edges, blur, emboss.

Each colour channel is convolved by itself (a depthwise convolution, ``groups`` = channels), the border repeats the
outermost pixel, and results are rounded and cut to 0…255. Cutting is what ReLU does to negative responses: an edge
detector keeps the bright side of each edge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import functional
from .extras import extra

FILTERS: dict[str, tuple[tuple[float, ...], ...]] = {
    "identity": ((0, 0, 0), (0, 1, 0), (0, 0, 0)),
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "edges": ((0, -1, 0), (-1, 4, -1), (0, -1, 0)),
    "strong-edges": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    "horizontal-edges": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "vertical-edges": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "blur": ((1 / 16, 2 / 16, 1 / 16), (2 / 16, 4 / 16, 2 / 16), (1 / 16, 2 / 16, 1 / 16)),
    "emboss": ((-2, -1, 0), (-1, 1, 1), (0, 1, 2)),
}
"""Name → rows of weights. Those that sum to 1 keep flat areas as they are; those that sum to 0 turn them black."""


def filter_image(image: np.ndarray, kernel: str) -> np.ndarray:
    """Convolve a photograph with one of the :data:`FILTERS`.

    >>> import numpy as np
    >>> image = np.zeros((4, 6), np.uint8)
    >>> image[:, 3:] = 10  # a vertical edge
    >>> filter_image(image, "edges").tolist()[0]
    [0, 0, 0, 10, 0, 0]

    Parameters
    ----------
    image : uint8 array (height, width), or (height, width, channels) with 1 to 4 channels. Of 2 or 4 channels the last
        is transparency and is kept.
    kernel : a name in :data:`FILTERS`.

    Returns
    -------
    uint8 array of the image's shape.

    Raises
    ------
    TypeError, ValueError : not such an image; an unknown filter.

    Source: any image-processing text; "horizontal-edges" and "vertical-edges" are Sobel's operators.
    """
    if kernel not in FILTERS:
        raise ValueError(f"kernel must be one of {', '.join(FILTERS)}; got {kernel!r}")
    if image.dtype != np.uint8:
        raise TypeError(
            f"image must be uint8, got {image.dtype}; scale it to 0…255 and convert with image.astype(numpy.uint8)"
        )
    if image.ndim == 2:
        return filter_image(image[:, :, None], kernel)[:, :, 0]
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4:
        raise ValueError(f"image must be (height, width) or (height, width, 1 to 4 channels), got shape {image.shape}")
    result = image.copy()
    colours = 1 if image.shape[2] < 3 else 3
    if image.size:
        weights = np.broadcast_to(np.array(FILTERS[kernel], np.float32), (colours, 1, 3, 3))
        response = functional.conv2d(
            image[:, :, :colours].astype(np.float32), weights, padding=1, padding_mode="replicate", groups=colours,
            layout="channels_last",
        )  # fmt: skip
        result[:, :, :colours] = np.clip(np.rint(response), 0, 255)
    return result


def read_image(path: str | Path) -> np.ndarray:
    """A photograph as uint8, (height, width) if grey, else (height, width, 3); with transparency one channel more.

    Upright, as its camera's orientation mark says. Any file that Pillow reads.

    Raises
    ------
    ValueError : the file is no image that can be read.
    ImportError : Pillow is missing.
    """
    images, operations = _pillow(), extra("PIL.ImageOps", "examples", "reading photographs")
    try:
        with images.open(path) as opened:
            image = operations.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16-bit grey
                return np.clip(np.asarray(image) / 257.0, 0, 255).round().astype(np.uint8)
            return np.asarray(image.convert(_eight_bit_mode(image)))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except images.UnidentifiedImageError:
        raise ValueError(f"{path}: not an image in a format that Pillow reads") from None
    except (OSError, SyntaxError, ValueError, images.DecompressionBombError) as error:  # what Pillow's readers raise
        raise ValueError(f"{path}: cannot be read as an image: {error}") from None


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write what :func:`read_image` gives, in the format that the file's ending names.

    Raises
    ------
    ValueError : the ending names no format Pillow writes, or the format cannot hold the image.
    OSError : the file cannot be written.
    ImportError : Pillow is missing.
    """
    images = _pillow()
    path = Path(path)
    images.init()
    if path.suffix.lower() not in images.EXTENSION:
        raise ValueError(f"{path}: the name must end in an image format, for example .png")
    try:
        images.fromarray(image).save(path)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: cannot be written: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(
            f"{path}: cannot be written: {error}; use a .png name"
        ) from None  # "cannot write mode RGBA as JPEG"


def _pillow() -> Any:
    return extra("PIL.Image", "examples", "reading and writing photographs")


def _eight_bit_mode(image: Any) -> str:
    """Pillow's 8-bit mode that loses least: grey stays grey, transparency stays."""
    grey = image.mode in ("1", "L", "LA", "La", "F")
    transparent = image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info
    return ("L" if grey else "RGB") + ("A" if transparent else "")
