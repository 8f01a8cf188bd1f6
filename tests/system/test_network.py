"""What a machine may send, and what reaches it: raw frames through real taps, a real bridge and real nftables."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import frames
import pytest
from frames import BROADCAST, IPV6, VLAN, Guest, echo, ethernet, inside, ipv4, is_echo_reply, udp
from hosts import OUTSIDE_HOST, OUTSIDE_WORLD, Host, serving, the_world

from vmm.app import open_site
from vmm.model.network import PortForward, Protocol, lease_for

pytestmark = pytest.mark.system

SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")
GATEWAY = "172.16.0.1"
GATEWAY_MAC = lease_for(IPv4Address(GATEWAY)).mac
# Says what it hears, and whom from.
LISTEN = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", int(sys.argv[1]))); print("ready", flush=True)
while True:
    data, who = s.recvfrom(2048); print(who[0], data.decode(), flush=True); s.sendto(b"answer", who)
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
        self.one.send(ethernet(lease.mac, GATEWAY_MAC, frames.IPV4, ipv4(lease.address, GATEWAY, 1, echo(number))))
        return self.one.until(lambda frame: is_echo_reply(frame, number)) is not None


@pytest.fixture
def pair(host: Host) -> Iterator[Pair]:
    with inside(host.namespace):
        network = open_site(data_dir=host.data_dir).network
        one, two = lease_for(IPv4Address("172.16.0.2")), lease_for(IPv4Address("172.16.0.3"))
        with network.attaching(one, ()), network.attaching(two, ()):
            pass
        with Guest(one) as first, Guest(two) as second:
            yield Pair(host, first, second)
        network.detach(one, ())
        network.detach(two, ())


def test_an_honest_guest_reaches_its_gateway(pair: Pair) -> None:
    lease = pair.one.lease
    pair.one.send(frames.arp(lease.mac, lease.address, "00:00:00:00:00:00", GATEWAY))
    answer = pair.one.until(lambda frame: frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2")
    assert answer is not None
    assert frames.mac_text(answer[22:28]) == GATEWAY_MAC
    assert pair.reaches_gateway(1)


def lies(one: Guest, two: Guest) -> dict[str, bytes]:
    """Every way in which `one` may pretend to be someone else, or speak past the rules."""
    mac, address = one.lease.mac, one.lease.address
    ping = ipv4(address, GATEWAY, 1, echo(77))
    tagged = b"\0\1" + b"\x08\0" + ping
    return {
        "another's address": ethernet(mac, GATEWAY_MAC, frames.IPV4, ipv4(two.lease.address, GATEWAY, 1, echo(77))),
        "a stranger's address": ethernet(mac, GATEWAY_MAC, frames.IPV4, ipv4("10.1.2.3", GATEWAY, 1, echo(77))),
        "the gateway's address": ethernet(
            mac, two.lease.mac, frames.IPV4, ipv4(GATEWAY, two.lease.address, 1, echo(77))
        ),
        "another's MAC": ethernet(two.lease.mac, GATEWAY_MAC, frames.IPV4, ping),
        "the gateway's MAC": ethernet(GATEWAY_MAC, GATEWAY_MAC, frames.IPV4, ping),
        "ARP for another's address": frames.arp(mac, two.lease.address, GATEWAY_MAC, GATEWAY),
        "ARP for the gateway": frames.arp(mac, GATEWAY, two.lease.mac, two.lease.address, reply=True),
        "ARP with another's MAC inside": frames.arp(two.lease.mac, address, GATEWAY_MAC, GATEWAY, source=mac),
        "a VLAN tag": ethernet(mac, GATEWAY_MAC, VLAN, tagged),
        "a VLAN tag to the other": ethernet(mac, two.lease.mac, VLAN, tagged),
        "IPv6": ethernet(mac, BROADCAST, IPV6, b"\x60" + b"\0" * 39),
        "a made-up protocol": ethernet(mac, BROADCAST, 0x88B5, b"hello"),
    }


def test_lies_are_dropped(pair: Pair) -> None:
    assert pair.reaches_gateway(1)
    pair.two.received(0.2)
    for number, (what, frame) in enumerate(lies(pair.one, pair.two).items()):
        pair.one.send(frame)
        assert pair.reaches_gateway(100 + number), f"after {what}, honest frames pass no more"
        assert [seen for seen in pair.one.received(0.05) if is_echo_reply(seen, 77)] == [], f"{what} was answered"
        assert pair.two.received(0.05) == [], f"{what} had an effect on another machine"
    neighbours = pair.host.run("ip", "neigh").stdout
    assert not any(pair.two.lease.address in line and pair.one.lease.mac in line for line in neighbours.splitlines())


def test_machines_do_not_reach_each_other(pair: Pair) -> None:
    one, two = pair.one.lease, pair.two.lease
    for what, frame in {
        "directly": ethernet(one.mac, two.mac, frames.IPV4, ipv4(one.address, two.address, 1, echo(5))),
        "by way of the gateway": ethernet(
            one.mac, GATEWAY_MAC, frames.IPV4, ipv4(one.address, two.address, 1, echo(6))
        ),
        "by broadcast": frames.arp(one.mac, one.address, "00:00:00:00:00:00", two.address),
    }.items():
        pair.one.send(frame)
        assert pair.two.received(0.3) == [], what
    assert pair.reaches_gateway(7)


def test_the_hosts_own_ports_are_closed_to_machines(pair: Pair) -> None:
    lease = pair.one.lease
    with serving(pair.host.namespace, "-c", LISTEN, "9099") as listener:
        knock = ipv4(lease.address, GATEWAY, 17, udp(1, 9099, b"x"))
        pair.one.send(ethernet(lease.mac, GATEWAY_MAC, frames.IPV4, knock))
        assert pair.reaches_gateway(1)
        # The host itself may speak to its machine, and is answered.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.settimeout(3)
            own.sendto(b"question", (lease.address, 7))
            asked = pair.one.until(lambda frame: frame[23] == 17 and frame.endswith(b"question"))
            assert asked is not None
            port = int.from_bytes(asked[34:36], "big")
            pair.one.send(
                ethernet(lease.mac, GATEWAY_MAC, frames.IPV4, ipv4(lease.address, GATEWAY, 17, udp(7, port, b"re")))
            )
            assert own.recv(10) == b"re"
        listener.kill()
        assert listener.stdout is not None
        assert listener.stdout.read() == b""


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
            guest.send(ethernet(lease.mac, GATEWAY_MAC, frames.IPV4, out))
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
    assert rules.count("--comment vmm") == (0 if others == "nothing" else 2)
    # Once more: what is there already is not put there again.
    host.vmm("setup", "--no-kernel", "--no-image")
    assert host.run("iptables", "-S").stdout == rules
    host.vmm("teardown")
    assert "--comment vmm" not in host.run("iptables", "-S").stdout


def test_docker_installed_later_is_noticed_and_mended(host: Host) -> None:
    host.vmm("setup", "--no-kernel", "--no-image")

    def check() -> dict:
        done = host.vmm("doctor", "--output", "json", check=False)
        return {row["name"]: row for row in json.loads(done.stdout)}["forward policy"]

    assert check()["status"] == "ok"
    host.run("iptables", "-P", "FORWARD", "DROP")
    assert check()["status"] == "warning"
    assert check()["fix"] == "sudo vmm setup"
    host.vmm("setup", "--no-kernel", "--no-image")
    assert check()["status"] == "ok"


def test_foreign_rules_are_left_alone(tiny: Host) -> None:
    tiny.run(
        "nft", "add table ip theirs; add chain ip theirs c { type filter hook forward priority 5; policy accept; }"
    )
    tiny.run("nft", "add rule ip theirs c ip saddr 10.9.8.7 drop")
    theirs = tiny.run("nft", "list", "table", "ip", "theirs").stdout
    tiny.vmm("create", "m", *SMALL)
    tiny.vmm("start", "m")
    tiny.vmm("port-forward", "add", "m", "8080:80")
    tiny.vmm("delete", "-f", "m")
    tiny.vmm("teardown")
    assert tiny.run("nft", "list", "table", "ip", "theirs").stdout == theirs
    assert tiny.run("nft", "list", "tables").stdout.strip() == "table ip theirs"


def elements(host: Host) -> str:
    return host.run("nft", "list", "ruleset", check=False).stdout


def test_a_flushed_firewall_is_made_whole_by_the_next_start(tiny: Host) -> None:
    tiny.vmm("create", "a", *SMALL)
    tiny.vmm("create", "b", *SMALL)
    tiny.vmm("port-forward", "add", "a", "8080:80")
    tiny.vmm("start", "a")
    whole = elements(tiny)
    assert "tcp . 8080 : 172.16.0.2 . 80" in whole
    tiny.run("nft", "flush", "ruleset")
    tiny.vmm("start", "b")
    mended = elements(tiny)
    assert "tcp . 8080 : 172.16.0.2 . 80" in mended
    assert "vmm-ac100002" in mended
    assert "vmm-ac100003" in mended
    tiny.run("nft", "flush", "ruleset")
    tiny.vmm("port-forward", "add", "b", "8081:80")
    assert "tcp . 8080 : 172.16.0.2 . 80" in elements(tiny)
    assert "tcp . 8081 : 172.16.0.3 . 80" in elements(tiny)
    # And with no rules at all, stopping and deleting work.
    tiny.run("nft", "flush", "ruleset")
    tiny.vmm("stop", "--all", "--force")


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


def test_a_subnet_that_is_in_use_is_refused(tiny: Host) -> None:
    tiny.run("ip", "link", "add", "lan0", "type", "bridge")
    tiny.run("ip", "addr", "add", "172.16.5.1/24", "dev", "lan0")
    tiny.run("ip", "link", "set", "lan0", "up")
    tiny.vmm("create", "m", *SMALL)
    said = tiny.fails("start", "m")
    assert "172.16.5.0/24" in said
    assert "lan0" in said
    assert tiny.processes() == []
    assert "vmm" not in tiny.run("ip", "-o", "link").stdout
    tiny.run("ip", "link", "del", "lan0")
    tiny.vmm("start", "m")


def test_every_address_of_a_small_subnet_is_given_once(tiny: Host) -> None:
    tiny.vmm("config", "init")
    tiny.vmm("config", "set", "subnet", "10.77.0.0/29", "gateway", "10.77.0.3")
    for number in range(5):
        tiny.vmm("create", f"m{number}", *SMALL)
    # Not the network (.0), not the gateway (.3), not the broadcast (.7).
    assert [row["ip_address"][-1] for row in tiny.json("list")] == ["1", "2", "4", "5", "6"]
    assert "Every address" in tiny.fails("create", "more", *SMALL)
    tiny.vmm("delete", "m2")
    tiny.vmm("create", "more", *SMALL)
    assert tiny.machine("more")["ip_address"] == "10.77.0.4"
