"""Philox4x32-10, the counter-based generator of sampling (docs/numerics.md rule 8).

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.4.
"""

__all__ = ["philox4x32_10", "sample_word"]

Words4 = tuple[int, int, int, int]
Words2 = tuple[int, int]

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # round multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # key increments: golden ratio, sqrt(3) - 1
_MASK = 0xFFFFFFFF


def philox4x32_10(counter: Words4, key: Words2) -> Words4:
    """Give the four 32-bit random words of a counter (4 words) and a key (2 words), word 0 first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def sample_word(seed: int, position: int) -> int:
    """Give u of rule 8 for the token to be made at `position` (from 0); key word 0 is the low half of the seed."""
    return philox4x32_10((position, 0, 0, 0), (seed & _MASK, seed >> 32 & _MASK))[0]
