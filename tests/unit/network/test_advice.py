"""What a network's refusal advises: nothing that is taken, that opens the host, or that leads in a circle."""

import errno
import os
from pathlib import Path

import pytest

from vmm.errors import NetworkError
from vmm.model.network import checked_subnet
from vmm.network import claim, links, netlink
from vmm.network.firewall import Firewall, Whose
from vmm.network.netlink import Link
from vmm.network.ownership import Owner

SUBNET = checked_subnet("172.16.0.0/16", "172.16.0.1")
OWNER = Owner(id="0123456789abcdef", place=Path("/var/lib/vmm"))


def _link(name: str, **facts: object) -> Link:
    plain = {"index": 7, "kind": "dummy", "is_up": True, "has_carrier": True, "master": 0, "isolated": False}
    return Link(**{"name": name, **plain, "is_open": False, "alias": "", "mac": "02:00:00:00:00:01", **facts})


@pytest.mark.parametrize(
    ("number", "root", "advice"),
    [
        (errno.EPERM, False, "Run the command as root: sudo vmm ..."),
        (errno.EPERM, True, "give it CAP_NET_ADMIN"),
        (errno.EOPNOTSUPP, True, "sudo modprobe -a bridge tun"),
        (errno.EMFILE, True, "ulimit -a"),
        (errno.EBUSY, True, "sudo dmesg"),
    ],
)
def test_what_the_kernel_refuses_is_told_by_its_number(
    monkeypatch: pytest.MonkeyPatch, number: int, root: bool, advice: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    told = netlink.told(OSError(number, os.strerror(number)), "No.")
    assert advice in told.resolution
    assert ("Run the command as root" in told.resolution) is not root
    assert "doctor" not in told.resolution


def test_a_bridge_name_that_is_free_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [_link("vmm-br0"), _link("vmm-br1", index=8)]
    monkeypatch.setattr(links, "every", lambda: there)
    with pytest.raises(NetworkError, match="not vmm's") as refused:
        claim.refuse_foreign(OWNER, "vmm-br0", SUBNET, Firewall(bridge="vmm-br0", subnet=SUBNET, owner="of"), list)
    assert refused.value.resolution.endswith("sudo vmm config set bridge_name vmm-br2")


def test_a_table_of_someone_else_is_not_to_be_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "every", list)
    monkeypatch.setattr(Firewall, "whose", lambda _: Whose.FOREIGN)
    with pytest.raises(NetworkError, match="not vmm's") as refused:
        claim.refuse_foreign(OWNER, "vmm-br0", SUBNET, Firewall(bridge="vmm-br0", subnet=SUBNET, owner="of"), list)
    assert "ip6" in refused.value.details
    assert "sudo nft list tables" in refused.value.resolution
    assert "rename" not in refused.value.resolution


def test_a_bridge_without_its_address_is_told_without_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "network_of", lambda _: None)
    bridge = _link("vmm-br0", kind="bridge", alias=OWNER.mark)
    port = _link("vmm-0a4d0002", index=8, kind="tun", master=7, is_open=True, alias=OWNER.mark)
    with pytest.raises(NetworkError, match="another subnet") as refused:
        claim.refuse_moved(OWNER, "vmm-br0", SUBNET, [bridge, port])
    assert refused.value.details.startswith("It has no address any more;")
    assert refused.value.resolution == "Stop them (sudo vmm stop --all), then start them again"


def _route(link: bytes, address: str, mask: str) -> bytes:
    return b"%s\t%s\t00000000\t0001\t0\t0\t0\t%s\t0\t0\t0   \n" % (link, address.encode(), mask.encode())


def test_a_subnet_is_advised_that_no_route_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "route"
    head = b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT   \n"
    # The whole of 10.0.0.0/8 goes over a VPN, and 172.16.0.0/12 over a link whose name is no ASCII.
    table.write_bytes(head + _route(b"tun0", "0000000A", "000000FF") + _route("wän0".encode(), "000010AC", "0000F0FF"))
    monkeypatch.setattr(links, "_ROUTES", table)
    monkeypatch.setattr(netlink, "look", lambda _: None)
    with pytest.raises(NetworkError, match="in use on this host") as refused:
        links.mend_bridge("vmm-br0", SUBNET, OWNER)
    assert "set subnet 192.168.176.0/20 gateway 192.168.176.1. Machines that hold" in refused.value.resolution
    table.write_bytes(head + _route(b"tun0", "0000000A", "000000FF") + _route(b"lan0", "000010AC", "0000FFFF"))
    with pytest.raises(NetworkError, match="in use on this host") as refused:
        links.mend_bridge("vmm-br0", SUBNET, OWNER)
    assert "set subnet 172.29.0.0/16 gateway 172.29.0.1" in refused.value.resolution


def test_localhosts_answers_over_a_bridge_that_is_gone_are_refused_in_words() -> None:
    with pytest.raises(NetworkError, match="bridge vmm-none is gone") as refused:
        links.route_localnet("vmm-none", on=True)
    assert refused.value.resolution.endswith("sudo vmm reconcile")
