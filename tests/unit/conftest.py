"""Unit tests touch nothing of the host: this holds them to it."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# On a loaded machine a single example may wait for longer than any deadline; that is no fault of what is tested.
settings.register_profile("loaded", deadline=None)
settings.load_profile("loaded")


@pytest.fixture(autouse=True, scope="session")
def _host_is_left_alone() -> Iterator[None]:
    def state() -> tuple[set[str], dict[str, str], str]:
        links = {name for _, name in socket.if_nameindex()}
        forwarding = {str(path): path.read_text() for path in Path("/proc/sys/net/ipv4/conf").glob("*/forwarding")}
        ip = shutil.which("ip")
        rules = subprocess.run([ip, "rule"], capture_output=True, text=True, check=True).stdout if ip else ""
        return links, forwarding, rules

    before = state()
    yield
    assert state() == before, "a unit test changed this host's network"
