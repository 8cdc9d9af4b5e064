"""The running shop of these tests; `tests/awards_elsewhere/fixtures.py` has it."""

from tests.awards_elsewhere.fixtures import door, shop, shop_behind_door, small_shop

__all__ = ["door", "shop", "shop_behind_door", "small_shop"]
