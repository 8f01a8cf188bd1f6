"""What a machine may send, and what reaches it: raw frames through real taps, a real bridge and real nftables."""

import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import frames
import pytest
from frames import BROADCAST, IPV4, IPV6, VLAN, Guest, echo, ethernet, inside, ipv4, is_echo_reply, mac, udp
from hosts import METADATA, OUTSIDE_HOST, OUTSIDE_WORLD, Host, serving, the_world

from vmm.app import open_site
from vmm.model.network import PortForward, Protocol, lease_for

pytestmark = pytest.mark.system

SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")
GATEWAY = "172.16.0.1"
GATEWAY_MAC = lease_for(IPv4Address(GATEWAY)).mac
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
BRIDGE_GROUP = "01:80:c2:00:00:0"  # and a digit: the addresses that 802.1D keeps for the bridges themselves
QINQ, LLDP, RARP, PAUSE = 0x88A8, 0x88CC, 0x8035, 0x8808
# Says what it hears, and whom from, over IPv4 and IPv6.
LISTEN = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(("::", int(sys.argv[1]))); print("ready", flush=True)
while True:
    data, who = s.recvfrom(2048)
    print(who[0].removeprefix("::ffff:"), data.decode(), flush=True); s.sendto(b"answer", who)
"""


@dataclass
class Pair:
    """Two guests on one host's bridge, attached by vmm's own network."""

    host: Host
    one: Guest
    two: Guest

    def reaches_gateway(self, number: int) -> bool:
        """Whether `one` gets an answer to an honest ping: what proves that frames pass at all."""
        lease = self.one.lease
        self.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, ipv4(lease.address, GATEWAY, 1, echo(number))))
        return self.one.until(lambda frame: is_echo_reply(frame, number)) is not None


@pytest.fixture
def pair(host: Host) -> Iterator[Pair]:
    with inside(host.namespace):
        network = open_site(data_dir=host.data_dir).network
        one, two = lease_for(IPv4Address("172.16.0.2")), lease_for(IPv4Address("172.16.0.3"))
        for lease in (one, two):
            with network.attaching(lease, ()):
                pass
        # No database knows these two, so that the second's attaching could not keep the first in the rules.
        network.reconcile([(one, ()), (two, ())])
        with Guest(one) as first, Guest(two) as second:
            yield Pair(host, first, second)
        network.detach(one, ())
        network.detach(two, ())


@contextmanager
def the_world_of(pair: Pair) -> Iterator[str]:
    """Plug the host's cable in; its supervisor, which would see that, watches none of these machines."""
    with the_world(pair.host) as world:
        open_site(data_dir=pair.host.data_dir).network.renew_ways()
        yield world


def test_an_honest_guest_reaches_its_gateway(pair: Pair) -> None:
    lease = pair.one.lease
    pair.one.send(frames.arp(lease.mac, lease.address, "00:00:00:00:00:00", GATEWAY))
    answer = pair.one.until(lambda frame: frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2")
    assert answer is not None
    assert frames.mac_text(answer[22:28]) == GATEWAY_MAC
    assert pair.reaches_gateway(1)


def overheard(guest: Guest, seconds: float) -> list[bytes]:
    """Return every frame of any kind that comes within `seconds`, but for the bridge's own IGMP."""
    found: list[bytes] = []
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([guest._fd], [], [], left)[0]:
            frame = os.read(guest._fd, 65536)[len(frames._VNET_HEADER) :]
            if not (frame.startswith(b"\x01\x00\x5e") and frame[6:12] == mac(GATEWAY_MAC)):
                found.append(frame)
    return found


def ipv6(source: str, destination: str, kind: int, payload: bytes) -> bytes:
    """An IPv6 packet; `payload` is ICMPv6 or UDP, whose checksum is filled in at its place."""
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    at = 2 if kind == socket.IPPROTO_ICMPV6 else 6
    checksum = frames._checksum(ends + struct.pack("!II", len(payload), kind) + payload)
    payload = payload[:at] + struct.pack("!H", checksum) + payload[at + 2 :]
    return struct.pack("!IHBB", 0x60000000, len(payload), kind, 255) + ends + payload


def link_local(text: str) -> str:
    """The address that IPv6 derives from a MAC (RFC 4291, appendix A)."""
    raw = mac(text)
    whole = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + b"\0" * 6 + whole)


def router_advertisement(source_mac: str, destination: str = ALL_NODES_MAC) -> bytes:
    """Tells everyone to send the world's traffic here (RFC 4861), with the sender's MAC as its option."""
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + b"\1\1" + mac(source_mac)
    return ethernet(source_mac, destination, IPV6, ipv6(link_local(source_mac), ALL_NODES, 58, body))


def llc(source: str, destination: str, payload: bytes) -> bytes:
    """A frame of 802.3: a length where others have their type, then an LLC header (in `payload`)."""
    return (mac(destination) + mac(source) + struct.pack("!H", len(payload)) + payload).ljust(60, b"\0")


def spoofed_addresses(one: Guest, two: Guest) -> dict[str, bytes]:
    """Every way in which `one` may pretend to be someone else in IPv4 and ARP."""
    own, address, zero = one.lease.mac, one.lease.address, "00:00:00:00:00:00"
    ping = ipv4(address, GATEWAY, 1, echo(77))
    offer = udp(67, 68, b"\2\1\6\0" + b"\0" * 236 + b"\x63\x82\x53\x63\x35\1\2\xff")
    return {
        "another's address": ethernet(own, GATEWAY_MAC, IPV4, ipv4(two.lease.address, GATEWAY, 1, echo(77))),
        "a stranger's address": ethernet(own, GATEWAY_MAC, IPV4, ipv4("10.1.2.3", GATEWAY, 1, echo(77))),
        "no address": ethernet(own, GATEWAY_MAC, IPV4, ipv4("0.0.0.0", GATEWAY, 1, echo(77))),
        "localhost's address": ethernet(own, GATEWAY_MAC, IPV4, ipv4("127.0.0.1", GATEWAY, 1, echo(77))),
        "the gateway's address": ethernet(own, two.lease.mac, IPV4, ipv4(GATEWAY, two.lease.address, 1, echo(77))),
        "another's MAC": ethernet(two.lease.mac, GATEWAY_MAC, IPV4, ping),
        "the gateway's MAC": ethernet(GATEWAY_MAC, GATEWAY_MAC, IPV4, ping),
        "ARP for another's address": frames.arp(own, two.lease.address, GATEWAY_MAC, GATEWAY),
        "ARP for the gateway": frames.arp(own, GATEWAY, two.lease.mac, two.lease.address, reply=True),
        "ARP with another's MAC inside": frames.arp(two.lease.mac, address, GATEWAY_MAC, GATEWAY, source=own),
        "gratuitous ARP for the gateway, as a question": frames.arp(own, GATEWAY, zero, GATEWAY),
        "gratuitous ARP for the gateway, as an answer": frames.arp(own, GATEWAY, BROADCAST, GATEWAY, reply=True),
        "gratuitous ARP for another": frames.arp(own, two.lease.address, zero, two.lease.address),
        "a DHCP server's offer": ethernet(own, BROADCAST, IPV4, ipv4(address, "255.255.255.255", 17, offer)),
        "a DHCP offer of the gateway's": ethernet(own, BROADCAST, IPV4, ipv4(GATEWAY, "255.255.255.255", 17, offer)),
    }


def foreign_protocols(one: Guest, two: Guest) -> dict[str, bytes]:
    """Every way past rules that look at plain IPv4 and ARP only."""
    own, address = one.lease.mac, one.lease.address
    ping, lie = ipv4(address, GATEWAY, 1, echo(77)), ipv4(two.lease.address, GATEWAY, 1, echo(77))
    bpdu = b"\x42\x42\x03" + b"\0\0\0\0\0" + b"\0\0" + mac(own) + b"\0" * 4 + b"\0\0" + mac(own) + b"\x80\1" + b"\0" * 8
    return {
        "a VLAN tag": ethernet(own, GATEWAY_MAC, VLAN, b"\0\1\x08\0" + ping),
        "a VLAN tag to the other": ethernet(own, two.lease.mac, VLAN, b"\0\1\x08\0" + ping),
        "a tag of priority alone": ethernet(own, GATEWAY_MAC, VLAN, b"\xe0\0\x08\0" + lie),
        "a provider's tag (QinQ)": ethernet(own, GATEWAY_MAC, QINQ, b"\0\1\x08\0" + ping),
        "a provider's tag to the other": ethernet(own, two.lease.mac, QINQ, b"\0\1\x08\0" + ping),
        "a tag in a tag": ethernet(own, GATEWAY_MAC, QINQ, b"\0\1\x81\0\0\1\x08\0" + lie),
        "a tagged ARP": ethernet(own, BROADCAST, VLAN, b"\0\0\x08\6" + frames.arp(own, GATEWAY, own, GATEWAY)[14:]),
        "IPv6": ethernet(own, BROADCAST, IPV6, b"\x60" + b"\0" * 39),
        "a router advertisement": router_advertisement(own),
        "a router advertisement of the gateway's": router_advertisement(GATEWAY_MAC),
        "802.3 with LLC": llc(own, BROADCAST, b"\xe0\xe0\x03hello"),
        "IPv4 in SNAP": llc(own, GATEWAY_MAC, b"\xaa\xaa\x03\0\0\0\x08\0" + lie),
        "a spanning tree's BPDU": llc(own, f"{BRIDGE_GROUP}0", bpdu),
        "a BPDU to another": llc(own, two.lease.mac, bpdu),
        "reverse ARP": ethernet(own, BROADCAST, RARP, frames.arp(own, GATEWAY, own, GATEWAY)[14:]),
        "a made-up protocol": ethernet(own, BROADCAST, 0x88B5, b"hello"),
    }


@pytest.mark.fault(7)
@pytest.mark.parametrize("kind", [spoofed_addresses, foreign_protocols])
def test_lies_are_dropped(pair: Pair, kind) -> None:
    assert pair.reaches_gateway(1)
    overheard(pair.two, 0.2)
    with serving(pair.host.namespace, "-c", LISTEN, "68") as dhcp_client:
        for number, (what, frame) in enumerate(kind(pair.one, pair.two).items()):
            pair.one.send(frame)
            assert pair.reaches_gateway(100 + number), f"after {what}, honest frames pass no more"
            assert [seen for seen in pair.one.received(0.03) if is_echo_reply(seen, 77)] == [], f"{what} was answered"
            assert overheard(pair.two, 0.03) == [], f"{what} had an effect on another machine"
        dhcp_client.kill()
        assert dhcp_client.stdout is not None
        assert dhcp_client.stdout.read() == b""
    believes_nothing(pair)


def believes_nothing(pair: Pair) -> None:
    """Assert that the host has learned nothing false of `one`: no neighbour, no port of the bridge, no route."""
    liar = pair.one.lease
    neighbours = pair.host.run("ip", "neigh").stdout.splitlines()
    assert [line for line in neighbours if liar.mac in line and not line.startswith(f"{liar.address} ")] == []
    learned = pair.host.run("bridge", "fdb", "show", "brport", liar.tap, "dynamic").stdout.split("\n")
    assert {line.split()[0] for line in learned if line} <= {liar.mac}
    assert pair.host.run("ip", "-6", "route", "show", "default").stdout == ""


@pytest.mark.fault(6, 7)
def test_addresses_of_the_bridge_itself_are_no_way_past_the_rules(pair: Pair) -> None:
    """Linux hands frames for 802.1D's group addresses to the host on another way than all others, and LLDP on a third."""
    one, two = pair.one.lease, pair.two.lease
    for link in ("vmm-br0", one.tap):
        # vmm keeps the host from IPv6 there; the rules must hold where someone switches it on.
        Path(f"/proc/sys/net/ipv6/conf/{link}/accept_dad").write_text("0")
        Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6").write_text("0")
    shown = pair.host.run("ip", "-6", "-o", "addr", "show", "dev", one.tap).stdout
    tap_address = shown.split()[3].partition("/")[0]
    own = link_local(one.mac)
    assert pair.reaches_gateway(1)
    overheard(pair.two, 0.1)
    with serving(pair.host.namespace, "-c", LISTEN, "9099") as listener:
        for group in (f"{BRIDGE_GROUP}{digit:x}" for digit in range(16)):
            knock = ipv4(one.address, GATEWAY, 17, udp(1, 9099, b"over " + group.encode()))
            pair.one.send(ethernet(one.mac, group, IPV4, knock))
            pair.one.send(ethernet(two.mac, group, LLDP, b"whose port is this"))
            pair.one.send(ethernet(one.mac, group, PAUSE, b"\0\1\xff\xff"))
            pair.one.send(frames.arp(one.mac, GATEWAY, BROADCAST, GATEWAY).replace(mac(BROADCAST), mac(group), 1))
            pair.one.send(router_advertisement(one.mac, group))
            for address in (tap_address, link_local(GATEWAY_MAC)):
                knock = ipv6(own, address, 17, udp(1, 9099, b"over " + group.encode()))
                pair.one.send(ethernet(one.mac, group, IPV6, knock))
        assert pair.reaches_gateway(2)
        # The bridge itself speaks IPv6 here.
        assert [frame for frame in overheard(pair.two, 0.1) if frame[6:12] != mac(GATEWAY_MAC)] == []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as local:
            local.sendto(b"it listens", ("127.0.0.1", 9099))
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"127.0.0.1 it listens\n"
    believes_nothing(pair)


@pytest.mark.fault(5)
def test_machines_do_not_reach_each_other(pair: Pair) -> None:
    one, two = pair.one.lease, pair.two.lease
    everyone = ipv4(one.address, "172.16.255.255", 17, udp(1, 9, b"everyone"))
    for what, frame in {
        "directly": ethernet(one.mac, two.mac, IPV4, ipv4(one.address, two.address, 1, echo(5))),
        "by way of the gateway": ethernet(one.mac, GATEWAY_MAC, IPV4, ipv4(one.address, two.address, 1, echo(6))),
        "by ARP": frames.arp(one.mac, one.address, "00:00:00:00:00:00", two.address),
        "by broadcast": ethernet(one.mac, BROADCAST, IPV4, everyone),
        "by broadcast, routed": ethernet(one.mac, GATEWAY_MAC, IPV4, everyone),
        "by multicast": ethernet(
            one.mac, "01:00:5e:00:00:fb", IPV4, ipv4(one.address, "224.0.0.251", 17, udp(5353, 5353, b"mDNS"))
        ),
    }.items():
        pair.one.send(frame)
        assert overheard(pair.two, 0.2) == [], what
    assert pair.reaches_gateway(7)


@pytest.mark.fault(5)
@pytest.mark.parametrize("host_address", ["0.0.0.0", OUTSIDE_HOST])
def test_another_machines_published_port_is_out_of_reach(pair: Pair, host_address: str) -> None:
    """A forward is for the world and the host; a machine that could use it would have a way round the isolation."""
    one, two = pair.one.lease, pair.two.lease
    forward = PortForward(
        machine="two", protocol=Protocol.UDP, host_address=host_address, host_port=5353, guest_port=53
    )
    network = open_site(data_dir=pair.host.data_dir).network
    with the_world_of(pair) as world:
        network.open_forward(two, forward)
        for target in (GATEWAY, OUTSIDE_HOST, "127.0.0.1"):
            knock = ipv4(one.address, target, 17, udp(1, 5353, b"hairpin"))
            pair.one.send(ethernet(one.mac, GATEWAY_MAC, IPV4, knock))
        assert overheard(pair.two, 0.3) == []
        # From the world it works, so there was something to reach.
        with inside(world), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
            outside.sendto(b"in", (OUTSIDE_HOST, 5353))
        assert pair.two.until(lambda frame: frame[23] == 17 and frame.rstrip(b"\0").endswith(b"in")) is not None
        network.close_forward(two, forward)


@pytest.mark.fault(6)
def test_from_outside_nothing_but_answers_and_forwards_reaches_a_machine(pair: Pair) -> None:
    """A neighbour of the host may send it, as a router, what is for its machines' own addresses."""
    lease = pair.one.lease
    forward = PortForward(machine="one", protocol=Protocol.UDP, host_address="0.0.0.0", host_port=5353, guest_port=53)
    network = open_site(data_dir=pair.host.data_dir).network
    with the_world_of(pair) as world:
        network.open_forward(lease, forward)
        pair.host.run("ip", "-n", world, "route", "add", "172.16.0.0/16", "via", OUTSIDE_HOST)
        with inside(world), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
            outside.bind(("", 7))
            outside.settimeout(3)
            # Even to the port that a forward leads to, and to that which it leads from.
            for port in (53, 5353, 9):
                outside.sendto(b"routed", (lease.address, port))
            assert overheard(pair.one, 0.3) == []
            outside.sendto(b"forwarded", (OUTSIDE_HOST, 5353))
            assert pair.one.until(lambda frame: frame[23] == 17 and frame.rstrip(b"\0").endswith(b"forwarded"))
            question = ipv4(lease.address, OUTSIDE_WORLD, 17, udp(4, 7, b"question"))
            pair.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, question))
            said, asker = outside.recvfrom(10)
            assert (said, asker[0]) == (b"question", OUTSIDE_HOST)
            outside.sendto(b"answered", asker)
            assert pair.one.until(lambda frame: frame[23] == 17 and frame.rstrip(b"\0").endswith(b"answered"))
        network.close_forward(lease, forward)


@pytest.mark.fault(6)
def test_every_address_of_the_host_and_its_clouds_metadata_are_closed_to_machines(pair: Pair) -> None:
    lease = pair.one.lease
    targets = (GATEWAY, OUTSIDE_HOST, "127.0.0.1", "172.16.255.255", "255.255.255.255", "224.0.0.1", METADATA)
    with (
        the_world_of(pair) as world,
        serving(pair.host.namespace, "-c", LISTEN, "9099") as host,
        serving(world, "-c", LISTEN, "9099") as cloud,
    ):
        for target in (*targets, OUTSIDE_WORLD):
            knock = ipv4(lease.address, target, 17, udp(1, 9099, target.encode()))
            pair.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, knock))
        assert pair.one.until(lambda frame: frame[23] == 17 and frame.rstrip(b"\0").endswith(b"answer")) is not None
        for listener in (host, cloud):
            listener.kill()
        assert host.stdout is not None
        assert cloud.stdout is not None
        assert host.stdout.read() == b""
        assert cloud.stdout.read().decode().splitlines() == [f"{OUTSIDE_HOST} {OUTSIDE_WORLD}"]


@pytest.mark.fault(5, 6)
def test_without_a_firewall_machines_are_still_apart_and_the_host_hears_no_ipv6(pair: Pair) -> None:
    """Between another tool's `nft flush ruleset` and the next vmm command, what the kernel itself keeps still holds."""
    one, two = pair.one.lease, pair.two.lease
    pair.host.run("nft", "flush", "ruleset")
    with serving(pair.host.namespace, "-c", LISTEN, "9099") as listener:
        pair.one.send(ethernet(one.mac, two.mac, IPV4, ipv4(one.address, two.address, 1, echo(5))))
        pair.one.send(router_advertisement(one.mac))
        for address, to in ((link_local(GATEWAY_MAC), GATEWAY_MAC), (ALL_NODES, ALL_NODES_MAC)):
            knock = ipv6(link_local(one.mac), address, 17, udp(1, 9099, b"hello"))
            pair.one.send(ethernet(one.mac, to, IPV6, knock))
        assert overheard(pair.two, 0.2) == []
        listener.kill()
        assert listener.stdout is not None
        assert listener.stdout.read() == b""
    assert pair.host.run("ip", "-6", "route", "show", "default").stdout == ""


@pytest.mark.fault(6)
def test_the_hosts_own_ports_are_closed_to_machines_but_not_to_answers(pair: Pair) -> None:
    lease = pair.one.lease
    with serving(pair.host.namespace, "-c", LISTEN, "9099") as listener:
        knock = ipv4(lease.address, GATEWAY, 17, udp(1, 9099, b"x"))
        pair.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, knock))
        assert pair.reaches_gateway(1)
        # The host itself may speak to its machine, and is answered.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.settimeout(3)
            own.sendto(b"question", (lease.address, 7))
            asked = pair.one.until(lambda frame: frame[23] == 17 and frame.endswith(b"question"))
            assert asked is not None
            port = int.from_bytes(asked[34:36], "big")
            pair.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, ipv4(lease.address, GATEWAY, 17, udp(7, port, b"re"))))
            assert own.recv(10) == b"re"
        listener.kill()
        assert listener.stdout is not None
        assert listener.stdout.read() == b""


@pytest.mark.fault(29)
@pytest.mark.parametrize("others", ["nothing", "a drop policy", "Docker"])
def test_the_world_is_reached_whatever_else_drops(host: Host, others: str) -> None:
    """Docker and ufw make iptables' FORWARD chain drop what they do not know."""
    if others != "nothing":
        host.run("iptables", "-P", "FORWARD", "DROP")
    if others == "Docker":
        host.run("iptables", "-N", "DOCKER-USER")
        host.run("iptables", "-A", "DOCKER-USER", "-j", "RETURN")
        host.run("iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
    forward = PortForward(machine="m", protocol=Protocol.UDP, host_port=5353, guest_port=53)
    lease = lease_for(IPv4Address("172.16.0.2"))
    with the_world(host) as world, serving(world, "-c", LISTEN, "9") as listener, inside(host.namespace):
        network = open_site(data_dir=host.data_dir).network
        with network.attaching(lease, (forward,)):
            pass
        with Guest(lease) as guest:
            out = ipv4(lease.address, OUTSIDE_WORLD, 17, udp(1234, 9, b"out"))
            guest.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, out))
            assert guest.until(lambda frame: frame.endswith(b"answer")) is not None
            assert listener.stdout is not None
            assert listener.stdout.readline().decode().split() == [OUTSIDE_HOST, "out"]
            with inside(world), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
                outside.sendto(b"in", (OUTSIDE_HOST, 5353))
            came = guest.until(lambda frame: frame[23] == 17 and frame[36:38] == b"\0\x35")
            assert came is not None
            assert frames.socket.inet_ntoa(came[26:30]) == OUTSIDE_WORLD
        network.detach(lease, (forward,))
    rules = host.run("iptables", "-S").stdout
    assert rules.count("--comment vmm") == (0 if others == "nothing" else 1)
    # Once more: what is there already is not put there again.
    host.vmm("setup", "--no-kernel", "--no-image")
    assert host.run("iptables", "-S").stdout == rules
    host.vmm("teardown")
    assert "--comment vmm" not in host.run("iptables", "-S").stdout


@pytest.mark.fault(29)
def test_docker_installed_later_is_noticed_and_mended(host: Host) -> None:
    host.vmm("setup", "--no-kernel", "--no-image")

    def check() -> dict:
        done = host.vmm("doctor", "--output", "json", check=False)
        return {row["name"]: row for row in json.loads(done.stdout)}["forward policy"]

    assert check()["status"] == "ok"
    host.run("iptables", "-P", "FORWARD", "DROP")
    assert check()["status"] == "warning"
    assert check()["fix"] == "sudo vmm reconcile"
    host.vmm("setup", "--no-kernel", "--no-image")
    assert check()["status"] == "ok"


def theirs(host: Host) -> str:
    """Return the rules of another tool, made by `add_theirs`."""
    return host.run("nft", "list", "table", "inet", "theirs").stdout


THEIRS = """
table inet theirs {
  set s { type ipv4_addr; elements = { 10.9.8.7 }; }
  chain c { type filter hook forward priority 5; policy accept; ip saddr @s counter drop; }
  chain n { type nat hook prerouting priority -90; tcp dport 7999 dnat ip to 10.9.8.7; }
}
"""


def add_theirs(host: Host) -> None:
    host.run("nft", "-f", "-", input=THEIRS)


@pytest.mark.fault(29)
def test_foreign_rules_are_left_alone(tiny: Host) -> None:
    add_theirs(tiny)
    before = theirs(tiny)
    tiny.vmm("create", "m", *SMALL)
    tiny.vmm("start", "m")
    tiny.vmm("port-forward", "add", "m", "8080:80")
    tiny.vmm("setup", "--no-kernel", "--no-image")
    tiny.vmm("delete", "-f", "m")
    tiny.vmm("teardown")
    assert theirs(tiny) == before
    assert tiny.run("nft", "list", "tables").stdout.strip() == "table inet theirs"


def elements(host: Host) -> str:
    return host.run("nft", "list", "ruleset", check=False).stdout


def ours(host: Host) -> list[str]:
    """Return vmm's two tables, a line an object, without the handles and the order that the kernel gives them."""
    found = []
    for family in ("ip", "bridge"):
        listed = host.run("nft", "-j", "list", "table", family, "vmm").stdout
        for entry in json.loads(listed)["nftables"]:
            for described in entry.values():
                described.pop("handle", None)
                if "elem" in described:
                    described["elem"].sort(key=json.dumps)
            found.append(json.dumps(entry))
    return found


def flushed(host: Host) -> None:
    host.run("nft", "flush", "ruleset")


def without_ip_table(host: Host) -> None:
    host.run("nft", "delete", "table", "ip", "vmm")


def without_bridge_table(host: Host) -> None:
    host.run("nft", "delete", "table", "bridge", "vmm")


def of_an_older_vmm(host: Host) -> None:
    """The tables of version 0.1.0: they lack the set `machines` and the rules that use it."""
    flushes = "; ".join(f"flush chain ip vmm {chain}" for chain in ("input", "from_machines", "leaving"))
    # At once: the supervisor mends what it sees.
    host.run("nft", f"{flushes}; delete chain bridge vmm input; delete set ip vmm machines")


@pytest.mark.fault(29)
@pytest.mark.parametrize("damage", [flushed, without_ip_table, without_bridge_table, of_an_older_vmm])
def test_a_damaged_firewall_is_made_whole_by_the_next_start(tiny: Host, damage) -> None:
    tiny.vmm("create", "a", *SMALL)
    tiny.vmm("create", "b", *SMALL)
    tiny.vmm("port-forward", "add", "a", "8080:80")
    tiny.vmm("start", "a")
    tiny.vmm("start", "b")
    whole = ours(tiny)
    assert "tcp . 8080 : 172.16.0.2 . 80" in elements(tiny)
    tiny.vmm("stop", "b", "--force")
    damage(tiny)
    add_theirs(tiny)
    before = theirs(tiny)
    tiny.vmm("start", "b")
    assert ours(tiny) == whole
    assert theirs(tiny) == before


@pytest.mark.fault(29)
def test_forwards_and_ends_work_whatever_was_flushed(tiny: Host) -> None:
    tiny.vmm("create", "a", *SMALL)
    tiny.vmm("create", "b", *SMALL)
    tiny.vmm("port-forward", "add", "a", "8080:80")
    tiny.vmm("start", "a")
    tiny.vmm("start", "b")
    flushed(tiny)
    tiny.vmm("port-forward", "add", "b", "8081:80")
    assert "tcp . 8080 : 172.16.0.2 . 80" in elements(tiny)
    assert "tcp . 8081 : 172.16.0.3 . 80" in elements(tiny)
    flushed(tiny)
    tiny.vmm("port-forward", "remove", "b", "8081:80")
    # And with no rules at all, stopping and deleting work.
    flushed(tiny)
    tiny.vmm("stop", "b", "--force")
    flushed(tiny)
    tiny.vmm("delete", "a", "--force")


@pytest.mark.fault(29)
@pytest.mark.parametrize("damage", ["down", "no address", "gone"])
def test_a_damaged_bridge_is_mended_by_the_next_start(tiny: Host, damage: str) -> None:
    tiny.vmm("create", "a", *SMALL)
    tiny.vmm("create", "b", *SMALL)
    tiny.vmm("start", "a")
    match damage:
        case "down":
            tiny.run("ip", "link", "set", "vmm-br0", "down")
        case "no address":
            tiny.run("ip", "addr", "flush", "dev", "vmm-br0")
        case _:
            tiny.run("ip", "link", "del", "vmm-br0")
    tiny.vmm("start", "b")
    bridge = tiny.run("ip", "addr", "show", "vmm-br0").stdout
    assert "172.16.0.1/16 brd 172.16.255.255" in bridge
    assert "UP" in bridge
    for tap in ("vmm-ac100002", "vmm-ac100003"):
        shown = tiny.run("ip", "-d", "-o", "link", "show", tap).stdout
        assert "master vmm-br0" in shown
        assert "isolated on" in shown


def test_elements_come_and_go_with_their_machine(tiny: Host) -> None:
    for name in ("a", "b"):
        tiny.vmm("create", name, *SMALL)
    tiny.vmm("start", "a")
    tiny.vmm("port-forward", "add", "a", "8080:80")
    tiny.vmm("port-forward", "add", "a", "127.0.0.1:9090:90/udp")
    before = elements(tiny)
    tiny.vmm("start", "b")
    tiny.vmm("stop", "b", "--force")
    assert elements(tiny) == before
    tiny.vmm("stop", "a", "--force")
    assert "172.16.0.2" not in elements(tiny)
    tiny.vmm("start", "a")
    assert elements(tiny) == before
    tiny.vmm("port-forward", "remove", "a", "8080:80")
    tiny.vmm("port-forward", "remove", "a", "127.0.0.1:9090:90/udp")
    assert "8080" not in elements(tiny)
    assert "9090" not in elements(tiny)


def test_another_subnet_and_bridge(tiny: Host) -> None:
    tiny.vmm("config", "init")
    tiny.vmm("config", "set", "subnet", "10.77.0.0/24", "gateway", "10.77.0.1", "bridge_name", "vmm-br7")
    tiny.vmm("create", "m", *SMALL)
    tiny.vmm("start", "m")
    assert tiny.machine("m")["ip_address"] == "10.77.0.2"
    assert "10.77.0.1/24" in tiny.run("ip", "addr", "show", "vmm-br7").stdout
    tiny.vmm("delete", "-f", "m")
    tiny.vmm("teardown")
    assert "vmm-br7" not in tiny.run("ip", "-o", "link").stdout


@pytest.mark.fault(33)
@pytest.mark.parametrize(
    ("route", "refused"),
    [
        (("172.16.5.0/24",), "172.16.5.0/24"),
        (("172.16.0.0/12", "via", "10.8.0.2"), "172.16.0.0/12"),  # all of the private block, as VPNs take it
        (("172.16.200.9/32", "via", "10.8.0.2"), "172.16.200.9/32"),
        (("default", "via", "10.8.0.2"), ""),
        (("128.0.0.0/1", "via", "10.8.0.2"), ""),  # a VPN's default route in two halves
        (("172.17.0.0/16",), ""),  # Docker's
    ],
)
def test_a_subnet_that_the_host_reaches_elsewhere_is_refused(tiny: Host, route: tuple[str, ...], refused: str) -> None:
    tiny.run("ip", "link", "add", "lan0", "type", "bridge")
    tiny.run("ip", "addr", "add", "10.8.0.1/24", "dev", "lan0")
    tiny.run("ip", "link", "set", "lan0", "up")
    tiny.run("ip", "route", "add", *route, "dev", "lan0")
    routes = tiny.run("ip", "route").stdout
    tiny.vmm("create", "m", *SMALL)
    if refused:
        said = tiny.fails("start", "m")
        assert refused in said
        assert "lan0" in said
        assert "subnet" in said
        assert tiny.processes() == []
        assert "vmm" not in tiny.run("ip", "-o", "link").stdout
        assert "vmm" not in elements(tiny)
        assert tiny.run("ip", "route").stdout == routes
        tiny.run("ip", "link", "del", "lan0")
    tiny.vmm("start", "m")


@pytest.mark.fault(33)
def test_every_address_of_a_small_subnet_is_given_once(tiny: Host) -> None:
    tiny.vmm("config", "init")
    tiny.vmm("config", "set", "subnet", "10.77.0.0/29", "gateway", "10.77.0.3")
    for number in range(5):
        tiny.vmm("create", f"m{number}", *SMALL)
    # Not the network (.0), not the gateway (.3), not the broadcast (.7).
    assert [row["ip_address"][-1] for row in tiny.json("list")] == ["1", "2", "4", "5", "6"]
    before = tiny.json("list")
    said = tiny.fails("create", "more", *SMALL)
    assert "Every address of 10.77.0.0/29 is taken" in said
    assert "vmm delete" in said
    assert tiny.json("list") == before
    assert not (tiny.data_dir / "vms" / "more").exists()
    tiny.vmm("delete", "m2")
    tiny.vmm("create", "more", *SMALL)
    assert tiny.machine("more")["ip_address"] == "10.77.0.4"
