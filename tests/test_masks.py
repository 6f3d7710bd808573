"""The packed mask: NumPy's bits and back, its bytes, and bytes that are no mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import PayloadError
from common.masks import check_size, from_bytes, hamming, pack, unpack

BITS = st.lists(st.booleans(), max_size=200).map(lambda bits: np.array(bits, dtype=np.bool_))


@given(BITS)
def test_bits_survive_packing(bits: NDArray[np.bool_]) -> None:
    mask = pack(bits)
    assert mask.tolist() == bits.tolist()
    assert pack(bits.astype(np.uint8)) == mask
    assert np.array_equal(unpack(mask), bits)
    assert from_bytes(mask.tobytes(), bits.size) == mask


@given(BITS)
def test_bytes_are_little_endian_and_zero_beyond_the_end(bits: NDArray[np.bool_]) -> None:
    expected = sum(1 << i for i in np.flatnonzero(bits).tolist())
    size = -(-bits.size // 8)
    assert pack(bits).tobytes() == expected.to_bytes(size, "little")
    # Inverting sets the bits beyond the end in memory.
    inverted = ~pack(~bits)
    assert inverted.tobytes() == expected.to_bytes(size, "little")
    assert np.array_equal(unpack(inverted), bits)


@given(BITS, st.integers(0, 2**32))
def test_the_distance_is_the_number_of_differences(bits: NDArray[np.bool_], seed: int) -> None:
    other = np.random.default_rng(seed).random(bits.size) < 0.5
    assert hamming(pack(bits), pack(other)) == int((bits != other).sum())
    assert hamming(~pack(bits), pack(bits)) == bits.size


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 16])
def test_bytes_of_another_length_are_refused(n: int) -> None:
    size = -(-n // 8)
    for length in {0, size - 1, size + 1, 100} - {size, -1}:
        with pytest.raises(PayloadError, match=f"mask of {length} bytes; {n} parameters"):
            from_bytes(bytes(length), n)


@pytest.mark.parametrize("n", [1, 7, 9, 15])
def test_bits_beyond_the_end_are_refused(n: int) -> None:
    full = bytearray(((1 << n) - 1).to_bytes(-(-n // 8), "little"))
    assert from_bytes(bytes(full), n).all()
    for bit in range(n % 8, 8):
        broken = full.copy()
        broken[-1] |= 1 << bit
        with pytest.raises(PayloadError, match=f"beyond the {n} parameters"):
            from_bytes(bytes(broken), n)


def test_a_mask_of_another_size_is_refused() -> None:
    check_size(pack(np.ones(9, dtype=np.bool_)), 9)
    with pytest.raises(PayloadError, match="9 parameters where there are 10"):
        check_size(pack(np.ones(9, dtype=np.bool_)), 10)
