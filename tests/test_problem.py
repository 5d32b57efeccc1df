"""Everything a user can get wrong about sizes and parameters: one clear error each, and nothing touched."""

import inspect
import re

import numpy as np
import pytest

import fastconv as fc
from fastconv import grad
from fastconv.arguments import freeze
from fastconv.problem import conv_problem, conv_transpose_problem, pool_problem


def f(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


X1, X2, X3 = f(1, 4, 9), f(1, 4, 9, 9), f(1, 4, 5, 5, 5)
W1, W2, W3 = f(6, 4, 3), f(6, 4, 3, 3), f(6, 4, 3, 3, 3)
T2 = f(4, 6, 3, 3)

# (call, error, what its message must hold): the argument, what was given, what was needed, the fix
ERRORS = [
    # -- strides, dilations, groups
    (lambda: fc.conv2d(X2, W2, stride=0), ValueError, r"conv2d: stride must be >= 1 in every dimension, got 0"),
    (lambda: fc.conv2d(X2, W2, stride=-1), ValueError, r"stride must be >= 1 .* got -1"),
    (lambda: fc.conv2d(X2, W2, stride=(1, 0)), ValueError, r"stride must be >= 1 .* got \(1, 0\)"),
    (lambda: fc.conv2d(X2, W2, stride=(1, 1, 1)), ValueError, r"stride needs one integer or 2 .* got \(1, 1, 1\)"),
    (lambda: fc.conv1d(X1, W1, stride=(1, 1)), ValueError, r"conv1d: stride needs one integer or 1"),
    (lambda: fc.conv2d(X2, W2, stride=1.5), TypeError, r"stride must be an integer, got 1.5 \(float\)"),
    (lambda: fc.conv2d(X2, W2, stride=(1, "2")), TypeError, r"stride\[1\] must be an integer, got '2'"),
    (lambda: fc.conv2d(X2, W2, stride=True), TypeError, r"stride must be an integer, got the bool True"),
    (lambda: fc.conv2d(X2, W2, stride="1"), TypeError, r"stride must be an integer, got '1'"),
    (lambda: fc.conv2d(X2, W2, stride=None), TypeError, r"stride must be an integer, got None"),
    (lambda: fc.conv2d(X2, W2, stride=2**70), ValueError, r"stride does not fit 64 bits"),
    (lambda: fc.conv2d(X2, W2, dilation=0), ValueError, r"dilation must be >= 1"),
    (lambda: fc.conv3d(X3, W3, dilation=(1, 2)), ValueError, r"conv3d: dilation needs one integer or 3"),
    (lambda: fc.conv2d(X2, W2, groups=0), ValueError, r"groups must be >= 1, got 0"),
    (lambda: fc.conv2d(X2, W2, groups=1.0), TypeError, r"groups must be an integer, got 1.0"),
    (lambda: fc.conv2d(X2, W2, groups=3), ValueError, r"groups=3 must divide the 4 input channels of x and the 6 output"),
    (lambda: fc.conv2d(X2, W2, groups=2), ValueError, r"takes 4 channels a group, so x needs 8 channels .* got 4"),
    # -- padding
    (lambda: fc.conv2d(X2, W2, padding=-1), ValueError, r"padding must be >= 0, got -1; crop x by slicing"),
    (lambda: fc.conv2d(X2, W2, padding=(1, -1)), ValueError, r"padding must be >= 0, got \(1, -1\)"),
    (lambda: fc.conv2d(X2, W2, padding=((1, 1), (0, -2))), ValueError, r"padding must be >= 0"),
    (lambda: fc.conv2d(X2, W2, padding="SAME"), ValueError, r"padding must be .*'valid', 'same' or 'same_lower', got 'SAME'"),
    (lambda: fc.conv2d(X2, W2, padding="full"), ValueError, r"got 'full'"),
    (lambda: fc.conv2d(X2, W2, padding=(1, 1, 1, 1)), ValueError, r"padding needs 2 entries.*write \(before, after\) pairs"),
    (lambda: fc.conv2d(X2, W2, padding=(1,)), ValueError, r"padding needs 2 entries, one per spatial dimension, got \(1,\)"),
    (lambda: fc.conv1d(X1, W1, padding=(1, 2)), ValueError, r"padding needs 1 entry.*write padding=\(\(1, 2\),\)"),
    (lambda: fc.conv2d(X2, W2, padding=((1, 2, 3), 1)), ValueError, r"padding\[0\] must be an integer or a \(before, after\)"),
    (lambda: fc.conv2d(X2, W2, padding=1.0), TypeError, r"padding must be an integer, got 1.0"),
    (lambda: fc.conv2d(X2, W2, padding=((1, 2.0), 1)), TypeError, r"padding\[0\]\[1\] must be an integer"),
    (lambda: fc.conv2d(X2, W2, padding=None), TypeError, r"padding must be an integer, got None"),
    (lambda: fc.conv2d(X2, W2, padding=1, padding_mode="mirror"), ValueError, r"padding_mode must be one of 'zeros', 'reflect'"),
    (lambda: fc.conv2d(X2, W2, padding_mode=None), ValueError, r"padding_mode must be one of .* got None"),
    (lambda: fc.conv2d(X2, W2, padding=9, padding_mode="reflect"), ValueError, r"'reflect' needs padding below the input size, got 9 for size 9"),
    (lambda: fc.conv2d(X2, W2, padding=10, padding_mode="circular"), ValueError, r"'circular' needs padding up to the input size, got 10"),
    # -- shapes
    (lambda: fc.conv2d(f(1, 4, 2, 9), W2), ValueError, r"the kernel does not fit: it spans \(3, 3\).*has \(2, 9\); increase padding"),
    (lambda: fc.conv2d(X2, W2, dilation=5), ValueError, r"it spans \(11, 11\) \(dilation included\)"),
    (lambda: fc.conv2d(X1, W2), ValueError, r"w of shape \(6, 4, 3, 3\).*needs 4 channels"),
    (lambda: fc.conv2d(f(9, 9), W2), ValueError, r"x must have 4 dimensions \(N, C, \*spatial\) or 3 without the batch, got shape \(9, 9\)"),
    (lambda: fc.conv2d(X3, W2), ValueError, r"x must have 4 dimensions .* got shape \(1, 4, 5, 5, 5\)"),
    (lambda: fc.conv2d(X2, W1), ValueError, r"w must have 4 dimensions \(C_out, C_in/groups, \*kernel\), got shape \(6, 4, 3\)"),
    (lambda: fc.conv2d(X2, W3), ValueError, r"w must have 4 dimensions"),
    (lambda: fc.conv2d(X2, f(6, 4, 0, 3)), ValueError, r"w has an empty dimension: \(6, 4, 0, 3\)"),
    (lambda: fc.conv2d(X2, f(0, 4, 3, 3)), ValueError, r"w has an empty dimension"),
    (lambda: fc.conv2d(f(1, 0, 9, 9), W2), ValueError, r"x has no channels"),
    (lambda: fc.conv2d(f(1, 4, 0, 9), W2), ValueError, r"x has an empty spatial dimension .*only the batch may be empty"),
    (lambda: fc.conv2d(f(1, 5, 9, 9), W2), ValueError, r"x needs 4 channels \(groups=1\), got 5"),
    (lambda: fc.conv2d(X2, W2, layout="NHWC"), ValueError, r"x needs 4 channels .* got 9 \(x is \(1, 9, 4, 9\), channels first\)"),
    (lambda: fc.conv2d(f(1, 9, 9, 4), W2), ValueError, r"got 9 .*; if its channels come last, say layout='channels_last'"),
    (lambda: fc.conv2d(X2, W2, f(5)), ValueError, r"bias must have the shape \(6,\), one value per output channel, got \(5,\)"),
    (lambda: fc.conv2d(X2, W2, f(6, 1)), ValueError, r"bias must have the shape \(6,\)"),
    (lambda: fc.conv2d(X2, W2, residual=f(1, 6, 9, 9)), ValueError, r"residual must have the output's shape \(1, 6, 7, 7\)"),
    (lambda: fc.conv2d(X2, W2, residual=f(6, 7, 7)), ValueError, r"residual of shape \(6, 7, 7\) and x disagree about .* batch"),
    (lambda: fc.conv2d(X2, W2, out=f(1, 6, 9, 9)), ValueError, r"out must have the shape \(1, 6, 7, 7\), got \(1, 6, 9, 9\)"),
    # -- dtypes, kinds, devices
    (lambda: fc.conv2d(f(1, 4, 9, 9, dtype=np.int64), W2), TypeError, r"x must be float32, float64, float16 or bfloat16, got int64; convert"),
    (lambda: fc.conv2d(f(1, 4, 9, 9, dtype=np.complex64), W2), TypeError, r"x must be float32.* got complex64"),
    (lambda: fc.conv2d(f(1, 4, 9, 9, dtype=bool), W2), TypeError, r"got bool"),
    (lambda: fc.conv2d(X2, W2.astype(np.float64)), TypeError, r"x is float32 and w is float64; use one dtype"),
    (lambda: fc.conv2d(X2, W2, f(6, dtype=np.float64)), TypeError, r"bias is float64"),
    (lambda: fc.conv2d(X2, W2, residual=f(1, 6, 7, 7, dtype=np.float64)), TypeError, r"residual is float64"),
    (lambda: fc.conv2d(X2, W2, out=f(1, 6, 7, 7, dtype=np.float64)), TypeError, r"out is float64"),
    (lambda: fc.conv2d(X2.tolist(), W2), TypeError, r"x must be a NumPy or CuPy array .* got list; convert with numpy.asarray\(x\)"),
    (lambda: fc.conv2d(X2, None), TypeError, r"w must be a NumPy or CuPy array .* got NoneType"),
    (lambda: fc.conv2d(X2, W2, 3.0), TypeError, r"bias must be a NumPy or CuPy array .* got float"),
    (lambda: fc.conv2d(X2, W2, out=[1]), TypeError, r"out must be an array of float32 with shape \(1, 6, 7, 7\), got list"),
    (lambda: fc.conv2d(np.ma.masked_array(X2), W2), TypeError, r"x is a masked array, whose mask would be ignored"),
    # -- names
    (lambda: fc.conv2d(X2, W2, layout="NCDHW"), ValueError, r"layout 'NCDHW' names 3 spatial dimensions, conv2d has 2; use 'NCHW' or 'NHWC'"),
    (lambda: fc.conv2d(X2, W2, layout="nchw"), ValueError, r"layout must be None, 'channels_first', .* got 'nchw'"),
    (lambda: fc.conv2d(X2, W2, activation="swish"), ValueError, r"activation must be None or one of 'relu', .* got 'swish'"),
    (lambda: fc.conv2d(X2, W2, algorithm="fft"), ValueError, r"algorithm must be 'auto' or one of 'direct', .* got 'fft'"),
    # -- transposed convolution
    (lambda: fc.conv_transpose2d(X2, W2), ValueError, r"w of shape \(6, 4, 3, 3\) needs x with 6 channels, got 4"),
    (lambda: fc.conv_transpose2d(X2, W1), ValueError, r"w must have 4 dimensions \(C_in, C_out/groups, \*kernel\)"),
    (lambda: fc.conv_transpose2d(X2, T2, output_padding=1), ValueError, r"output_padding must be smaller than stride or dilation"),
    (lambda: fc.conv_transpose2d(X2, T2, stride=2, output_padding=-1), ValueError, r"output_padding must be >= 0"),
    (lambda: fc.conv_transpose2d(X2, T2, groups=3), ValueError, r"groups=3 must divide the 4 input channels"),
    (lambda: fc.conv_transpose2d(X2, T2, padding=6), ValueError, r"padding .* leaves no output: its size would be \(-1, -1\); decrease padding"),
    (lambda: fc.conv_transpose2d(X2, T2, stride=4, padding="same"), ValueError, r"padding='same' needs a kernel span .* raise output_padding"),
    (lambda: fc.conv_transpose2d(X2, T2, f(4)), ValueError, r"bias must have the shape \(6,\)"),
    # -- pooling
    (lambda: fc.max_pool2d(X2, 0), ValueError, r"max_pool2d: kernel_size must be >= 1"),
    (lambda: fc.max_pool2d(X2, (2, 2, 2)), ValueError, r"kernel_size needs one integer or 2"),
    (lambda: fc.max_pool2d(X2, 2.0), TypeError, r"kernel_size must be an integer"),
    (lambda: fc.max_pool2d(X2, 10), ValueError, r"the window does not fit: kernel_size \(10, 10\).* on an input of \(9, 9\)"),
    (lambda: fc.max_pool2d(X2, 2, padding=2), ValueError, r"padding must be smaller than the window"),
    (lambda: fc.max_pool2d(X2, 2, stride=0), ValueError, r"stride must be >= 1"),
    (lambda: fc.max_pool1d(X1, 3, padding=(1, 2)), ValueError, r"write padding=\(\(1, 2\),\)"),
    (lambda: fc.max_pool2d(X2.astype(int), 2), TypeError, r"x must be float32"),
    (lambda: fc.max_pool2d(f(9, 9), 2), ValueError, r"x must have 4 dimensions"),
    (lambda: fc.max_pool2d(X2, 2, out=f(1, 4, 9, 9)), ValueError, r"out must have the shape \(1, 4, 4, 4\)"),
    (lambda: fc.avg_pool2d(X2, 2, divisor_override=0), ValueError, r"divisor_override must not be 0"),
    (lambda: fc.avg_pool2d(X2, 2, divisor_override=1.5), TypeError, r"divisor_override must be an integer"),
    (lambda: fc.lp_pool2d(X2, 0, 2), ValueError, r"norm_type must be positive and finite, got 0"),
    (lambda: fc.lp_pool2d(X2, float("inf"), 2), ValueError, r"for the maximum use max_pool"),
    (lambda: fc.lp_pool2d(X2, "two", 2), TypeError, r"norm_type must be a positive number, got 'two'"),
    (lambda: fc.adaptive_avg_pool2d(X2, 0), ValueError, r"output_size must be >= 1"),
    (lambda: fc.adaptive_avg_pool2d(X2, (1, 2, 3)), ValueError, r"output_size needs one integer or 2"),
    (lambda: fc.adaptive_max_pool2d(X2, 2**40), ValueError, r"more elements than 64 bits address"),
    (lambda: fc.max_unpool2d(X2, np.zeros((1, 4, 9, 8), int), 2), ValueError, r"indices must have the shape .* \(that of x\), got"),
    (lambda: fc.max_unpool2d(X2, np.zeros(X2.shape), 2), TypeError, r"indices must be int64 or int32 .* got float64"),
    (lambda: fc.max_unpool2d(X2, np.full(X2.shape, 324), 2), ValueError, r"indices must lie in \[0, 324\).* got 324 to 324"),
    (lambda: fc.max_unpool2d(X2, np.full(X2.shape, -2), 2), ValueError, r"got -2 to -2"),
    (lambda: fc.max_unpool2d(X2, np.zeros(X2.shape, int), 2, output_size=(30, 18)), ValueError, r"output_size must lie between \(17, 17\) and \(19, 19\)"),
    (lambda: fc.max_unpool2d(X2, np.zeros(X2.shape, int), 2, padding="same"), ValueError, r"padding must be given in numbers"),
    # -- gradients
    (lambda: grad.conv2d_input((4, 9), W2, f(1, 6, 7, 7)), ValueError, r"conv2d_input: input_size must have 4 entries, or 3 without"),
    (lambda: grad.conv2d_input((1, 4, 9, 9), W2, f(1, 6, 9, 9)), ValueError, r"dy must have the shape \(1, 6, 7, 7\) \(the output's\), got"),
    (lambda: grad.conv2d_weight(X2, (6, 4, 3), f(1, 6, 7, 7)), ValueError, r"w must have 4 dimensions"),
    (lambda: grad.conv2d_weight(X2, (6, 4, 3, 3), f(1, 6, 7, 7, dtype=np.float64)), TypeError, r"x is float32 and dy is float64"),
    (lambda: grad.max_pool2d_input(X2, f(1, 4, 9, 9), 2), ValueError, r"dy must have the shape \(1, 4, 4, 4\)"),
    (lambda: grad.avg_pool2d_input((1, 4, 9, 9), f(1, 4, 5, 5), 2), ValueError, r"dy must have the shape \(1, 4, 4, 4\)"),
    # -- plans and options
    (lambda: fc.plan_conv2d((9, 9), W2), ValueError, r"plan_conv2d: x_shape must have 4 entries, or 3 without the batch"),
    (lambda: fc.plan_conv2d((1, 4, 9, 9), W2)(f(1, 4, 8, 9)), ValueError, r"this plan is for x of shape \(1, 4, 9, 9\), got \(1, 4, 8, 9\)"),
    (lambda: fc.plan_conv2d((1, 4, 9, 9), W2)(X2.astype(np.float64)), TypeError, r"w is float32 and x is float64"),
    (lambda: fc.plan_conv2d((1, 4, 9, 9), W2)(X2, residual=f(1, 6, 7, 7)), ValueError, r"this plan was made without a residual; say residual=True"),
    (lambda: fc.plan_conv2d((1, 4, 9, 9), W2, residual=True)(X2), ValueError, r"this plan was made with a residual"),
    (lambda: fc.set_num_threads(0), ValueError, r"num_threads must be between 1 and 1024, got 0"),
    (lambda: fc.set_num_threads(2.0), TypeError, r"num_threads must be an integer, got 2.0"),
    (lambda: fc.options(algorithm="fft").__enter__(), ValueError, r"options: algorithm must be 'auto' or one of"),
    (lambda: fc.options(max_error=0).__enter__(), ValueError, r"max_error must be positive"),
    (lambda: fc.options(workspace_limit=-1).__enter__(), ValueError, r"workspace_limit must be >= 0 bytes"),
    (lambda: fc.options(deterministic="no").__enter__(), TypeError, r"options: deterministic must be True or False, got 'no'"),
    (lambda: fc.set_num_threads(10**30), ValueError, r"num_threads must be between 1 and 1024, got 10{30}"),
    (lambda: fc.options(precision="fp8").__enter__(), ValueError, r"precision must be one of"),
    (lambda: fc.explain(len, [1]), TypeError, r"ran no kernel"),
    (lambda: fc.explain(3), TypeError, r"explain: function must be callable, got 3"),
    (lambda: fc.options(workspace_limit="1 MB").__enter__(), TypeError, r"workspace_limit must be a number, got '1 MB'"),
    (lambda: fc.options(max_error="low").__enter__(), TypeError, r"max_error must be a number, got 'low'"),
    (lambda: fc.plan_conv2d((1, 4, 9, 9), W2, dtype="int8"), TypeError, r"plan_conv2d: dtype must be float32.* got int8"),
    (lambda: fc.plan_conv2d((1, 4, 9, 9), W2, dtype="zz"), TypeError, r"plan_conv2d: dtype must be one of float32, .* got 'zz'"),
    (lambda: fc.plan_conv2d((1, 4, 9, 9), W2.astype(complex)), TypeError, r"w must be float32.* got complex128"),
    (lambda: fc.plan_conv2d((1, 4, 9, 9), W2, f(6, dtype=np.float64)), TypeError, r"w is float32 and bias is float64"),
    (lambda: fc.plan_conv2d((1, 4, 9, 9), W2)(fc.Tensor(X2, requires_grad=True)), ValueError, r"a plan records no gradients"),
    (lambda: fc.conv2d(fc.Tensor(X2, requires_grad=True), W2, residual=[1]), TypeError, r"residual must be a NumPy or CuPy array"),
    (lambda: fc.conv2d(X2, W2, padding=2**62), ValueError, r"padding must be at most 2147483647, got 4611686018427387904"),
    (lambda: fc.conv2d(X2, W2, out=np.broadcast_to(np.float32(0), (1, 6, 7, 7))), ValueError, r"out is read-only"),
    (lambda: fc.conv2d(X2, W2, out=np.lib.stride_tricks.as_strided(f(7), (1, 6, 7, 7), (0, 0, 0, 4))), ValueError, r"out overlaps itself"),
    (lambda: fc.max_pool2d(X2, 2, ceil_mode="no"), TypeError, r"ceil_mode must be True or False, got 'no'"),
    (lambda: fc.avg_pool2d(X2, 2, count_include_pad=1), TypeError, r"count_include_pad must be True or False, got 1"),
    (lambda: grad.conv2d_input(7, W2, f(1, 6, 7, 7)), TypeError, r"input_size must be a shape, a sequence of integers, got 7"),
    (lambda: grad.conv2d_weight(X2, (6, 4, 3.0, 3), f(1, 6, 7, 7)), TypeError, r"weight_size\[2\] must be an integer, got 3.0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS, ids=range(len(ERRORS)))
def test_every_invalid_call_says_what_was_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()


X4, INDICES = f(1, 4, 4, 4), np.zeros((1, 4, 9, 9), int)
VALID = [
    (fc.conv2d, (X2, W2)),
    (fc.conv_transpose2d, (X2, f(4, 6, 3, 3))),
    (fc.plan_conv2d, (X2.shape, W2)),
    (fc.max_pool2d, (X2, 2)),
    (fc.avg_pool2d, (X2, 2)),
    (fc.lp_pool2d, (X2, 2, 2)),
    (fc.adaptive_max_pool2d, (X2, 3)),
    (fc.max_unpool2d, (X2, INDICES, 2)),
    (grad.conv2d_input, (X2.shape, W2, f(1, 6, 7, 7))),
    (grad.conv2d_weight, (X2, W2.shape, f(1, 6, 7, 7))),
    (grad.max_pool2d_input, (X2, X4, 2)),
    (grad.avg_pool2d_input, (X2.shape, X4, 2)),
]


@pytest.mark.parametrize(("function", "arguments"), VALID, ids=lambda v: getattr(v, "__name__", ""))
def test_nonsense_is_refused_by_the_name_of_its_parameter(function, arguments):
    """Whatever stands for a parameter: what no dictionary can hold, what has no length, what is not True or False."""
    function(*arguments)
    parameters = list(inspect.signature(function).parameters)
    for name in parameters:
        for nonsense in ([], {}, np.arange(7), slice(1), object(), b"xyz", ""):
            keywords = dict(zip(parameters, arguments, strict=False)) | {name: nonsense}
            with pytest.raises((ValueError, TypeError)) as caught:
                function(**keywords)
            said = str(caught.value)
            known_as = "w" if name == "weight_size" else name
            assert re.match(rf"{function.__name__}: .*\b({name}|{known_as})\b", said), (name, nonsense, said)


def test_an_array_without_dimensions_is_a_number():
    one = np.array(1)
    assert fc.conv2d(X2, W2, stride=one, padding=one, dilation=one, groups=one).shape == (1, 6, 9, 9)
    assert fc.max_pool2d(X2, np.array(2)).shape == (1, 4, 4, 4)


def test_there_are_enough_of_them():
    assert len(ERRORS) >= 80


@pytest.mark.parametrize(("call", "error", "message"), [e for e in ERRORS if "stride" in e[2]], ids=lambda v: None)
def test_an_error_is_raised_again_when_the_valid_call_is_cached(call, error, message):
    fc.conv2d(X2, W2)
    fc.conv2d(X2, W2, stride=1)
    with pytest.raises(error, match=message):
        call()


def test_a_failed_call_leaves_out_untouched():
    out = np.full((1, 6, 7, 7), 7.0, np.float32)
    with pytest.raises(ValueError, match="kernel does not fit"):
        fc.conv2d(X2, W2, dilation=9, out=out)
    with pytest.raises(ValueError, match="bias"):
        fc.conv2d(X2, W2, f(2), out=out)
    assert (out == 7).all()


def test_read_only_out_is_refused():
    out = np.zeros((1, 6, 7, 7), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fc.conv2d(X2, W2, out=out)


@pytest.mark.parametrize(
    "padding", [1, (1, 1), [1, 1], ((1, 1), (1, 1)), [[1, 1], 1], np.int64(1), "same", "same_lower"]
)
def test_padding_forms_agree(padding):
    g = conv_problem("conv2d", 2, (1, 4, 9, 9), (6, 4, 3, 3), padding=freeze(padding)).geometry
    assert g.padding == ((1, 1), (1, 1))


def test_same_differs_from_same_lower_where_the_padding_is_odd():
    upper = conv_problem("conv2d", 2, (1, 1, 5, 5), (1, 1, 2, 2), padding="same").geometry.padding
    lower = conv_problem("conv2d", 2, (1, 1, 5, 5), (1, 1, 2, 2), padding="same_lower").geometry.padding
    assert (upper, lower) == (((0, 1),) * 2, ((1, 0),) * 2)


def test_transposed_same_gives_size_times_stride():
    p = conv_transpose_problem("conv_transpose2d", 2, (1, 4, 7, 7), (4, 2, 3, 3), stride=2, padding="same")
    assert p.geometry.input_size == (14, 14)
    assert p.geometry.output_size == (7, 7)


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_output_padding_up_to_the_dilation(extra):
    p = conv_transpose_problem("c", 1, (1, 1, 5), (1, 1, 3), stride=1, dilation=3, output_padding=extra)
    assert p.geometry.input_size == (5 - 1 + 7 + extra,)
    assert p.geometry.output_size == (5,)


def test_problems_are_hashable_and_print_themselves():
    p = conv_problem(
        "conv2d", 2, (1, 4, 9, 9), (6, 2, 3, 3), groups=2, dilation=2, activation="relu", layout="channels_last"
    )
    assert hash(p) == hash(conv_problem("conv2d", 2, (1, 4, 9, 9), (6, 2, 3, 3), groups=2, dilation=2, activation="relu", layout="channels_last"))  # fmt: skip
    assert str(p) == (
        "conv2d forward: 1x4x9x9 * 6x2x3x3 -> 1x6x5x5, stride 1x1, padding 0,0, dilation 2x2, groups 2, relu, float32, NHWC, cpu"
    )
    q = pool_problem("max_pool2d", 2, "max_pool", (1, 4, 9, 9), 3, stride=2)
    assert "kernel 3x3, stride 2x2" in str(q)
    assert q.flops == 4 * 4 * 4 * 9
