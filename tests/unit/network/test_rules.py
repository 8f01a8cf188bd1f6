"""Resolvers and rules as text; what the rules do to frames is shown by the system tests."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from vmm.model.network import Lease, PortForward, Protocol, checked_subnet, lease_for
from vmm.network import conntrack, firewall, links
from vmm.network.dns import FALLBACK, host_resolution
from vmm.network.firewall import Firewall
from vmm.network.forwarding import Forwarding
from vmm.network.host_network import HostNetwork
from vmm.network.others import Others

LEASE = lease_for(IPv4Address("172.16.0.2"))
OTHER = lease_for(IPv4Address("172.16.0.3"))
OWNER = "of_0123456789abcdef"
SUBNET = checked_subnet("172.16.0.0/16", "172.16.0.1")


@pytest.mark.parametrize(
    ("own", "behind", "expected"),
    [
        ("nameserver 8.8.8.8\n", "", ("8.8.8.8",)),
        ("nameserver 127.0.0.53\n", "nameserver 10.0.0.1\nnameserver 10.0.0.2\n", ("10.0.0.1", "10.0.0.2")),
        ("nameserver ::1\nnameserver fe80::1\n# nameserver 1.1.1.1\nnameserver\nnameserver x\n", "", FALLBACK),
        # No one's: groups of receivers, what is reserved, 0.0.0.0/8.
        ("nameserver 224.0.0.1\nnameserver 255.255.255.255\nnameserver 240.0.0.1\nnameserver 0.0.0.1\n", "", FALLBACK),
        ("nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4\n", "",
         ("1.0.0.1", "1.0.0.2", "1.0.0.3")),
    ],
)  # fmt: skip
def test_resolvers_that_a_guest_can_reach(tmp_path: Path, own: str, behind: str, expected: tuple[str, ...]) -> None:
    (tmp_path / "own").write_text(own)
    (tmp_path / "behind").write_text(behind)
    assert host_resolution(tmp_path / "own", [tmp_path / "behind"]).servers == expected
    assert host_resolution(tmp_path / "none", [tmp_path / "nor this"]).servers == FALLBACK


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be handed to nft."""
    handed: list[str] = []

    def hand(commands: str, *, check: bool) -> int:
        handed.append(commands)
        return 0

    monkeypatch.setattr(firewall, "_run", hand)
    return handed


def test_the_whole_firewall_is_one_transaction(said: list[str]) -> None:
    wall = Firewall(bridge="br7", owner=OWNER, subnet=checked_subnet("10.77.0.0/24", "10.77.0.1"), uplinks=("eth9",))
    forward = PortForward(machine="m", protocol=Protocol.UDP, host_address="127.0.0.1", host_port=53, guest_port=5353)
    wall.replace([(LEASE, (forward,))])
    (text,) = said
    assert text.index("delete table ip vmm") < text.index("table ip vmm {")
    assert 'ip saddr 10.77.0.0/24 oifname != { "lo", "br7" } masquerade' in text
    assert 'add element ip vmm uplinks { "eth9" }' in text
    assert 'iifname "vmm-0a4d00*" drop' in text
    assert "add element ip vmm ports_at { udp . 127.0.0.1 . 53 : 172.16.0.2 . 5353 }" in text
    assert "add element bridge vmm senders { vmm-ac100002 . 06:00:ac:10:00:02 . 172.16.0.2 }" in text
    assert "{bridge}" not in text


def test_what_is_not_there_can_be_taken_away(said: list[str]) -> None:
    wall = Firewall(bridge="b", owner=OWNER, subnet=checked_subnet("10.77.0.0/24", "10.77.0.1"))
    wall.dismiss(LEASE, ())
    lines = said[0].splitlines()
    # First what fails where the tables are another vmm's, and with it all the rest.
    assert lines[:2] == [f"flush chain {family} vmm {OWNER}" for family in ("ip", "bridge")]
    lines = lines[2:]
    added, deleted = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert added == [line.replace("delete element", "add element") for line in deleted]
    assert all(line.startswith("delete element") for line in deleted)
    # One in each table: nothing is added where one of the two was removed by someone else.
    assert {line.split()[2] for line in added} == {"ip", "bridge"}


def leave_the_host_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HostNetwork, "_take_bridge", lambda self, owner, **_: None)
    patch.setattr(Forwarding, "turn_on", lambda self, published: None)
    patch.setattr(Others, "accept", lambda self: None)
    patch.setattr(links, "route_localnet", lambda bridge, *, on: None)
    patch.setattr(conntrack, "forget_before", lambda lease, forwards: None)


@pytest.mark.fault(2, 29)
def test_who_is_admitted_while_the_tables_are_replaced_is_in_them(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two commands at once: one renders the tables from what it has read, the other adds its machine meanwhile."""
    forward = PortForward(machine="m", protocol=Protocol.TCP, host_port=80, guest_port=80)
    reads = [[(LEASE, [])], [(LEASE, [forward]), (OTHER, [])], [(LEASE, [forward]), (OTHER, [])]]
    (tmp_path / "state").mkdir()
    leave_the_host_alone(monkeypatch)

    def running() -> list[tuple[Lease, list[PortForward]]]:
        return reads.pop(0)

    network = HostNetwork(bridge_name="b", subnet=SUBNET, host_interface=None, data_dir=tmp_path, running=running)
    network.reconcile(running())
    assert reads == []
    assert len(said) == 2
    assert OTHER.mac not in said[0]
    assert OTHER.mac in said[1]
    assert "tcp . 80 : 172.16.0.2 . 80" in said[1]


@pytest.mark.fault(29)
def test_what_has_not_changed_is_replaced_once(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    leave_the_host_alone(monkeypatch)
    network = HostNetwork(
        bridge_name="b", subnet=SUBNET, host_interface=None, data_dir=tmp_path, running=lambda: [(LEASE, [])]
    )
    # `OTHER` is about to be attached, and recorded as running only afterwards.
    network.reconcile([(LEASE, ()), (OTHER, ())])
    assert len(said) == 1
