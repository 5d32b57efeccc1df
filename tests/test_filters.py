"""Filters on photographs: numbers, modes of images, files that are no images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastconv.filters import FILTERS, filter_image, read_image, write_image


def by_hand(plane: np.ndarray, kernel: str) -> np.ndarray:
    """One channel with its border repeated, tap by tap in float64."""
    padded = np.pad(plane.astype(np.float64), 1, mode="edge")
    h, w = plane.shape
    total = sum(FILTERS[kernel][i][j] * padded[i : i + h, j : j + w] for i in range(3) for j in range(3))
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kernel", FILTERS)
def test_every_filter_on_grey_and_colour(kernel: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    result = filter_image(image, kernel)
    assert result.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(result[:, :, channel], by_hand(image[:, :, channel], kernel))
        np.testing.assert_array_equal(filter_image(image[:, :, channel], kernel), by_hand(image[:, :, channel], kernel))


def test_flat_areas_stay_or_turn_black() -> None:
    flat = np.full((4, 5), 77, np.uint8)
    for kernel, weights in FILTERS.items():
        expected = 77 * round(sum(map(sum, weights)))
        assert expected in (0, 77)
        assert (filter_image(flat, kernel) == expected).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_kept(channels: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (6, 6, channels), dtype=np.uint8)
    result = filter_image(image, "edges")
    np.testing.assert_array_equal(result[:, :, -1], image[:, :, -1])
    np.testing.assert_array_equal(result[:, :, 0], by_hand(image[:, :, 0], "edges"))


def test_the_image_is_not_changed() -> None:
    image = np.random.default_rng(2).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    before = image.copy()
    image.flags.writeable = False
    filter_image(image, "sharpen")
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (0, 5), (5, 0, 3), (2, 2, 1)])
def test_small_and_empty_images(shape: tuple[int, ...]) -> None:
    assert filter_image(np.zeros(shape, np.uint8), "blur").shape == shape


def test_wrong_arguments() -> None:
    image = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"kernel must be one of identity, sharpen, .*; got 'sharper'"):
        filter_image(image, "sharper")
    with pytest.raises(TypeError, match="image must be uint8, got float64"):
        filter_image(image.astype(float), "blur")
    with pytest.raises(ValueError, match=r"got shape \(4, 4, 5\)"):
        filter_image(np.zeros((4, 4, 5), np.uint8), "blur")


class TestFiles:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)

    @pytest.mark.parametrize(
        ("mode", "shape"),
        [("L", ()), ("1", ()), ("LA", (2,)), ("RGB", (3,)), ("RGBA", (4,)), ("P", (3,)), ("CMYK", (3,)), ("I;16", ())],
    )
    def test_modes(self, mode: str, shape: tuple[int, ...], tmp_path: Path) -> None:
        path = tmp_path / "image.tif"
        Image.fromarray(self.grey).convert(mode).save(path)
        image = read_image(path)
        assert image.shape == (6, 8, *shape)
        assert image.dtype == np.uint8

    def test_16_bit_grey_is_scaled(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 65535, 257 * 100]], np.uint16)).save(tmp_path / "image.png")
        assert read_image(tmp_path / "image.png").tolist() == [[0, 255, 100]]

    def test_the_cameras_orientation_is_followed(self, tmp_path: Path) -> None:
        image = Image.fromarray(self.grey)
        exif = image.getexif()
        exif[0x0112] = 3  # upside down
        image.save(tmp_path / "image.png", exif=exif)
        np.testing.assert_array_equal(read_image(tmp_path / "image.png"), self.grey[::-1, ::-1])

    def test_written_images_come_back(self, tmp_path: Path) -> None:
        for channels in ((), (2,), (3,), (4,)):
            image = np.random.default_rng(3).integers(0, 256, (5, 7, *channels), dtype=np.uint8)
            write_image(tmp_path / "image.png", image)
            np.testing.assert_array_equal(read_image(tmp_path / "image.png"), image)

    def test_unreadable_files(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"none\.png: no such file"):
            read_image(tmp_path / "none.png")
        (tmp_path / "text.png").write_text("this is no picture")
        with pytest.raises(ValueError, match=r"text\.png: not an image"):
            read_image(tmp_path / "text.png")
        write_image(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 256, (99, 99), dtype=np.uint8))
        (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
        with pytest.raises(ValueError, match=r"cut\.png: cannot be read as an image"):
            read_image(tmp_path / "cut.png")
        with pytest.raises(ValueError, match="cannot be read as an image"):
            read_image(tmp_path)

    def test_unwritable_files(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"must end in an image format, for example \.png"):
            write_image(tmp_path / "image.xyz", self.grey)
        with pytest.raises(ValueError, match=r"cannot be written: .*; use a \.png name"):
            write_image(tmp_path / "image.jpg", np.zeros((4, 4, 4), np.uint8))
        with pytest.raises(FileNotFoundError):
            write_image(tmp_path / "none" / "image.png", self.grey)
