"""Each item that an operator relies on holds."""

import pytest
import rendering
from items import ITEMS


@pytest.mark.parametrize(("fixture", "check"), ITEMS, ids=lambda value: getattr(value, "__name__", value))
def test_item(fixture, check):
    check(rendering.rendered(fixture))
