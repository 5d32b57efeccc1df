"""The referee itself: that it knows every shape, passes what is right, and catches what is wrong."""

from dataclasses import replace

import numpy as np
import pytest

from fastconv import testing
from fastconv.kernels import reference
from fastconv.problem import adaptive_pool_problem, conv_problem, pool_problem, unpool_problem
from fastconv.registry import ROWS, Row
from fastconv.testing import assert_matches, assert_rms, cases, check_grads, check_row, integers

REFERENCE = {(row.op, row.direction): row for row in ROWS if row.family == "reference"}


# ----------------------------------------------------------------------------------------------------------- suites


def test_every_case_of_the_suites_is_there():
    rows = {suite: len(testing.SUITES[suite]) for suite in testing.SUITES}
    assert rows == {
        "resnet": 4, "vgg": 8, "unet": 8, "lecture": 1, "pointwise": 8, "first": 8, "strided": 4, "depthwise": 6,
        "awkward": 8, "conv1d": 4, "conv3d": 2, "pooling": 11,
    }  # fmt: skip


def test_names_are_unique_and_say_what_is_unusual():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    expected = {
        "resnet/64x56-64k3", "lecture/32x26-64k3p0", "pointwise/256x56-512k1s2", "first/3x224-64k11s4p2",
        "depthwise/96x112-96k3s2g96", "awkward/64x56-64k3d2", "awkward/512x14-512k3g32", "conv1d/64x1024-64k3p1d4",
        "conv3d/3x16x112x112-64k3", "pooling/64x112-max3s2", "pooling/64x224-avg2s2", "pooling/2048x7-global_avg",
    }  # fmt: skip
    assert expected <= set(names)


def test_every_case_is_a_valid_problem_in_every_direction():
    for case in cases():
        for direction in case.directions:
            for batch in case.batches():
                problem = case.problem(batch, direction=direction)
                assert (problem.op, problem.geometry.batch, problem.geometry.rank) == (case.op, batch, case.rank)


def test_known_sizes():
    by_name = {case.name: case for case in cases()}
    assert by_name["first/3x224-64k7s2"].problem().geometry.output_size == (112, 112)
    assert by_name["first/3x224-64k11s4p2"].problem().geometry.output_size == (55, 55)
    assert by_name["conv1d/1x16000-64k10s5p0"].problem().geometry.output_size == (3199,)
    assert by_name["pooling/2048x7-global_avg"].problem().geometry.output_size == (1, 1)
    assert by_name["awkward/1x28-16k3"].batches() == (64,)
    assert by_name["resnet/64x56-64k3"].batches("cuda") == (32, 128)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"suite must be None or one of 'resnet'.*got 'alexnet'"):
        cases("alexnet")
    with pytest.raises(ValueError, match=r"op must be None or one of 'avg_pool', 'conv', 'max_pool'; got 'pool'"):
        cases(op="pool")


# ------------------------------------------------------------------------------------------------------- assertions


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_integers_are_integers_of_the_dtype(dtype):
    data = integers((50, 20), dtype, seed=3)
    assert data.dtype.name == dtype
    assert sorted(set(data.ravel().tolist())) == list(range(-4, 5))
    np.testing.assert_array_equal(data, integers((50, 20), dtype, seed=3))
    assert set(integers((99,), dtype, low=0, high=1).tolist()) == {0, 1}


def test_a_match_is_per_element():
    expected = np.array([1.0, 1000.0])
    actual = np.float32([1.01, 1000.0])
    assert_matches(actual, expected, bound=0.02, magnitude=np.abs(expected))
    with pytest.raises(AssertionError, match=r"element \(0,\).*10 times the allowed 0\.001.*1 of 2 elements"):
        assert_matches(actual, expected, bound=0.001, magnitude=np.abs(expected))


def test_a_message_names_the_worst_element():
    actual = np.zeros((2, 3, 4), np.float32)
    actual[1, 2, 0] = 7
    actual[0, 0, 0] = 1
    with pytest.raises(AssertionError, match=r"mine: element \(1, 2, 0\) is 7\.0, expected 0\.0.*2 of 24 elements"):
        assert_matches(actual, np.zeros((2, 3, 4)), bound=1e-6, magnitude=1, what="mine")


def test_what_is_not_finite_must_be_equal():
    special = np.array([np.nan, np.inf, -np.inf])
    assert_matches(special, special, bound=0, magnitude=0)
    for wrong in ([0, np.inf, -np.inf], [np.nan, -np.inf, -np.inf], [np.nan, np.inf, np.nan]):
        with pytest.raises(AssertionError, match="1 of 3 elements"):
            assert_matches(np.array(wrong), special, bound=0.5, magnitude=1)
    with pytest.raises(AssertionError, match="element"):
        assert_matches(np.array([np.nan]), np.array([1.0]), bound=0.5, magnitude=1)


def test_equality_shapes_and_empty_results():
    with pytest.raises(AssertionError, match="it must be equal"):
        assert_matches(np.float32([1 + 2**-20]), np.array([1.0]), bound=0, magnitude=1)
    with pytest.raises(AssertionError, match=r"shape is \(2,\), expected \(1,\)"):
        assert_matches(np.zeros(2), np.zeros(1), bound=1, magnitude=1)
    assert_matches(np.zeros((0, 3)), np.zeros((0, 3)), bound=0, magnitude=0)
    assert_rms(np.zeros((0, 3)), np.zeros((0, 3)), typical=1e-7, magnitude=0)
    assert_matches(np.float16([6e-8]), np.array([3e-8]), bound=1e-3, magnitude=3e-8)  # underflow


def test_rms_refuses_nan_and_a_systematic_error():
    expected = np.linspace(1, 2, 1000)
    assert_rms((expected * (1 + 2e-7)), expected, typical=1e-7, magnitude=expected)
    with pytest.raises(AssertionError, match="4 times the typical"):
        assert_rms(expected * (1 + 4e-7), expected, typical=1e-7, magnitude=expected)
    with pytest.raises(AssertionError, match="nan"):
        assert_rms(np.full(3, np.nan), np.ones(3), typical=1e-7, magnitude=1.0)


def test_right_gradients_pass_and_wrong_ones_do_not():
    x, y = np.array([[0.3, -1.2], [2.0, 0.7]]), np.array([1.5, -0.4])
    check_grads(lambda a, b: (a * b).exp() + a, x, y)
    with pytest.raises(AssertionError, match=r"argument 1 is wrong at \(\d,\): backward gives"):
        check_grads(lambda a, b: a * b * b.detach(), x, y)
    with pytest.raises(AssertionError, match="argument 0 is wrong"):
        check_grads(lambda a, b: a.detach() + b, x, y)
    with pytest.raises(TypeError, match="must return a Tensor, got float"):
        check_grads(lambda a: 1.0, x)


# --------------------------------------------------------------------------------------------------- planted kernels


def lost_product(geometry, x, w, bias, residual, out, **keywords):
    """One product of every sum is missing: the last tap of the last channel of a group."""
    w = w.copy()
    w[(slice(None), *(-1,) * (w.ndim - 1))] = 0
    reference.forward(geometry, x, w, bias, residual, out, **keywords)


def forgets_the_residual(geometry, x, w, bias, residual, out, **keywords):
    reference.forward(geometry, x, w, bias, None, out, **keywords)


def leaves_a_hole(geometry, dy, w, bias, residual, out, **keywords):
    full = np.empty(out.shape)
    reference.grad_input(geometry, dy, w, bias, residual, full, **keywords)
    out[..., :-1] = full[..., :-1]


def transposed_weights(geometry, x, dy, out, **keywords):
    reference.grad_weight(geometry, x, dy, out, **keywords)
    out[...] = out[..., ::-1].copy()


def writes_to_its_input(geometry, x, w, bias, residual, out, **keywords):
    reference.forward(geometry, x, w, bias, residual, out, **keywords)
    x.flags.writeable = True
    x[...] = 0


def prepares_wrongly(geometry, w):
    return 2 * w.astype(np.float64)


def overestimates(geometry, x, out, *, threads):
    reference.avg_forward(geometry, x, out)
    out *= 1 + 3e-5


def last_maximum(geometry, x, indices, out, *, threads):
    """The last of equal maxima: right values, wrong indices."""
    backwards = tuple(slice(None, None, -1) for _ in geometry.input_size)
    reference.max_forward(geometry, x[:, :, *backwards], indices, out)
    out[...] = out[:, :, *backwards].copy()
    if indices is not None:
        indices[...] = np.prod(geometry.input_size) - 1 - indices[:, :, *backwards]


def ignores_nowhere(geometry, x, indices, out, *, threads):
    reference.unpool_forward(geometry, x, indices.clip(0), out)


def row(op: str, direction: str, function: str, **changes) -> Row:
    return replace(REFERENCE[op, direction], target=f"{__name__}:{function}", prepare=None, **changes)


CONV = conv_problem("conv2d", 2, (2, 4, 6, 7), (6, 2, 3, 3), padding=1, groups=2)
DEEP = conv_problem("conv2d", 2, (1, 2048, 5, 5), (4, 2048, 3, 3))
POOL = pool_problem("pool", 2, "avg_pool", (2, 3, 6, 8), 2)
RNG = np.random.default_rng


@pytest.mark.parametrize("integer", [True, False])
def test_planted_errors_are_found(integer):
    def refuse(planted, problem, match):
        with pytest.raises(AssertionError, match=match):
            check_row(planted, problem, rng=RNG(0), integers=integer)

    refuse(row("conv", "forward", "lost_product"), CONV, "elements are wrong")
    refuse(row("conv", "forward", "forgets_the_residual"), replace(CONV, residual=True), "elements are wrong")
    refuse(row("conv", "grad_input", "leaves_a_hole"), replace(CONV, direction="grad_input"), "is nan, expected")
    refuse(row("conv", "grad_weight", "transposed_weights"), replace(CONV, direction="grad_weight"), "are wrong")
    refuse(row("conv", "forward", "writes_to_its_input"), CONV, "wrote to its input 0")
    prepared = replace(REFERENCE["conv", "forward"], prepare=f"{__name__}:prepares_wrongly")
    refuse(prepared, CONV, "prepared .* elements are wrong")
    refuse(row("avg_pool", "forward", "overestimates"), POOL, "elements are wrong")
    unpool = unpool_problem("unpool", 2, (2, 3, 3, 4), 2)
    refuse(row("max_unpool", "forward", "ignores_nowhere"), unpool, "elements are wrong")


def test_the_wrong_one_of_equal_maxima_is_found():
    problem = pool_problem("pool", 2, "max_pool", (2, 3, 6, 8), 2, indices=True)
    with pytest.raises(AssertionError, match="indices: element"):
        check_row(row("max_pool", "forward", "last_maximum"), problem, rng=RNG(0), integers=True)


def test_a_lost_product_of_thousands_hides_from_the_bound_but_not_from_the_typical_error():
    direct = next(r for r in ROWS if (r.op, r.direction, r.algorithm) == ("conv", "forward", "direct"))
    planted = replace(direct, target=f"{__name__}:lost_product", prepare=None, workspace=None)
    with pytest.raises(AssertionError, match="root mean square"):
        check_row(planted, DEEP, rng=RNG(0))


def test_the_reference_passes_everywhere():
    shape = (2, 3, 6, 8)
    pools = [
        pool_problem("pool", 2, op, shape, 3, stride=2, padding=1, ceil_mode=True, norm_type=norm)
        for op, norm in (("max_pool", 2), ("min_pool", 2), ("avg_pool", 2), ("lp_pool", 2), ("lp_pool", 1.5))
    ]
    pools += [replace(pools[0], indices=True), adaptive_pool_problem("pool", 2, "max_pool", shape, 4)]
    pools += [unpool_problem("unpool", 2, shape, 2), pool_problem("pool", 2, "lp_pool", shape, 2, norm_type=0.5)]
    convs = [CONV, replace(CONV, bias=True, residual=True, activation="gelu"), replace(CONV, activation="relu")]
    for problem in convs + pools:
        for direction in ("forward", "grad_input", "grad_weight")[: 3 if problem.op == "conv" else 2]:
            for dtype in ("float32", "float64", "float16", "bfloat16"):
                for layout in ("channels_first", "channels_last"):
                    given = replace(problem, direction=direction, dtype=dtype, layout=layout)
                    for integer in (True, False):
                        check_row(REFERENCE[problem.op, direction], given, rng=RNG(1), integers=integer)


def test_the_referee_refuses_what_it_cannot_judge():
    forward = REFERENCE["conv", "forward"]
    with pytest.raises(ValueError, match="does not compute"):
        check_row(forward, replace(CONV, direction="grad_input"), rng=RNG(0))
    with pytest.raises(ValueError, match=r"refuses .*never"):
        check_row(replace(forward, why_not=lambda problem: "never"), CONV, rng=RNG(0))
    large = conv_problem("conv1d", 1, (1, 1, 1 << 20), (1, 1, 1 << 20))
    with pytest.raises(ValueError, match="are not exact"):
        check_row(forward, large, rng=RNG(0), integers=True)
