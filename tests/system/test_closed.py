"""Closed stays closed: while the firewall's rules are away, under a flood, and to what the host knows of others."""

import contextlib
import itertools
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

import frames
import pytest
from frames import BROADCAST, IPV4, IPV6, echo, ethernet, inside, ipv4, udp
from hosts import METADATA, OUTSIDE_HOST, OUTSIDE_WORLD, SMALL, Host, the_world, wait_for
from pairs import GATEWAY, GATEWAY_MAC, Outside, Pair, a_pair, listening, overheard, the_world_of

from vmm.config import SUBNET
from vmm.model.network import PortForward, Protocol, lease_for
from vmm.model.value import replace
from vmm.network import policy
from vmm.network.tables import METADATA as CLOSED
from vmm.network.watch import Change, Changes

pytestmark = pytest.mark.system


@pytest.fixture
def pair(host: Host) -> Iterator[Pair]:
    with a_pair(host) as made:
        yield made


DAMAGES = {
    "all rules": ["flush ruleset"],
    "the tables": ["delete table ip vmm", "delete table bridge vmm", "delete table ip6 vmm"],
    "the table of IPv4": ["delete table ip vmm"],
    "the table of the bridge": ["delete table bridge vmm"],
    "the rules of the tables": ["flush table ip vmm", "flush table bridge vmm"],
    "the rules that vet": ["flush chain ip vmm guard"],
    "the machines": ["flush set ip vmm machines"],
}


@pytest.mark.fault(41)
@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_flushed_nothing_is_open_and_no_process_is_needed(pair: Pair, damage: str) -> None:
    """No supervisor watches these two guests: what holds here is the kernel's."""
    one, two = pair.one.lease, pair.two.lease
    with the_world_of(pair) as world, listening(pair.host.namespace) as host, listening(world) as beyond:
        assert pair.reaches_gateway(1)
        for command in DAMAGES[damage]:
            pair.host.run("nft", command)
        host_targets = (
            GATEWAY,
            OUTSIDE_HOST,
            "127.0.0.1",
            "127.8.8.8",
            "172.16.255.255",
            "255.255.255.255",
            "224.0.0.1",
        )
        for target in (*host_targets, METADATA):
            pair.knock(target, target)
        # As someone else, in plain IPv4 and in ARP; to groups of receivers; as IPv6; to the neighbour, both ways round.
        for liar in (two.address, "10.1.2.3", "127.0.0.1", GATEWAY):
            pair.knock(GATEWAY, liar, source=liar)
            pair.knock(OUTSIDE_WORLD, liar, source=liar)
        for receivers in (BROADCAST, "01:00:5e:00:00:01"):
            packet = ipv4(one.address, GATEWAY, 17, udp(1, 9099, b"group"))
            pair.one.send(ethernet(one.mac, receivers, IPV4, packet))
        pair.one.send(frames.arp(one.mac, two.address, "00:00:00:00:00:00", GATEWAY))
        pair.one.send(ethernet(one.mac, BROADCAST, IPV6, b"\x60" + b"\0" * 39))
        to_two = ipv4(one.address, two.address, 1, echo(5))
        pair.one.send(ethernet(one.mac, two.mac, IPV4, to_two))
        pair.one.send(ethernet(one.mac, GATEWAY_MAC, IPV4, to_two))
        with Outside(world) as neighbour:
            pair.host.run("ip", "-n", world, "route", "add", "172.16.0.0/16", "via", OUTSIDE_HOST)
            neighbour.send("routed", two.address, 9)
            # Only the host itself may ask for its machine's MAC, which it does here for what comes from outside.
            assert [frame for frame in overheard(pair.two, 0.3) if frame[12:14] == b"\x08\0"] == []
        assert host.heard() == []
        # The wall that still stands may let an honest packet out, masqueraded; never with an address from inside.
        assert [line for line in beyond.heard() if not line.startswith(OUTSIDE_HOST)] == []
    neighbours = pair.host.run("ip", "neigh").stdout.splitlines()
    assert [line for line in neighbours if one.mac in line and not line.startswith(f"{one.address} ")] == []
    pair.reconcile()
    assert pair.reaches_gateway(2)


# The bridge's rules, hung where nothing of a machine passes.
MOVED = r"""
elsewhere=$(nft -s list table bridge vmm | sed "s/hook prerouting priority [-a-z0-9]*/hook output priority 0/")
printf "delete table bridge vmm\n%s\n" "$elsewhere" | nft -f -
"""


@pytest.mark.fault(41)
def test_what_closes_without_the_firewall_stands_again_whoever_took_it_away(pair: Pair) -> None:
    """Routing rules and the tap's filter: each is missed, and made anew; the host's own rules stay as they are."""
    whole = pair.host.run("ip", "rule").stdout
    assert whole.splitlines()[0].endswith("from all fwmark 0/0x10000000 iif vmm-br0 blackhole")
    held = [(guest.lease, ()) for guest in (pair.one, pair.two)]
    network = replace(pair.network, running=lambda: held)
    for argv in (
        ["ip", "rule", "flush"],
        ["ip", "rule", "del", "pref", "0", "iif", "vmm-br0"],
        # The host's own is someone's who made it anew, and no more the kernel's.
        [
            "sh",
            "-ec",
            "ip rule add pref 0 lookup local; ip rule del pref 0 lookup local proto kernel; ip rule del pref 0 iif vmm-br0",
        ],
        ["tc", "qdisc", "del", "dev", pair.one.lease.tap, "clsact"],
        # Every rule stands, and none is asked; or stands where nothing passes.
        *(["nft", f"add table {family} vmm {{ flags dormant; }}"] for family in ("ip", "bridge", "ip6")),
        ["nft", "add chain ip vmm input { policy drop; }"],
        ["nft", "add chain ip vmm mine { type filter hook forward priority 0; policy drop; }"],
        ["sh", "-ec", MOVED],
    ):
        pair.host.run(*argv)
        assert network.differences(held) != [], argv
        network.restore()
        assert network.differences(held) == [], argv
    if "32766" not in pair.host.run("ip", "rule").stdout:
        pair.host.run("ip", "rule", "add", "pref", "32766", "lookup", "main")
        pair.host.run("ip", "rule", "add", "pref", "32767", "lookup", "default")
    assert pair.host.run("ip", "rule").stdout == whole


HOLLOW = {
    "asleep": "add table ip vmm { flags dormant; }",
    "the bridge's asleep": "add table bridge vmm { flags dormant; }",
    "IPv6's asleep": "add table ip6 vmm { flags dormant; }",
    "a policy that drops": "add chain ip vmm guard { policy drop; }",
    "another priority": "flush chain bridge vmm input; delete chain bridge vmm input;"
    ' add chain bridge vmm input { type filter hook input priority 5; }; add rule bridge vmm input iifname "vmm-ac10*"'
    " ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop",
    "on no hook": "flush chain ip vmm outside; delete chain ip vmm outside; add chain ip vmm outside;"
    ' add rule ip vmm outside ip saddr 172.16.0.0/16 oifname != { "lo", "vmm-br0" } drop',
    "a chain too many": "add chain ip vmm more { type filter hook forward priority 9; policy drop; }",
}


@pytest.mark.fault(41)
@pytest.mark.parametrize("change", HOLLOW)
def test_walls_that_stand_and_hold_nothing_are_seen_and_mended(pair: Pair, change: str) -> None:
    """Every rule is where it was, and none is asked, or all is dropped."""
    held = [(guest.lease, ()) for guest in (pair.one, pair.two)]
    network = replace(pair.network, running=lambda: held)
    assert network.differences(held) == []
    whole = settled(pair.host)
    pair.host.run("nft", HOLLOW[change])
    (told,) = network.differences(held)
    assert " vmm " in told
    network.restore()
    assert network.differences(held) == []
    assert settled(pair.host) == whole
    assert pair.reaches_gateway(1)


TAP = "vmm-ac100002"
BENT = {
    "was blocked on the bridge": f"bridge link set dev {TAP} state 0",
    "had another learning": f"bridge link set dev {TAP} learning off",
    "had another hairpin": f"bridge link set dev {TAP} hairpin on",
    "had another flood and bcast_flood": f"bridge link set dev {TAP} flood off bcast_flood off",
    "had another neigh_suppress": f"bridge link set dev {TAP} neigh_suppress on",
    "had an MTU of 600": f"ip link set {TAP} mtu 600",
    "vmm-br0 had an MTU of 9000": "ip link set vmm-br0 mtu 9000",
    "vmm-br0 had an MTU of 1200": "ip link set vmm-br0 mtu 1200",
    f"{TAP} had IPv6 on": f"sysctl -qw net.ipv6.conf.{TAP}.disable_ipv6=0",
    "vmm-br0 had IPv6 on": "sysctl -qw net.ipv6.conf.vmm-br0.disable_ipv6=0",
    "vmm-br0 was down": "ip link set vmm-br0 down",
    "was without 172.16.0.1": "ip addr flush dev vmm-br0",
    "vmm-br0 had another ageing_time": "ip link set vmm-br0 type bridge ageing_time 0",
    "vmm-br0 had another stp_state": "ip link set vmm-br0 type bridge stp_state 1",
    "vmm-br0 had another group_fwd_mask": "ip link set vmm-br0 type bridge group_fwd_mask 0",
}


@pytest.mark.fault(29)
@pytest.mark.parametrize("change", BENT)
def test_links_that_stand_and_are_otherwise_are_seen_and_mended(pair: Pair, change: str) -> None:
    held = [(guest.lease, ()) for guest in (pair.one, pair.two)]
    network = replace(pair.network, running=lambda: held)
    assert network.differences(held) == []
    watch = Changes()
    try:
        pair.host.run(*BENT[change].split())
        assert any(change in told for told in network.differences(held)), network.differences(held)
        # The kernel's news of it wake the supervisor.
        assert Change.LINKS in watch.take()
        network.restore()
        assert network.differences(held) == []
        assert pair.reaches_gateway(1)
    finally:
        watch.close()


@pytest.mark.fault(41)
def test_a_start_wakes_the_tables_that_someone_has_put_to_sleep(pair: Pair) -> None:
    whole = settled(pair.host)
    pair.host.run("nft", "add table ip vmm { flags dormant; }; add table bridge vmm { flags dormant; }")
    third = lease_for(IPv4Address("172.16.0.4"))
    with pair.network.attaching(third, ()):
        pass
    assert "dormant" not in settled(pair.host)
    pair.network.detach(third, ())
    assert settled(pair.host) == whole


def test_routing_rules_that_were_half_made_or_half_removed_go(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is killed between two of them leaves none that the next teardown would not know."""
    send = policy.netlink.send
    with inside(host.namespace):
        whole = host.run("ip", "rule").stdout
        for verb, steps in itertools.product(("made", "removed"), range(1, 6)):
            if verb == "removed":
                policy.mend("vmm-br0", SUBNET)
            left = iter(range(steps))

            def counted(messages: list, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                send(messages)

            monkeypatch.setattr(policy.netlink, "send", counted)
            with contextlib.suppress(KeyboardInterrupt):
                policy.mend("vmm-br0", SUBNET) if verb == "made" else policy.remove("vmm-br0")
            monkeypatch.setattr(policy.netlink, "send", send)
            assert (host.run("ip", "rule").stdout == whole) is (verb == "removed" and steps >= 3)
            policy.remove("vmm-br0")
            assert host.run("ip", "rule").stdout == whole, (verb, steps)


def repaired(host: Host) -> list[str]:
    return [event["detail"] for event in host.json("events") if event["kind"] == "repaired"]


def settled(host: Host) -> str:
    """Return the rules, without what the kernel counts."""
    return host.run("nft", "-s", "list", "ruleset").stdout


@pytest.mark.fault(29, 41)
def test_the_supervisor_puts_back_what_others_take_away_and_says_so(tiny: Host) -> None:
    with the_world(tiny):
        for name in ("a", "b"):
            tiny.vmm("create", name, *SMALL)
            tiny.vmm("start", name)
        tiny.vmm("port-forward", "add", "a", "127.0.0.1:8080:80")
        # The first look of the supervisor's finds all in order.
        wait_for(lambda: tiny.supervisors() != [], what="a supervisor")
        whole, links = settled(tiny), tiny.run("ip", "-d", "-o", "link", "show", "vmm-ac100002").stdout
        for what, argv in {
            "the firewall's table ip vmm was gone": ["nft", "flush", "ruleset"],
            "chain guard of ip vmm had 0 rules": ["nft", "flush", "chain", "ip", "vmm", "guard"],
            "172.16.0.3 was not in machines": ["nft", "flush", "set", "ip", "vmm", "machines"],
            "the tap vmm-ac100002 was off the bridge": ["ip", "link", "set", "vmm-ac100002", "nomaster"],
            "the tap vmm-ac100002 was not isolated": [
                "bridge",
                "link",
                "set",
                "dev",
                "vmm-ac100002",
                "isolated",
                "off",
            ],
            "the tap vmm-ac100002 was down": ["ip", "link", "set", "vmm-ac100002", "down"],
            "vmm-br0": ["ip", "link", "del", "vmm-br0"],
        }.items():
            tiny.run(*argv)
            wait_for(lambda what=what: any(what in told for told in repaired(tiny)), timeout=20, what=what)
            assert settled(tiny) == whole, what
            now = tiny.run("ip", "-d", "-o", "link", "show", "vmm-ac100002").stdout
            assert ("master vmm-br0" in now, "isolated on" in now) == (True, True), what
        assert "isolated on" in links
        assert "All is as it is remembered" in tiny.vmm("reconcile").stdout
        for name in ("a", "b"):
            tiny.vmm("stop", name, "--force")


@pytest.mark.fault(42)
def test_the_connections_of_a_machine_are_bounded_and_the_hosts_go_on(host: Host) -> None:
    host.vmm("config", "set", "max_connections", "64")
    with a_pair(host) as pair, the_world_of(pair) as world, listening(world) as beyond:
        for port in range(1000, 1200):
            pair.knock(OUTSIDE_WORLD, f"from {port}", from_port=port)
        count = int(host.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count").stdout)
        assert 60 <= count <= 70
        # What it has goes on, the host's own connections begin, and so do another machine's.
        pair.knock(OUTSIDE_WORLD, "again", from_port=1000)
        assert pair.hears("answer")
        with Outside(host.namespace) as own:
            own.send("the host", OUTSIDE_WORLD, 9099)
            assert own.hears() == (OUTSIDE_WORLD, "answer")
        two = pair.two.lease
        packet = ipv4(two.address, OUTSIDE_WORLD, 17, udp(1, 9099, b"the other"))
        pair.two.send(ethernet(two.mac, GATEWAY_MAC, IPV4, packet))
        assert pair.two.until(lambda frame: frame.rstrip(b"\0").endswith(b"answer")) is not None
        heard = beyond.heard()
        assert len([line for line in heard if " from " in line]) <= 64
        assert f"{OUTSIDE_HOST} again" in heard
    # Its bound goes with it: whoever gets its address begins anew.
    assert "172.16.0.2" not in host.run("nft", "list", "set", "ip", "vmm", "flows").stdout


@pytest.mark.fault(6)
@pytest.mark.parametrize("service", ["168.63.129.16", "100.100.100.200", METADATA])
def test_every_clouds_metadata_service_is_closed(pair: Pair, service: str) -> None:
    assert any(service == closed or service.startswith("169.254.") for closed in CLOSED)
    with the_world_of(pair) as world, listening(world) as cloud:
        pair.host.run("ip", "-n", world, "addr", "replace", f"{service}/32", "dev", "lo")
        pair.knock(service, "secrets")
        pair.knock(OUTSIDE_WORLD, "the world")
        assert pair.hears("answer")
        assert cloud.heard() == [f"{OUTSIDE_HOST} the world"]


def icmp_error(kind: int, code: int, about: bytes, extra: int = 0) -> bytes:
    """An ICMP error about a packet (RFC 792); `extra` is the MTU of "fragmentation needed"."""
    body = struct.pack("!BBHI", kind, code, 0, extra) + about[:28]
    return body[:2] + struct.pack("!H", frames._checksum(body)) + body[4:]


@pytest.mark.fault(7)
def test_a_guests_icmp_errors_touch_its_own_flows_alone(pair: Pair) -> None:
    """Whoever guesses a connection of the host's could otherwise cut it, or have it send in crumbs."""
    lease, two = pair.one.lease, pair.two.lease
    with the_world_of(pair) as world, listening(world):
        with Outside(pair.host.namespace, 4321) as own:
            own.socket.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: the socket is told of errors
            own.send("begin", OUTSIDE_WORLD, 9099)
            assert own.hears() == (OUTSIDE_WORLD, "answer")
            flow = ipv4(OUTSIDE_HOST, OUTSIDE_WORLD, 17, udp(4321, 9099, b"begin"))
            for error in (icmp_error(3, 1, flow), icmp_error(3, 3, flow), icmp_error(3, 4, flow, 600)):
                for target in (OUTSIDE_HOST, GATEWAY):
                    packet = ipv4(lease.address, target, 1, error)
                    pair.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, packet))
            assert pair.reaches_gateway(1)
            own.send("again", OUTSIDE_WORLD, 9099)
            assert own.hears() == (OUTSIDE_WORLD, "answer")
        assert "mtu 600" not in pair.host.run("ip", "route", "get", OUTSIDE_WORLD).stdout
        # A neighbour's flow neither: nothing comes to the world in its name.
        packet = ipv4(two.address, OUTSIDE_WORLD, 17, udp(7, 9099, b"mine"))
        pair.two.send(ethernet(two.mac, GATEWAY_MAC, IPV4, packet))
        assert pair.two.until(lambda frame: frame.rstrip(b"\0").endswith(b"answer")) is not None
        with inside(world), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ear:
            ear.settimeout(0.5)
            answer = ipv4(OUTSIDE_WORLD, two.address, 17, udp(9099, 7, b"answer"))
            packet = ipv4(lease.address, OUTSIDE_WORLD, 1, icmp_error(3, 3, answer))
            pair.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, packet))
            with pytest.raises(TimeoutError):
                ear.recv(2048)
            # Its own reaches those whom it speaks with.
            pair.knock(OUTSIDE_WORLD, "own", from_port=8)
            assert pair.hears("answer")
            answer = ipv4(OUTSIDE_WORLD, lease.address, 17, udp(9099, 8, b"answer"))
            packet = ipv4(lease.address, OUTSIDE_WORLD, 1, icmp_error(3, 3, answer))
            pair.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, packet))
            assert socket.inet_ntoa(ear.recv(2048)[12:16]) == OUTSIDE_HOST


LATE = PortForward(machine="m", protocol=Protocol.UDP, host_port=5353, guest_port=53)


@pytest.mark.fault(29)
def test_a_forward_meets_who_has_been_sending_and_ends_with_its_removal(pair: Pair) -> None:
    """The kernel remembers a flow as it began, as long as its sender does not stop."""
    one, two = pair.one.lease, pair.two.lease
    with the_world_of(pair) as world, Outside(world, 7777) as sender:
        sender.send("early", OUTSIDE_HOST, 5353)
        pair.network.open_forward(one, LATE)
        sender.send("added", OUTSIDE_HOST, 5353)
        assert pair.hears("added")
        pair.network.close_forward(one, LATE)
        sender.send("removed", OUTSIDE_HOST, 5353)
        assert overheard(pair.one, 0.3) == []
        # To another machine.
        pair.network.open_forward(two, LATE)
        sender.send("moved", OUTSIDE_HOST, 5353)
        assert pair.two.until(lambda frame: frame.rstrip(b"\0").endswith(b"moved")) is not None
        assert [frame for frame in overheard(pair.one, 0.2) if frame[12:14] == b"\x08\0"] == []
        pair.network.close_forward(two, LATE)


@pytest.mark.fault(29)
def test_a_reused_address_gets_nothing_of_its_predecessors(host: Host) -> None:
    with the_world(host) as world, Outside(world, 7777) as sender, Outside(world, 8888) as friend:
        with a_pair(host, LATE) as pair:
            sender.send("first", OUTSIDE_HOST, 5353)
            assert pair.hears("first")
            pair.knock(OUTSIDE_WORLD, "question", port=8888, from_port=4444)
            where, _ = friend.socket.recvfrom(2048)[1], None
        with a_pair(host) as pair:
            sender.send("still", OUTSIDE_HOST, 5353)
            friend.socket.sendto(b"answered", where)
            assert [frame for frame in overheard(pair.one, 0.4) if frame[12:14] == b"\x08\0"] == []
            assert pair.reaches_gateway(1)
        # And one that comes with the forward hears the sender who never stopped.
        with a_pair(host, LATE) as pair:
            sender.send("again", OUTSIDE_HOST, 5353)
            assert pair.hears("again")


@pytest.mark.fault(29, 41)
def test_what_came_in_while_walls_were_away_does_not_stay(pair: Pair) -> None:
    """A neighbour's connection to a machine's own address: the rules let none begin, and all go on that have begun."""
    one = pair.one.lease
    held = [(guest.lease, ()) for guest in (pair.one, pair.two)]
    network = replace(pair.network, running=lambda: held)

    def comes(words: str) -> bool:
        return pair.one.until(lambda frame: frame.rstrip(b"\0").endswith(words.encode()), 0.5) is not None

    with the_world_of(pair) as world, Outside(world, 7777) as neighbour, Outside(pair.host.namespace, 7778) as own:
        pair.host.run("ip", "-n", world, "route", "add", "172.16.0.0/16", "via", OUTSIDE_HOST)
        neighbour.send("closed", one.address, 9)
        assert not comes("closed")
        pair.host.run(
            "nft",
            "insert rule ip vmm guard ip daddr 172.16.0.0/16 meta mark set meta mark or 0x10000000 accept;"
            " flush chain ip vmm entering",
        )
        own.send("the host's", one.address, 9)
        assert comes("the host's")
        neighbour.send("open", one.address, 9)
        assert comes("open")
        for peer, port in ((OUTSIDE_WORLD, 7777), (GATEWAY, 7778)):
            answer = ipv4(one.address, peer, 17, udp(9, port, b"answer"))
            pair.one.send(ethernet(one.mac, GATEWAY_MAC, IPV4, answer))
        network.restore()
        assert network.differences(held) == []
        neighbour.send("still", one.address, 9)
        assert not comes("still")
        # The host's own goes on, in both directions.
        assert own.hears()[1] == "answer"
        pair.one.send(ethernet(one.mac, GATEWAY_MAC, IPV4, ipv4(one.address, GATEWAY, 17, udp(9, 7778, b"more"))))
        assert own.hears()[1] == "more"


@pytest.mark.fault(7)
def test_links_forward_for_forwards_as_long_as_there_are_any(pair: Pair) -> None:
    """Without one the host is no router between its other networks, unless someone else made it one."""

    def forwarding(link: str) -> str:
        return pair.host.run("cat", f"/proc/sys/net/ipv4/conf/{link}/forwarding").stdout.strip()

    with the_world_of(pair):
        for number, link in enumerate(("lan0", "lan1")):
            pair.host.run("ip", "link", "add", link, "type", "bridge")
            pair.host.run("ip", "addr", "add", f"198.51.100.{1 + 128 * number}/25", "dev", link)
            pair.host.run("ip", "link", "set", link, "up")
        pair.host.run("sysctl", "-qw", "net.ipv4.conf.lan1.forwarding=1")
        for _ in range(2):
            pair.network.open_forward(pair.one.lease, LATE)
            assert (forwarding("lan0"), forwarding("lan1"), forwarding("up0")) == ("1", "1", "1")
            pair.network.close_forward(pair.one.lease, LATE)
            assert (forwarding("lan0"), forwarding("lan1"), forwarding("up0")) == ("0", "1", "1")


@pytest.mark.fault(41)
def test_localhost_is_routed_from_the_bridge_only_while_forwards_need_it(tiny: Host) -> None:
    def routed() -> str:
        return tiny.run("cat", "/proc/sys/net/ipv4/conf/vmm-br0/route_localnet").stdout.strip()

    for name in ("a", "b"):
        tiny.vmm("create", name, *SMALL)
        tiny.vmm("start", name)
    assert routed() == "0"
    tiny.vmm("port-forward", "add", "a", f"{GATEWAY}:8080:80")
    assert routed() == "0"
    tiny.vmm("port-forward", "add", "a", "127.0.0.1:8081:80")
    tiny.vmm("port-forward", "add", "b", "8082:80")
    assert routed() == "1"
    tiny.vmm("port-forward", "remove", "a", "127.0.0.1:8081:80")
    assert routed() == "1"
    tiny.vmm("stop", "b", "--force")
    assert routed() == "0"
    tiny.vmm("start", "b")
    assert routed() == "1"
    tiny.vmm("delete", "b", "--force")
    assert routed() == "0"


def test_events_of_the_host_are_no_machines(tiny: Host) -> None:
    tiny.vmm("create", "m", *SMALL)
    tiny.vmm("start", "m")
    tiny.run("nft", "delete", "table", "ip", "vmm")
    wait_for(lambda: repaired(tiny) != [], timeout=20, what="the repair")
    (told,) = [event for event in tiny.json("events") if event["kind"] == "repaired"]
    assert told["machine"] == "-"
    assert [event for event in tiny.json("events", "m") if event["kind"] == "repaired"] == []
