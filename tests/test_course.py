"""The worked examples of introductory lectures on convolutional networks, with their exact numbers."""

import numpy as np
import pytest

import fastconv
from fastconv.filters import FILTERS

DTYPES = [np.float32, np.float64]


def image(rows: str, dtype: type = np.float32) -> np.ndarray:
    """A one-channel image from rows of characters: digits, or '#' for 1 and '.' for -1."""
    values = {"#": 1, ".": -1} | {str(d): d for d in range(10)}
    return np.array([[[values[c] for c in row] for row in rows.split()]], dtype)


def filters(*kernels: str, dtype: type = np.float32) -> np.ndarray:
    return np.stack([image(k, dtype) for k in kernels])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["direct", "im2col", "reference"])
def test_the_first_feature_map(dtype: type, algorithm: str) -> None:
    x = image("11100 01110 00111 00110 01100", dtype)
    y = fastconv.conv2d(x, filters("101 010 101", dtype=dtype), algorithm=algorithm)
    assert y.tolist() == [[[4, 3, 4], [2, 4, 3], [2, 3, 4]]]


def test_a_4x4_filter_shifted_by_2_pixels() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (1, 10, 12)).astype(np.float32)
    w = rng.integers(-4, 5, (1, 1, 4, 4)).astype(np.float32)
    bias = np.array([3], np.float32)
    y = fastconv.conv2d(x, w, bias, stride=2)
    assert y.shape == (1, 4, 5)
    for p in range(4):
        for q in range(5):  # out(p, q) = sum over i, j of w_ij x_(i+p, j+q), plus b, with p and q in steps of 2
            window = x[0, 2 * p : 2 * p + 4, 2 * q : 2 * q + 4]
            assert y[0, p, q] == (w[0, 0] * window).sum() + 3


def test_one_filter_is_shared_by_all_positions() -> None:
    """Shifting the input shifts the response: the meaning of weight sharing."""
    rng = np.random.default_rng(1)
    x = rng.integers(-4, 5, (1, 9, 9)).astype(np.float32)
    w = rng.integers(-4, 5, (1, 1, 3, 3)).astype(np.float32)
    y, shifted = fastconv.conv2d(x, w), fastconv.conv2d(np.roll(x, (1, 2), axis=(1, 2)), w)
    np.testing.assert_array_equal(shifted[:, 1:, 2:], y[:, :-1, :-2])


class TestOneDimension:
    """The filter (-1, 1, -1) responds to low-high-low."""

    signal = np.array([[0, 0, 1, 0, 0, 1, 1, 0, 0]], np.float32)
    w = np.array([[[-1, 1, -1]]], np.float32)

    def test_without_padding_the_output_is_shorter(self) -> None:
        y = fastconv.conv1d(self.signal, self.w)
        assert y.tolist() == [[-1, 1, -1, -1, 0, 0, -1]]

    def test_with_padding_it_is_equally_long(self) -> None:
        y = fastconv.conv1d(self.signal, self.w, padding="same")
        assert y.tolist() == [[0, -1, 1, -1, -1, 0, 0, -1, 0]]

    def test_relu_cuts_negative_responses(self) -> None:
        y = fastconv.conv1d(self.signal, self.w, padding="same", activation="relu")
        assert y.tolist() == [[0, 0, 1, 0, 0, 0, 0, 0, 0]]


class TestXRecogniser:
    """A 9x9 picture of an X in ±1 and three of its parts as filters."""

    x = image("......... .#.....#. ..#...#.. ...#.#... ....#.... ...#.#... ..#...#.. .#.....#. .........")
    distorted = image("......... .#.....#. ..#..#... ...##.... ....#.... ...#.#... ..#..#... .#....... .........")
    falling, crossing, rising = "#.. .#. ..#", "#.# .#. #.#", "..# .#. #.."
    w = filters(falling, crossing, rising)

    def test_a_perfect_match_sums_to_9(self) -> None:
        falling, crossing, rising = fastconv.conv2d(self.x, self.w)
        assert falling[1, 1] == falling[5, 5] == 9  # the ends of one stroke
        assert crossing[3, 3] == 9  # the middle
        assert rising[1, 5] == rising[5, 1] == 9  # the ends of the other
        assert [int((m == 9).sum()) for m in (falling, crossing, rising)] == [4, 1, 4]

    def test_the_first_feature_map_and_its_pooling(self) -> None:
        """The lecture shows averages, these sums divided by 9: 0.77, -0.11, 0.11, ... and 1.00, 0.33, 0.55, 0.33."""
        falling = fastconv.conv2d(self.x, self.w)[:1]
        assert falling[0, 0].tolist() == [7, -1, 1, 3, 5, -1, 3]
        assert falling[0, 1].tolist() == [-1, 9, -1, 3, -1, 1, -1]
        pooled = fastconv.max_pool2d(falling, 2, stride=2, ceil_mode=True)
        assert pooled.tolist() == [[[9, 3, 5, 3], [3, 9, 3, 5], [5, 3, 9, 1], [3, 5, 1, 7]]]

    def test_a_distorted_x_still_has_the_parts(self) -> None:
        """Whole-picture comparison fails (the pictures differ), while each part is found again."""
        assert (self.x != self.distorted).any()
        strongest = fastconv.conv2d(self.distorted, self.w).max(axis=(1, 2))
        assert strongest[0] == 9
        assert (strongest >= 5).all()


def test_two_channel_filter_combines_edge_maps_into_a_square_detector() -> None:
    """Layer 1 finds horizontal and vertical edges, one two-channel filter of layer 2 finds squares."""
    picture = np.zeros((1, 12, 16), np.float32)
    picture[0, 2:6, 2:6] = 1  # a 4x4 square
    picture[0, 8, 1:13] = 1  # a line
    edges = np.array([[[[1], [-1]]], [[[-1], [1]]]], np.float32)
    down = fastconv.conv2d(picture, edges, padding=(1, 0), activation="relu").max(axis=0)[:-1]
    right = fastconv.conv2d(picture, edges.swapaxes(2, 3), padding=(0, 1), activation="relu").max(axis=0)[:, :-1]
    w = np.zeros((1, 2, 5, 5), np.float32)
    w[0, 0, [0, 4], :4] = 1  # the horizontal map along the top and just below the square
    w[0, 1, :4, [0, 4]] = 1  # the vertical map along its left and just right of it
    score = fastconv.conv2d(np.stack([down, right]), w)[0]
    assert score.max() == 16  # 4 sides of 4
    assert np.argwhere(score == 16).tolist() == [[2, 2]]
    assert np.partition(score.ravel(), -2)[-2] < 13


class TestReceptiveField:
    """Two 3x3 layers see 5x5; with 2x2 pooling between them 8x8."""

    def seen(self, layers: int, pooled: bool) -> tuple[int, int]:
        x = fastconv.Tensor(np.zeros((1, 1, 20, 20)), requires_grad=True)
        w, y = np.ones((1, 1, 3, 3)), x
        for i in range(layers):
            if i and pooled:
                y = fastconv.avg_pool2d(y, 2)
            y = fastconv.conv2d(y, w)
        gradient = np.zeros(y.shape)
        gradient[0, 0, 2, 2] = 1
        y.backward(gradient)
        rows, columns = np.nonzero(x.grad[0, 0])
        return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1

    @pytest.mark.parametrize(("layers", "pooled", "size"), [(1, False, 3), (2, False, 5), (3, False, 7), (2, True, 8)])
    def test_by_gradient(self, layers: int, pooled: bool, size: int) -> None:
        assert self.seen(layers, pooled) == (size, size)


class TestPhotographFilters:
    """Sharpen, edges and strong edges on a small grey picture with one bright step."""

    x = np.full((1, 5, 6), 10, np.float32)
    x[0, :, 3:] = 50

    def respond(self, name: str) -> list[float]:
        w = np.array(FILTERS[name], np.float32)[None, None]
        y = fastconv.conv2d(self.x, w, padding=1, padding_mode="replicate")
        assert (y == y[:, :1]).all()  # nothing changes along the edge
        return y[0, 0].tolist()

    def test_sharpen_overshoots_at_the_edge(self) -> None:
        assert self.respond("sharpen") == [10, 10, -30, 90, 50, 50]

    def test_edges_respond_at_the_edge_only(self) -> None:
        assert self.respond("edges") == [0, 0, -40, 40, 0, 0]

    def test_strong_edges_respond_three_times_as_much(self) -> None:
        assert self.respond("strong-edges") == [0, 0, -120, 120, 0, 0]


class TestPooling:
    x = np.array([[[1, 3, 2, 1], [4, 2, 1, 5], [0, 1, 7, 2], [2, 3, 1, 6]]], np.float32)

    def test_max_mean_and_min(self) -> None:
        assert fastconv.max_pool2d(self.x, 2, stride=2).tolist() == [[[4, 5], [3, 7]]]
        assert fastconv.avg_pool2d(self.x, 2, stride=2).tolist() == [[[2.5, 2.25], [1.5, 4]]]
        assert fastconv.min_pool2d(self.x, 2, stride=2).tolist() == [[[1, 1], [0, 1]]]

    def test_the_gradient_goes_to_the_maximum(self) -> None:
        x = fastconv.Tensor(self.x[None], requires_grad=True)
        fastconv.max_pool2d(x, 2).sum().backward()
        assert x.grad[0, 0].tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]]


def test_sizes_of_the_lecture_classifier() -> None:
    """28 -> 26 -> 13 -> 11 -> 5 without padding; 8 -> 4 -> 2 with padding 1."""
    for size, padding, expected in ((28, 0, [26, 13, 11, 5]), (8, 1, [8, 4, 4, 2])):
        x, sizes = np.zeros((1, 1, size, size), np.float32), []
        for c, k in ((1, 32), (32, 64)):
            x = fastconv.conv2d(x, np.zeros((k, c, 3, 3), np.float32), padding=padding, activation="relu")
            sizes.append(x.shape[2])
            x = fastconv.max_pool2d(x, 2, stride=2)
            sizes.append(x.shape[2])
        assert sizes == expected


def test_transposed_convolution_upsamples() -> None:
    """A 2x2 kernel of ones with stride 2 repeats each pixel four times."""
    x = np.array([[[1, 2], [3, 4]]], np.float32)
    y = fastconv.conv_transpose2d(x, np.ones((1, 1, 2, 2), np.float32), stride=2)
    assert y.tolist() == [[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]]


def test_three_dimensions_for_video() -> None:
    """A filter over time: the difference of two frames finds what moved."""
    frames = np.zeros((1, 3, 4, 4), np.float32)
    for t in range(3):
        frames[0, t, 1, t] = 1
    moved = fastconv.conv3d(frames, np.array([-1, 1], np.float32).reshape(1, 1, 2, 1, 1))
    assert moved.shape == (1, 2, 4, 4)
    assert moved[0, 0, 1].tolist() == [-1, 1, 0, 0]
    assert moved[0, 1, 1].tolist() == [0, -1, 1, 0]
