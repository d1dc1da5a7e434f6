"""When Python looks for garbage."""

import gc
from contextlib import suppress

import pytest

from condensate.collecting import nothing_collected


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_collected__leaves_collection_as_it_was__after_an_error_too(enabled):
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with suppress(ZeroDivisionError), nothing_collected():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
