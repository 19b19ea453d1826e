"""CRCs combined from parts equal the CRC of the whole, which the crc32c library computes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.checksum import (
    CHECKSUM_BLOCK_BYTES,
    block_checksums,
    combine,
    combine_blocks,
    crc32c,
    shift,
    zeros_checksum,
)

PATTERN = np.random.default_rng(7).bytes(64 << 20)
BLOCK = CHECKSUM_BLOCK_BYTES


def test_crc32c_gives_the_standard_check_value():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"56789", crc32c(b"1234")) == 0xE3069283


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_combine_equals_crc_of_concatenation(a: bytes, b: bytes):
    assert combine(crc32c(a), crc32c(b), len(b)) == crc32c(a + b)


@given(st.integers(0, 64 << 20), st.integers(0, 4000))
def test_combine_crosses_any_length_up_to_64_mib(length: int, start: int):
    b = memoryview(PATTERN)[start : start + length]
    assert combine(0x1234ABCD, crc32c(b), len(b)) == crc32c(b, 0x1234ABCD)


@given(st.integers(0, 70 * BLOCK))
def test_combine_blocks_equals_crc_of_whole(length: int):
    whole = memoryview(PATTERN)[:length]
    assert combine_blocks(block_checksums(whole), length) == crc32c(whole)


@pytest.mark.parametrize("blocks", [1, 6, 7, 63, 64, 65, 128, 1000, 4095, 4096])
@pytest.mark.parametrize("extra", [-1, 0])
def test_combine_blocks_holds_at_group_borders(blocks: int, extra: int):
    whole = memoryview(PATTERN)[: blocks * BLOCK + extra]
    crcs = block_checksums(whole)
    assert combine_blocks(crcs, len(whole)) == crc32c(whole)
    assert combine_blocks(crcs.tolist(), len(whole)) == crc32c(whole)


@given(st.integers(0, 1 << 20))
def test_zeros_checksum_equals_crc_of_zeros(length: int):
    assert zeros_checksum(length) == crc32c(bytes(length))


def test_block_checksums_cut_at_16_kib_and_keep_a_short_last_block():
    crcs = block_checksums(memoryview(PATTERN)[: 2 * BLOCK + 5])
    assert crcs.dtype == np.uint32
    expected = [
        crc32c(PATTERN[:BLOCK]),
        crc32c(PATTERN[BLOCK : 2 * BLOCK]),
        crc32c(PATTERN[2 * BLOCK : 2 * BLOCK + 5]),
    ]
    assert crcs.tolist() == expected
    assert block_checksums(b"").tolist() == []


def test_wrong_number_of_blocks_and_negative_length_are_refused():
    with pytest.raises(ValueError, match="2 block checksums for 16384 bytes"):
        combine_blocks([1, 2], BLOCK)
    with pytest.raises(ValueError, match="length -1"):
        shift(1, -1)
