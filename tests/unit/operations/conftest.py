from pathlib import Path

import pytest
from sites import Clock, FakeSite


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Operations wait by this clock, so that nothing here takes time."""
    clock = Clock()
    clock.install(monkeypatch)
    return clock


@pytest.fixture
def site(tmp_path: Path, clock: Clock) -> FakeSite:
    return FakeSite(tmp_path, clock)
