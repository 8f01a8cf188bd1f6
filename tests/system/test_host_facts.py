"""A host that is configured against vmm: seen by doctor, start, reconcile and the supervisor alike, mended or said."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import firewalls
import pytest
from frames import IPV4, Guest, ethernet, inside, ipv4, udp
from hosts import OUTSIDE_WORLD, SMALL, Host, a_host, serving, the_world, wait_for

from conftest import add_tiny
from vmm.app import open_site
from vmm.model.network import lease_for

pytestmark = [pytest.mark.system, pytest.mark.fault(50)]

LEASE = lease_for(IPv4Address("172.16.255.2"))
GATEWAY_MAC = lease_for(IPv4Address("172.16.0.1")).mac
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 9)); print("ready", flush=True)
while True:
    data, who = s.recvfrom(2048)
    s.sendto(data.upper(), who)
"""


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a way to the world, where something echoes, and a machine `m` that runs; no machine's supervisor."""
    directory = tmp_path_factory.mktemp("facts")
    with (
        a_host(f"vmmtest-{os.getpid()}-facts", directory) as host,
        the_world(host) as world,
        serving(world, "-c", ECHO),
    ):
        add_tiny(host, directory)
        host.vmm("create", "m", *SMALL)
        host.vmm("start", "m")
        yield host


@pytest.fixture
def clean(lan: Host) -> Iterator[Host]:
    """The same with nothing of another firewall in it, before and after."""
    yield lan
    for family, table in ((line.split()[1:3]) for line in lan.run("nft", "list", "tables").stdout.splitlines()):
        if table != "vmm":
            lan.run("nft", "delete", "table", family, table)
    if lan.run("cat", "/proc/net/ip_tables_names", check=False).stdout.split():
        lan.run("iptables-legacy", "-P", "FORWARD", "ACCEPT")
        lan.run("iptables-legacy", "-F")
        lan.run("iptables-legacy", "-X")
    lan.vmm("reconcile", check=False)


def reaches_the_world(host: Host) -> bool:
    """Whether what a machine sends to the world comes there, and the answer back."""
    # No database knows this machine: the supervisor may take it out of the rules in the middle of a try.
    return any(_tries_to_reach_the_world(host) for _ in range(3))


def _tries_to_reach_the_world(host: Host) -> bool:
    with inside(host.namespace):
        network = open_site(data_dir=host.data_dir).network
        with network.attaching(LEASE, ()):
            pass
        try:
            with Guest(LEASE) as guest:
                asked = ipv4(LEASE.address, OUTSIDE_WORLD, 17, udp(1234, 9, b"hello"))
                guest.send(ethernet(LEASE.mac, GATEWAY_MAC, IPV4, asked))
                return guest.until(lambda frame: frame.endswith(b"HELLO"), 0.7) is not None
        finally:
            network.detach(LEASE, ())


def check(host: Host, name: str) -> dict:
    done = host.vmm("doctor", "--output", "json", check=False)
    return {row["name"]: row for row in json.loads(done.stdout)}[name]


NATIVE = {
    "policy drop": "table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }",
    "final reject": "table ip mine { chain f { type filter hook forward priority 10; policy accept;"
    " iifname lo accept; reject with icmp type admin-prohibited; }; }",
    "final drop in a chain behind it": "table inet x { chain rest { drop; }; chain other { type filter hook forward"
    " priority -5; policy accept; ct state established,related accept; oifname lo accept; jump rest; }; }",
    "verdict map": "table inet z { chain f { type filter hook forward priority 0; policy drop;"
    " ct state vmap { established : accept, related : accept, invalid : drop }; iifname lan0 accept; }; }",
    "raw prerouting": "table ip r { chain p { type filter hook prerouting priority -300; policy accept;"
    ' iifname "vmm-br0" drop; }; }',
    "postrouting": "table inet p { chain o { type filter hook postrouting priority 300; policy drop;"
    " oifname lo accept; ct direction reply accept; }; }",
    "bridge family": "table bridge b { chain i { type filter hook input priority 0; policy drop; }; }",
    "arp family": "table arp a { chain i { type filter hook input priority 0; policy drop; }; }",
    "netdev of the bridge": "table netdev n { chain i { type filter hook ingress device vmm-br0 priority 0;"
    " policy drop; }; }",
    "inet chain of the bridge": "table inet v { chain i { type filter hook ingress device vmm-br0 priority 0;"
    " policy drop; }; }",
    "nat with a policy": "table ip t { chain p { type nat hook prerouting priority -100; policy drop; }; }",
    "nat that drops a link": "table ip t { chain p { type nat hook prerouting priority -100; policy accept;"
    ' iifname "vmm-br0" drop; }; }',
}


@pytest.mark.parametrize("rules", NATIVE)
def test_a_chain_of_nftables_that_drops_is_seen_by_all_and_the_command_that_mends_it_does(
    clean: Host, rules: str
) -> None:
    assert check(clean, "forward policy")["status"] == "ok"
    clean.run("nft", NATIVE[rules])
    if rules != "arp family":  # the neighbours know each other still
        assert not reaches_the_world(clean)
    row = check(clean, "forward policy")
    assert row["status"] == "warning"
    assert "drops" in row["detail"]
    chain = re.split("type (?:filter|nat)", NATIVE[rules])[0].split()[-2]
    assert f"the chain {chain} of" in row["detail"]
    started = clean.vmm("start", "m").stderr
    assert f"the chain {chain} of" in started
    assert row["fix"].removeprefix("sudo ") in started
    mended = clean.vmm("reconcile", check=False)
    assert mended.returncode == 1
    assert row["fix"].replace("sudo ", "") in mended.stdout
    for command in row["fix"].split("; "):
        clean.run(*shlex.split(command.removeprefix("sudo ")))
    assert check(clean, "forward policy") == {**row, "status": "ok", "fix": None,
                                              "detail": "no other firewall drops what machines send"}  # fmt: skip
    assert reaches_the_world(clean)
    assert "forward policy" not in clean.vmm("start", "m").stderr
    assert clean.vmm("reconcile").stdout == "All is as it is remembered.\n"


def test_an_accept_of_everything_on_the_link_to_the_world_is_never_advised(clean: Host) -> None:
    clean.run("nft", "table netdev n { chain i { type filter hook ingress device up0 priority 0; policy drop; }; }")
    try:
        row = check(clean, "forward policy")
        assert (row["status"], "the chain i of netdev n drops" in row["detail"]) == ("warning", True)
        assert row["fix"] == "sudo nft -a list chain netdev n i  # and let the machines' answers pass"
    finally:
        clean.run("nft", "delete table netdev n")


def test_the_mangle_table_of_iptables_is_before_the_marks_and_its_command_mends_it(clean: Host) -> None:
    clean.run("iptables", "-t", "mangle", "-P", "FORWARD", "DROP")
    assert not reaches_the_world(clean)
    row = check(clean, "forward policy")
    assert row["status"] == "warning"
    for command in row["fix"].split("; "):
        clean.run(*shlex.split(command.removeprefix("sudo ")))
    assert check(clean, "forward policy")["status"] == "ok"
    assert reaches_the_world(clean)


def test_ufw_enabled_later_is_seen_and_mended(clean: Host, tmp_path: Path) -> None:
    ufw = firewalls.ufw(clean, tmp_path)
    ufw("--force", "enable")
    # The supervisor sees it, where doctor and reconcile do not come before it.
    log = clean.data_dir / "logs/supervisor.log"
    wait_for(lambda: "FORWARD (table filter) drops" in log.read_text(), what="the supervisor's look")
    assert reaches_the_world(clean)
    # What it does to its own rules leaves vmm's.
    for words in (("reload",), ("default", "reject", "routed"), ("limit", "22/tcp"), ("logging", "full")):
        ufw(*words)
        assert (reaches_the_world(clean), check(clean, "forward policy")["status"]) == (True, "ok"), words
    ufw("disable")
    assert reaches_the_world(clean)


def test_ufw_that_was_there_first_keeps_no_machine_from_the_world(clean: Host, tmp_path: Path) -> None:
    ufw = firewalls.ufw(clean, tmp_path)
    ufw("--force", "enable")
    clean.vmm("stop", "m", "--force")
    assert "forward policy" not in clean.vmm("start", "m").stderr
    assert reaches_the_world(clean)
    ufw("route", "deny", "out", "on", "up0")
    ufw("disable")


def test_firewalld_is_seen_and_its_own_command_mends_it(clean: Host, tmp_path: Path) -> None:
    with firewalls.firewalld(clean, tmp_path) as client:
        assert not reaches_the_world(clean)
        row = check(clean, "forward policy")
        assert row["status"] == "warning"
        assert row["fix"].replace("sudo ", "") in clean.vmm("start", "m").stderr
        for command in row["fix"].split(" && "):
            words = shlex.split(command)
            assert words[:2] == ["sudo", "firewall-cmd"]
            client(*words[2:])
        assert reaches_the_world(clean)
        assert check(clean, "forward policy")["status"] == "ok"
        assert clean.vmm("reconcile").stdout == "All is as it is remembered.\n"
