"""Addresses as people write them."""

import pytest

from fs3.errors import Code, Fs3Error
from fs3.transport import address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:0", ("localhost", 0)),
        ("10.0.0.1:7000", ("10.0.0.1", 7000)),
        ("[::1]:65535", ("::1", 65_535)),
        ("[fe80::1%eth0]:7", ("fe80::1%eth0", 7)),
    ],
)
def test_an_address_is_read_and_written_the_same(text, expected):
    assert address.parse(text) == expected
    assert address.render(*expected) == text


@pytest.mark.parametrize(
    "text", ["", "host", ":7000", "host:", "host:x", "host:65536", "host:-1", "::1:7000", "h:٣"]
)
def test_what_is_no_address_is_named(text):
    with pytest.raises(Fs3Error) as caught:
        address.parse(text)
    assert (caught.value.code, repr(text) in caught.value.detail) == (Code.INVALID, True)


def test_a_name_is_not_looked_up_where_only_numbers_are_wanted():
    with pytest.raises(Fs3Error) as caught:
        address.resolve("localhost:1", numeric=True)
    assert caught.value.code is Code.UNREACHABLE
    assert address.resolve("127.0.0.1:1", numeric=True)[0].address == ("127.0.0.1", 1)
