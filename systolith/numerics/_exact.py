"""Exact arithmetic behind the constants: integer fixed point and rational intervals. Nothing here trusts libm.

A real number is handed about as a function of a precision in bits that gives an interval around it; `round_enclosed`
asks for more bits until both ends round to the same FP32 value, which is then the correctly rounded one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import isqrt

from systolith.numerics.fp32 import round_fraction, to_bits

__all__ = [
    "Enclosure",
    "Interval",
    "Undecided",
    "cos_sin",
    "iroot",
    "ln",
    "log2e",
    "pi",
    "pi_fixed",
    "power",
    "round_enclosed",
    "sqrt",
]

_GUARD = 32  # bits computed beyond those asked for; every series below loses fewer than 2^16 units of the last one
_MAX_BITS = 1 << 14


class Undecided(Exception):
    """An interval is too wide to take a branch on; `round_enclosed` comes back with a narrower one."""


@dataclass(frozen=True)
class Interval:
    """A closed interval of rationals that holds the real number meant."""

    lo: Fraction
    hi: Fraction

    @staticmethod
    def exact(value: Fraction | float) -> "Interval":
        """Give the interval of one point; a binary64 enters exactly."""
        return Interval(Fraction(value), Fraction(value))

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __sub__(self, other: "Interval") -> "Interval":
        return Interval(self.lo - other.hi, self.hi - other.lo)

    def __mul__(self, other: "Interval") -> "Interval":
        ends = [x * y for x in (self.lo, self.hi) for y in (other.lo, other.hi)]
        return Interval(min(ends), max(ends))

    def __truediv__(self, other: "Interval") -> "Interval":
        if other.lo <= 0 <= other.hi:
            raise Undecided
        return self * Interval(1 / other.hi, 1 / other.lo)

    def below(self, bound: Fraction | int) -> bool:
        """Whether the number is below a bound; raises Undecided if the interval holds the bound."""
        if self.lo <= bound <= self.hi and self.lo != self.hi:
            raise Undecided
        return self.hi < bound


Enclosure = Callable[[int], Interval]
"""From a precision in bits to an interval; more bits give a narrower one."""


def round_enclosed(enclose: Enclosure) -> float:
    """Round the real number that `enclose` describes once to FP32."""
    bits = 64
    while bits <= _MAX_BITS:
        try:
            interval = enclose(bits)
            low, high = round_fraction(interval.lo), round_fraction(interval.hi)
            if to_bits(low) == to_bits(high):
                return low
        except Undecided:
            pass
        bits *= 2
    raise AssertionError(f"a constant lies within 2^-{_MAX_BITS} of a rounding boundary: it must be exact, enter it so")


def _fixed(value: int, bits: int) -> Interval:
    """Interval of a fixed-point value with `bits` + guard fraction bits and an error below 2^16 units."""
    return Interval(
        Fraction(value - (1 << 16), 1 << (bits + _GUARD)), Fraction(value + (1 << 16), 1 << (bits + _GUARD))
    )


def _inverse_series(n: int, one: int, sign: int) -> int:
    """atan(1/n) for sign -1, atanh(1/n) for sign +1, in units of 1/one; fewer units of error than terms."""
    power, total, k = one // n, 0, 0
    while power:
        total += (power // (2 * k + 1)) * (sign if k % 2 else 1)
        power //= n * n
        k += 1
    return total


@cache
def pi_fixed(bits: int) -> int:
    """Floor of pi * 2^bits, or one less or more."""
    one = 1 << (bits + _GUARD)
    return (4 * (4 * _inverse_series(5, one, -1) - _inverse_series(239, one, -1))) >> _GUARD  # Machin 1706


@cache
def pi(bits: int) -> Interval:
    """Enclose pi."""
    value = pi_fixed(bits)
    return Interval(Fraction(value - 2, 1 << bits), Fraction(value + 2, 1 << bits))


@cache
def log2e(bits: int) -> Interval:
    """Enclose log2(e) = 1 / ln 2, by ln 2 = 18 atanh(1/26) - 2 atanh(1/4801) + 8 atanh(1/8749)."""
    one = 1 << (bits + _GUARD)
    terms = ((18, 26), (-2, 4801), (8, 8749))
    ln2 = sum(factor * _inverse_series(n, one, 1) for factor, n in terms)
    return Interval.exact(1) / _fixed(ln2, bits)


def ln(value: Interval, bits: int) -> Interval:
    """Enclose the natural logarithm of a positive number."""
    return Interval(_ln(value.lo, bits).lo, _ln(value.hi, bits).hi)


@cache
def _ln(value: Fraction, bits: int) -> Interval:
    """The same of a rational: m * 2^e with m in 0.5..2, ln m = 2 atanh((m - 1) / (m + 1))."""
    if value <= 0:
        raise Undecided
    e = value.numerator.bit_length() - value.denominator.bit_length()
    m = value / Fraction(2) ** e
    one = 1 << (bits + _GUARD)
    x = (one * (m.numerator - m.denominator)) // (m.numerator + m.denominator)  # off by one unit, within +-one/3
    square, power, total, k = x * x >> (bits + _GUARD), x, 0, 0
    while power not in (0, -1):
        total += power // (2 * k + 1)
        power = power * square >> (bits + _GUARD)
        k += 1
    part = _fixed(2 * total, bits)
    return part + Interval.exact(e) / log2e(bits) if e else part


def iroot(n: int, k: int) -> int:
    """Floor of the k-th root of n (n >= 0, k >= 1), by Newton's method from above."""
    if n < 2 or k == 1:
        return n
    x = 1 << -(-n.bit_length() // k)  # above the root
    if n.bit_length() > 64 * k:  # a better start: the root of the leading bits, made larger
        drop = (n.bit_length() // k - 48) * k
        x = min(x, (iroot(n >> drop, k) + 1) << (drop // k))
    while True:
        y = ((k - 1) * x + n // x ** (k - 1)) // k
        if y >= x:
            return x
        x = y


def sqrt(value: Fraction, bits: int) -> Interval:
    """Enclose the square root of a positive rational to `bits` bits of it."""
    shift = 2 * (bits + max(0, value.denominator.bit_length() - value.numerator.bit_length()))
    root = isqrt((value.numerator << shift) // value.denominator)
    exact = root * root * value.denominator == value.numerator << shift
    return Interval(Fraction(root, 1 << (shift // 2)), Fraction(root + (not exact), 1 << (shift // 2)))


def power(base: Fraction, exponent: Fraction, bits: int) -> Interval:
    """Enclose base^exponent for a positive base, by one integer root; exact powers give one point."""
    p, k = exponent.numerator, exponent.denominator
    raised = base**p
    shift = k * (bits + max(0, raised.denominator.bit_length() - raised.numerator.bit_length()) // k + 1)
    scaled, rest = divmod(raised.numerator << shift, raised.denominator)
    root = iroot(scaled, k)
    exact = rest == 0 and root**k == scaled
    return Interval(Fraction(root, 1 << (shift // k)), Fraction(root + (not exact), 1 << (shift // k)))


def cos_sin(angle: Fraction, bits: int) -> tuple[Interval, Interval]:
    """Enclose (cos, sin) of a rational angle in radians."""
    total = bits + _GUARD
    wide = total + max(0, int(angle).bit_length()) + 8  # pi's own error, times the number of quarter turns, stays small
    half_pi = pi_fixed(wide)  # in units of 2^-(wide+1)
    scaled = (angle.numerator << (wide + 1)) // angle.denominator
    quarter, rest = divmod(scaled, half_pi)
    x = rest >> (wide + 1 - total)
    # Taylor series in fixed point: one unit lost at most in each step, and less than 2 in x itself.
    square = (x * x) >> total
    cos_term, sin_term, cosine, sine, k = 1 << total, x, 0, 0, 0
    while cos_term or sin_term:
        cosine += cos_term if k % 2 == 0 else -cos_term
        sine += sin_term if k % 2 == 0 else -sin_term
        cos_term = ((cos_term * square) >> total) // ((2 * k + 1) * (2 * k + 2))
        sin_term = ((sin_term * square) >> total) // ((2 * k + 2) * (2 * k + 3))
        k += 1
    turned = ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[quarter % 4]
    return _fixed(turned[0], bits), _fixed(turned[1], bits)
