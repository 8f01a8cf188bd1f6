"""Unit tests touch nothing of the host: this holds them to it."""

from collections.abc import Iterator

import own_network
import pytest
from hypothesis import settings

# On a loaded machine a single example may wait for longer than any deadline; that is no fault of what is tested.
settings.register_profile("loaded", deadline=None)
settings.load_profile("loaded")


@pytest.fixture(autouse=True, scope="session")
def _host_is_left_alone() -> Iterator[None]:
    with own_network.left_alone():
        yield
