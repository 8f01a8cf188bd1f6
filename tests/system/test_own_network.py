"""What holds every test to leaving this host's own network alone, held to seeing each kind of change."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import sh

pytestmark = pytest.mark.system

_GUARDED = """
import subprocess, sys
sys.path.insert(0, {support!r})
import own_network
with own_network.left_alone():
    subprocess.run(["sh", "-ec", sys.argv[1]], check=True)
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"vmmtest-guarded-{os.getpid()}"
    sh("ip", "netns", "add", name)
    try:
        sh("ip", "-n", name, "link", "add", "here", "type", "bridge")
        yield name
    finally:
        sh("ip", "netns", "del", name)


def _guarded(namespace: str, command: str) -> str:
    """Do this in a network that is guarded; return what the guard says of it."""
    support = str(Path(__file__).parents[1] / "support")
    program = _GUARDED.format(support=support)
    done = sh("ip", "netns", "exec", namespace, sys.executable, "-c", program, command, check=False)
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("ip link add other type bridge", "links"),
        ("ip link del here", "links"),
        ("ip rule add pref 5 iif here blackhole", "routing rules"),
        ("ip rule del pref 32767", "routing rules"),
        ("ip -6 rule add pref 5 iif here blackhole", "routing rules of IPv6"),
        ("nft add table ip other", "firewall"),
        ("echo 1 >/proc/sys/net/ipv4/conf/here/forwarding", "forwarding"),
        ("echo 1 >/proc/sys/net/ipv4/ip_forward", "forwarding"),
    ],
)
def test_each_change_is_seen_and_named(namespace: str, command: str, what: str) -> None:
    said = _guarded(namespace, command)
    assert "a test changed this host's own network" in said, said
    assert f"\n{what} were:\n" in said, said


def test_what_is_put_back_is_no_change(namespace: str) -> None:
    assert (
        _guarded(
            namespace, "ip link add other type bridge; nft add table ip x; nft delete table ip x; ip link del other"
        )
        == ""
    )
