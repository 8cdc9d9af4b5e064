"""What is nobody's public host, whatever Python's list of its version says."""

from __future__ import annotations

import pytest

from outbound import is_public


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("168.63.129.16", False),
        ("::ffff:168.63.129.16", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("3fff::1", False),
        ("64:ff9b:1::a00:1", False),
        ("2001:db8::1", False),
        ("168.63.129.17", True),
        ("192.0.1.1", True),
    ],
)
def test_addresses_that_clouds_keep_for_themselves_are_not_public(address: str, public: bool) -> None:
    assert is_public(address) is public
