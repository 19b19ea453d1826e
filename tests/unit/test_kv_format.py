"""Where a value lies and what stands before it."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.core import kv
from fs3.core.types import ChainId, chunk_id

NAMESPACE = kv.KvNamespace(
    namespace=kv.NamespaceId(kv.NAMESPACE_FIRST + 5),
    name="n",
    table=2,
    chains=(ChainId(7), ChainId(9), ChainId(12)),
    replicas=1,
)


@given(st.binary(max_size=300), st.integers(0, kv.VALUE_BYTES_MAX), st.binary(max_size=20))
def test_a_header_is_that_of_its_key_alone(key, length, other):
    header = kv.header(key, length)
    assert kv.value_length(header, key) == length
    assert kv.value_length(header + b"value", key) == length
    if other != key:
        assert kv.value_length(header, other) == -1


@pytest.mark.parametrize("cut", range(kv.HEADER_BYTES + 3))
def test_a_header_cut_short_is_none(cut):
    assert kv.value_length(kv.header(b"key", 4)[:cut], b"key") == -1


def test_a_header_of_another_format_is_none():
    header = bytearray(kv.header(b"key", 4))
    header[4] += 1
    assert kv.value_length(header, b"key") == -1


def test_a_key_is_found_by_its_digest_in_the_namespaces_chunks():
    chunks, chains = kv.slots_and_chains(NAMESPACE, [b"key", b""])
    digest = blake2b(b"key", digest_size=16).digest()
    expected = chunk_id(NAMESPACE.namespace, int.from_bytes(digest, "big"))
    assert bytes(chunks[0]) == expected
    assert chains[0] == NAMESPACE.chains[int.from_bytes(digest[:8], "big") % 3]


def test_keys_spread_evenly_over_chains():
    _, chains = kv.slots_and_chains(NAMESPACE, [b"%d" % i for i in range(3000)])
    assert all(900 < count < 1100 for count in Counter(chains.tolist()).values())
