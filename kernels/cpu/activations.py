"""Activations of a vector in registers, as LLVM IR: a few units in the last place, no branches, no calls.

The C library's functions are scalar, and a loop around them is not vectorised. Here each function is some twenty
instructions on whole vectors, the same for float32 and float64 but for the degrees of two polynomials:

    exp(x)      = 2^h * 2^h * e^r,  h = x / (2 ln 2) rounded, |r| <= ln 2,    e^r = 1 + r + r^2 E(r)
    sigmoid(x)  = (x < 0 ? e : 1) / (1 + e),  e = exp(-|x|)
    tanh(x)     = sign(x) m / (m + 2),  m = exp(2|x|) - 1 = 2^2h (r + r^2 E(r)) + (2^2h - 1)
    Phi(x)      = (x < 0 ? tail : 1 - tail),  tail = exp(-x^2 / 2) w C((|x| - 3) w),  w = 1 / (|x| + 3)

2^h is a normal number even where e^x is subnormal, which thus needs no case of its own.
E and C are minimax polynomials (Remez), of relative error below a quarter of a unit: E of (e^r - 1 - r) / r^2 relative
to e^r, C of Phi(-a) exp(a^2 / 2) (a + 3) on all a with Phi(-a) > 0; the argument of C runs from -1 to 1.

A division of 16 lanes occupies its unit for 16 cycles, in which the rest of a vector takes its 15 of the other units':
estimates of the reciprocal (on x86 by the flags arcp, ninf and contract) were no faster.

Errors, measured in units of half a last place (2^-24 and 2^-53 of the result): silu 5, gelu 7, sigmoid 4, tanh 3,
hardswish 3, leaky_relu 1.4; where sigmoid or Phi is subnormal, one of its last places. NaN stays NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import ACTIVATIONS
from .simd import I64, Vectors


class _Format(NamedTuple):
    """What differs between the two dtypes."""

    bits: int
    fraction: int  # bits of
    bias: int  # of the exponent
    rounder: float  # added and subtracted, it rounds to an integer, whose low bits are then the sum's
    ln2: tuple[float, float]  # 2 ln 2 in two parts, the first short: h times it is exact
    least: float  # exp is 0 below
    farthest: float  # Phi is 0 below minus that
    level: float  # tanh is 1 from here on
    exp: tuple[float, ...]
    normal: tuple[float, ...]


_FLOAT32 = _Format(
    32, 23, 127, 1.5 * 2.0**23, (1.38671875, -4.2438887986e-4), -110.0, 15.0, 10.0,
    (
        0.500000346342774781, 0.166666141452705264, 0.0416612686221697973, 0.00833610330851456385,
        0.00141044676386370847, 0.000196115879647633997,
    ),
    (
        0.72908369037561835, -0.509331991409715608, 0.230017699423447018, -0.0472626880107195303,
        -0.0104625129345896748, 0.00696931141215039816, 0.00102475416625345132, -0.00103257393895035996,
        -0.000244730384767168284, 0.00013133053194593203, 0.0000544893444424676476,
    ),
)  # fmt: skip
_FLOAT64 = _Format(
    64, 52, 1023, 1.5 * 2.0**52, (2 * 0.6931471803691238, 2 * 1.9082149292705877e-10), -750.0, 39.0, 20.0,
    (
        0.499999999999999987, 0.166666666666666532, 0.0416666666666672666, 0.0083333333333378593,
        0.00138888888888042211, 0.000198412698358666962, 0.0000248015873546949525, 2.75573222987237619e-6,
        2.7557302941597342e-7, 2.50512045253023784e-8, 2.08790563675636577e-9, 1.61915252404188179e-10,
        1.1378190293566737e-11,
    ),
    (
        0.729083690133372996, -0.50933198191748976, 0.230017719974603806, -0.0472630251429388535,
        -0.0104628670233191562, 0.00697262123936070804, 0.00102759225926955584, -0.00104582860520401767,
        -0.000256575347504495285, 0.000154394305722843706, 0.000078812674798900673, -0.0000132451243341768686,
        -0.0000206891408562210757, -3.52113433773957543e-6, 3.64009670173063427e-6, 2.26498336781165154e-6,
        7.63481165419408013e-9, -6.06749028958318129e-7, -2.72386462675247636e-7, 5.6529937934760495e-8,
        9.43109178794101927e-8, 1.65623901816724004e-8, -1.29863715878025149e-8, -4.74748362148127338e-9,
    ),
)  # fmt: skip


class Activations:
    """The functions, of vectors of ``v``'s element type, at its builder's position."""

    def __init__(self, v: Vectors) -> None:
        self.v, self.b = v, v.b
        self.f = _FLOAT32 if v.align == 4 else _FLOAT64
        self.ints = ir.VectorType(ir.IntType(self.f.bits), v.lanes)

    def number(self, value: float) -> ir.Constant:
        return ir.Constant(self.v.vector, [value] * self.v.lanes)

    def at_least(self, x: ir.Value, limit: float) -> ir.Value:
        """NaN stays NaN, as x is then not below the limit; one instruction on x86."""
        return self.b.select(self.b.fcmp_ordered("<", x, self.number(limit)), self.number(limit), x)

    def at_most(self, x: ir.Value, limit: float) -> ir.Value:
        return self.b.select(self.b.fcmp_ordered(">", x, self.number(limit)), self.number(limit), x)

    def magnitude(self, x: ir.Value) -> ir.Value:
        return self.v.call(f"llvm.fabs.{self.v.name}", x.type, x)

    def if_negative(self, x: ir.Value, then: ir.Value, otherwise: ir.Value) -> ir.Value:
        return self.b.select(self.b.fcmp_ordered("<", x, self.number(0.0)), then, otherwise)

    def polynomial(self, x: ir.Value, coefficients: tuple[float, ...]) -> ir.Value:
        """The sum of coefficients[i] * x**i."""
        value: ir.Value = self.number(coefficients[-1])
        for c in coefficients[-2::-1]:
            value = self.v.multiply_add(value, x, self.number(c))
        return value

    def reduced(self, x: ir.Value, low: ir.Value | None = None) -> tuple[ir.Value, ir.Value]:
        """2^2h, and e^r - 1 for x + low = 2 h ln 2 + r."""
        add, f = self.v.multiply_add, self.f
        shifted = add(x, self.number(0.7213475204444817), self.number(f.rounder))
        h = self.b.fsub(shifted, self.number(f.rounder))
        r = add(h, self.number(-f.ln2[1]), add(h, self.number(-f.ln2[0]), x))
        r = self.b.fadd(r, low) if low else r
        exponent = self.b.add(self.b.bitcast(shifted, self.ints), ir.Constant(self.ints, [f.bias] * self.v.lanes))
        power = self.b.shl(exponent, ir.Constant(self.ints, [f.fraction] * self.v.lanes))
        power = self.b.bitcast(power, self.v.vector)
        return self.b.fmul(power, power), add(self.b.fmul(r, r), self.polynomial(r, f.exp), r)

    def exp_of_negative(self, x: ir.Value, low: ir.Value | None = None) -> ir.Value:
        """e^(x + low) for x <= 0 and ``low`` tiny; NaN stays NaN."""
        power, rest = self.reduced(self.at_least(x, self.f.least), low)
        return self.v.multiply_add(power, rest, power)

    def sigmoid(self, x: ir.Value) -> ir.Value:
        e = self.exp_of_negative(self.b.fneg(self.magnitude(x)))
        return self.b.fdiv(self.if_negative(x, e, self.number(1.0)), self.b.fadd(e, self.number(1.0)))

    def tanh(self, x: ir.Value) -> ir.Value:
        a = self.at_most(self.magnitude(x), self.f.level)
        power, rest = self.reduced(self.b.fadd(a, a))
        m = self.v.multiply_add(power, rest, self.b.fsub(power, self.number(1.0)))
        positive = self.b.fdiv(m, self.b.fadd(m, self.number(2.0)))
        return self.v.call(f"llvm.copysign.{self.v.name}", x.type, positive, x)

    def normal_cdf(self, x: ir.Value) -> ir.Value:
        """The probability that a normally distributed number is at most x. What rounding x^2 loses is made up for:
        in the tail it would be x^2 / 2 units."""
        a = self.at_most(self.magnitude(x), self.f.farthest)
        square = self.b.fmul(a, a)
        lost = self.v.multiply_add(a, a, self.b.fneg(square))
        e = self.exp_of_negative(*(self.b.fmul(part, self.number(-0.5)) for part in (square, lost)))
        w = self.b.fdiv(self.number(1.0), self.b.fadd(a, self.number(3.0)))
        c = self.polynomial(self.b.fmul(self.b.fsub(a, self.number(3.0)), w), self.f.normal)
        tail = self.b.fmul(e, self.b.fmul(w, c))
        return self.if_negative(x, tail, self.b.fsub(self.number(1.0), tail))

    def activation(self, name: str, x: ir.Value) -> ir.Value:
        """The activation of that name."""
        if name == "relu":
            return self.at_least(x, 0.0)
        if name == "relu6":
            return self.at_most(self.at_least(x, 0.0), 6.0)
        if name == "leaky_relu":
            return self.if_negative(x, self.b.fmul(x, self.number(0.01)), x)
        if name == "silu":
            return self.b.fmul(x, self.sigmoid(x))
        if name == "gelu":
            return self.b.fmul(x, self.normal_cdf(x))
        if name == "hardswish":
            clamped = self.at_most(self.at_least(self.b.fadd(x, self.number(3.0)), 0.0), 6.0)
            return self.b.fmul(x, self.b.fmul(clamped, self.number(1 / 6)))
        return {"sigmoid": self.sigmoid, "tanh": self.tanh}[name](x)


@intrinsic
def activated(typingctx: Any, like: Any, x: Any, activation: Any) -> Any:
    """The activation of a vector of the elements pointed to; ``activation`` is one of ``activation_id``'s numbers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, x, activation = args
        done = builder.append_basic_block("activated")
        chosen = builder.switch(activation, done)
        results = [(x, builder.block)]
        for i, name in enumerate(ACTIVATIONS, 1):
            block = builder.append_basic_block(name)
            chosen.add_case(ir.Constant(I64, i), block)
            builder.position_at_end(block)
            results.append((Activations(Vectors(builder, sig.args[0])).activation(name, x), builder.block))
            builder.branch(done)
        builder.position_at_end(done)
        value = builder.phi(x.type)
        for result, block in results:
            value.add_incoming(result, block)
        return value

    return x(like, x, types.int64), codegen
