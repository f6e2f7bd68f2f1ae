"""Known answers of philox4x32-10, published with Random123 (kat_vectors)."""

import pytest

from systolith.numerics.philox import philox4x32_10, sample_word

ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]) -> None:
    assert philox4x32_10(counter, key) == words


def test_sampling_takes_word_0_with_the_low_half_of_the_seed_first() -> None:
    seed, position = 0x0123456789ABCDEF, 41
    assert sample_word(seed, position) == philox4x32_10((41, 0, 0, 0), (0x89ABCDEF, 0x01234567))[0]
    assert sample_word(0, 0) == 0x6627E8D5
