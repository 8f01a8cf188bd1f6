"""Which ways lead out of the host for a machine, and which do not: Docker's networks, other uplinks, small MTUs."""

import contextlib
import shlex
import socket
import struct
from collections.abc import Iterator

import frames
import pytest
from frames import IPV4, ethernet, inside, ipv4
from hosts import OUTSIDE_HOST, OUTSIDE_WORLD, Host, sh, the_world
from pairs import GATEWAY, GATEWAY_MAC, Outside, Pair, a_pair, listening, the_world_of

from vmm.model.facts import Standing
from vmm.model.network import PortForward, Protocol, checked_subnet
from vmm.model.value import replace
from vmm.network import facts, uplinks
from vmm.network.advice import fix

pytestmark = pytest.mark.system

CONTAINER = "172.17.0.2"
SUBNET = checked_subnet("172.16.0.0/16", GATEWAY)
# As dockerd 20.10 sets them, with one container that publishes 9099/udp at every address as 8053, and at 127.0.0.1 as 8054.
DOCKERS = f"""
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p udp -m udp --dport 8053 -j DNAT --to-destination {CONTAINER}:9099
-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p udp -m udp --dport 8054 -j DNAT --to-destination {CONTAINER}:9099
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d {CONTAINER}/32 ! -i docker0 -o docker0 -p udp -m udp --dport 9099 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""


@contextlib.contextmanager
def docker(host: Host) -> Iterator[str]:
    """Give the namespace of a container, on a bridge of Docker's."""
    name = f"{host.namespace}-c"
    sh("ip", "netns", "add", name)
    try:
        host.run("ip", "link", "add", "docker0", "type", "bridge")
        host.run("ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
        host.run("ip", "link", "set", "docker0", "up")
        sh("ip", "link", "add", "veth0", "netns", host.namespace, "type", "veth", "peer", "name", "eth0", "netns", name)
        host.run("ip", "link", "set", "veth0", "master", "docker0", "up")
        sh("ip", "-n", name, "addr", "add", f"{CONTAINER}/16", "dev", "eth0")
        sh("ip", "-n", name, "link", "set", "eth0", "up")
        sh("ip", "-n", name, "route", "add", "default", "via", "172.17.0.1")
        # As dockerd does where it is off.
        host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        host.run("iptables-restore", input=DOCKERS)
        yield name
    finally:
        sh("ip", "netns", "del", name)


def knock_at_all(pair: Pair) -> None:
    """Have the guest try every way to the container."""
    for target, port in ((CONTAINER, 9099), (GATEWAY, 8053), (OUTSIDE_HOST, 8053), ("172.17.0.1", 8053)):
        pair.knock(target, f"{target}:{port}", port=port)
    for port in (8053, 8054):
        pair.knock("127.0.0.1", f"127.0.0.1:{port}", port=port)
        pair.knock(GATEWAY, f"{GATEWAY}:{port}", port=port)


@pytest.mark.fault(50)
@pytest.mark.parametrize("first", ["Docker", "vmm"])
def test_dockers_containers_are_none_of_the_machines(host: Host, first: str) -> None:
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(the_world(host))
        container = stack.enter_context(docker(host)) if first == "Docker" else ""
        pair = stack.enter_context(a_pair(host))
        if first == "vmm":
            container = stack.enter_context(docker(host))
            pair.network.others.accept()
        # What an older release let pass is taken back.
        host.run("iptables", "-I", "DOCKER-USER", "-i", "vmm-br0", "-m", "comment", "--comment", "vmm", "-j", "ACCEPT")
        pair.network.others.accept()
        inner = stack.enter_context(listening(container))
        stack.enter_context(listening(world))
        knock_at_all(pair)
        pair.knock(OUTSIDE_WORLD, "the world")
        assert pair.hears("answer")
        # Docker's own goes on: from outside its published port is reached.
        with Outside(world) as outside:
            outside.send("published", OUTSIDE_HOST, 8053)
            assert outside.hears() == (OUTSIDE_HOST, "answer")
        assert inner.heard() == [f"{OUTSIDE_WORLD} published"]
        ours = [line for line in host.run("iptables", "-S").stdout.splitlines() if "--comment vmm" in line]
        assert len(ours) == 1
        assert "--mark 0x20000000/0x20000000" in ours[0]


@pytest.mark.fault(50)
def test_a_network_that_is_allowed_is_reached(host: Host) -> None:
    host.vmm("config", "set", "allowed_networks", "172.17.0.2/32")
    with the_world(host), docker(host) as container, a_pair(host) as pair, listening(container) as inner:
        pair.knock(CONTAINER, "allowed")
        assert pair.hears("answer")
        # What is published is still not for machines: only the network itself was allowed.
        pair.knock(OUTSIDE_HOST, "published", port=8053)
        pair.knock("172.17.0.1", "the host", port=9099)
        assert pair.reaches_gateway(1)
        assert [line.split(" ", 1)[1] for line in inner.heard()] == ["allowed"]


def test_another_network_of_the_hosts_says_no_and_an_answer_over_it_goes(host: Host) -> None:
    """A program behind another link may use a forward; a machine may not begin anything there."""
    forward = PortForward(machine="m", protocol=Protocol.UDP, host_port=5353, guest_port=53)
    other = f"{host.namespace}-lan"
    with the_world(host), a_pair(host, forward) as pair:
        sh("ip", "netns", "add", other)
        try:
            sh(
                "ip",
                "link",
                "add",
                "lan0",
                "netns",
                host.namespace,
                "type",
                "veth",
                "peer",
                "name",
                "lan1",
                "netns",
                other,
            )
            for namespace, link, address in ((host.namespace, "lan0", "10.9.0.1/24"), (other, "lan1", "10.9.0.2/24")):
                sh("ip", "-n", namespace, "addr", "add", address, "dev", link)
                sh("ip", "-n", namespace, "link", "set", link, "up")
            # What the supervisor does of a cable that is plugged in.
            pair.network.forwarding.turn_on(published=True)
            with listening(other) as ear:
                pair.knock("10.9.0.2", "begun")
                assert pair.one.until(lambda frame: frame[23] == 1 and frame[34:36] == b"\x03\x0d") is not None
                with Outside(other) as neighbour:
                    neighbour.send("asked", "10.9.0.1", 5353)
                    asked = pair.hears("asked")
                    assert asked is not None
                    port = int.from_bytes(asked[34:36], "big")
                    pair.knock("10.9.0.2", "answered", port=port, from_port=53)
                    assert neighbour.hears() == ("10.9.0.1", "answered")
                assert ear.heard() == []
        finally:
            sh("ip", "netns", "del", other)


def test_by_the_other_uplink_nothing_leaves(host: Host) -> None:
    host.vmm("config", "set", "host_interface", "up7")
    with the_world(host) as world, a_pair(host) as pair, listening(world) as beyond:
        pair.knock(OUTSIDE_WORLD, "by the other uplink")
        assert pair.one.until(lambda frame: frame[23] == 1 and frame[34:36] == b"\x03\x0d") is not None
        assert beyond.heard() == []


def test_what_is_not_masqueraded_does_not_leave(host: Host) -> None:
    """Where someone turned off the tracking of connections, say for speed."""
    with the_world(host) as world, a_pair(host) as pair, listening(world) as beyond:
        host.run("nft", "add table ip theirs; add chain ip theirs c { type filter hook prerouting priority -300; }")
        host.run("nft", "add rule ip theirs c ip saddr 172.16.0.0/16 notrack")
        pair.knock(OUTSIDE_WORLD, "bare")
        assert pair.reaches_gateway(1)
        assert beyond.heard() == []


def syn(source: str, target: str, port: int, mss: int) -> bytes:
    head = struct.pack("!HHIIBBHHHBBH", 4321, port, 1, 0, 6 << 4, 2, 65535, 0, 0, 2, 4, mss)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!HH", 6, len(head))
    return head[:16] + struct.pack("!H", frames._checksum(pseudo + head)) + head[18:]


@pytest.mark.fault(50)
def test_segments_fit_the_smallest_link_of_the_way(host: Host) -> None:
    """Where ICMP is filtered nobody would be told that packets are too large: a download would stall."""
    with the_world(host) as world, a_pair(host) as pair:
        host.run("ip", "link", "set", "up0", "mtu", "1400")
        with inside(world), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as ear:
            ear.settimeout(3)
            lease = pair.one.lease
            for wished, fits in ((1460, 1360), (1200, 1200)):
                packet = ipv4(lease.address, OUTSIDE_WORLD, 6, syn(lease.address, OUTSIDE_WORLD, 80, wished))
                pair.one.send(ethernet(lease.mac, GATEWAY_MAC, IPV4, packet))
                seen = ear.recv(2048)
                assert struct.unpack("!H", seen[20 + 22 : 20 + 24])[0] == fits


def test_a_cable_that_is_plugged_in_later_is_a_way_out(host: Host) -> None:
    with a_pair(host) as pair, the_world_of(pair) as world, listening(world) as beyond:
        pair.knock(OUTSIDE_WORLD, "late")
        assert pair.hears("answer")
        assert beyond.heard() == [f"{OUTSIDE_HOST} late"]


def test_routes_that_begin_where_the_default_route_does_do_not_hide_it(host: Host) -> None:
    with the_world(host):
        host.run("ip", "link", "add", "wg0", "type", "bridge")
        host.run("ip", "link", "set", "wg0", "up")
        host.run("ip", "route", "add", "0.0.0.0/5", "dev", "wg0")
        host.run("ip", "route", "add", "blackhole", "0.0.0.0/8")
        with inside(host.namespace):
            assert uplinks.uplinks("vmm-br0", SUBNET) == ("up0",)
        host.run("ip", "route", "add", "0.0.0.0/1", "dev", "wg0")
        with inside(host.namespace):
            assert uplinks.uplinks("vmm-br0", SUBNET) == ("up0", "wg0")


@pytest.mark.parametrize(
    ("rule", "leads_out"),
    [
        # Of a cloud's server with a second card: for the host's own answers from that card's address.
        (("from", "10.8.0.5"), False),
        (("from", "10.8.0.0/24"), False),
        (("iif", "lo"), False),
        (("oif", "wan1"), False),
        (("uidrange", "0-100"), False),
        (("from", "172.16.0.0/24"), True),
        (("from", "172.0.0.0/8"), True),
        (("not", "from", "10.8.0.5"), True),
        (("not", "iif", "up0"), True),
        (("iif", "vmm-br0"), True),
        # Anyone may mark what comes from machines.
        (("fwmark", "0x64"), True),
        ((), True),
    ],
)
def test_a_table_that_is_for_the_hosts_own_leads_no_machine_out(
    host: Host, rule: tuple[str, ...], leads_out: bool
) -> None:
    with the_world(host):
        host.run("ip", "link", "add", "wan1", "type", "bridge")
        host.run("ip", "link", "set", "wan1", "up")
        host.run("ip", "route", "add", "default", "dev", "wan1", "table", "100")
        host.run("ip", "rule", "add", *rule, "lookup", "100")
        with inside(host.namespace):
            assert uplinks.uplinks("vmm-br0", SUBNET) == (("up0", "wan1") if leads_out else ("up0",))


def test_next_hops_that_are_objects_of_their_own_lead_out(host: Host) -> None:
    with the_world(host):
        host.run("sysctl", "-qw", "net.ipv4.nexthop_compat_mode=0")
        host.run("ip", "link", "add", "wan1", "type", "bridge")
        host.run("ip", "link", "set", "wan1", "up")
        host.run("ip", "nexthop", "add", "id", "7", "via", OUTSIDE_WORLD, "dev", "up0")
        host.run("ip", "nexthop", "add", "id", "8", "dev", "wan1")
        host.run("ip", "nexthop", "add", "id", "9", "group", "7/8")
        for number, names in (("7", ("up0",)), ("9", ("up0", "wan1"))):
            host.run("ip", "route", "replace", "default", "nhid", number)
            with inside(host.namespace):
                assert uplinks.uplinks("vmm-br0", SUBNET) == names


def test_a_way_out_that_is_not_there_is_not_called_one(host: Host) -> None:
    with a_pair(host) as pair:
        with inside(host.namespace):
            alone = facts.forwarding(pair.network)
        assert alone.proof == "on for vmm-br0; no default route: machines reach nothing beyond this host"
        with the_world_of(pair), inside(host.namespace):
            assert facts.forwarding(pair.network).proof == "on for vmm-br0 and the links to the world (up0)"
            named = replace(pair.network, host_interface="eth9")
            gone = facts.forwarding(named)
            assert (gone.standing, gone.proof) == (
                Standing.NOT_OK,
                "there is no link eth9, the only way out by host_interface",
            )
            host.run("ip", "link", "add", "eth9", "type", "bridge")
            host.run("sysctl", "-qw", "net.ipv4.conf.eth9.forwarding=1")
            down = facts.forwarding(named)
            assert (down.standing, down.fix) == (Standing.NOT_OK, "sudo ip link set eth9 up")
            host.run("ip", "link", "set", "eth9", "up")
            assert facts.forwarding(named).standing is Standing.OK


@pytest.mark.parametrize("tool", ["nft", "iptables"])
def test_a_resolver_of_the_hosts_own_behind_a_closed_input_is_seen(host: Host, tool: str) -> None:
    with a_pair(host) as pair, the_world_of(pair), inside(host.namespace):
        others = replace(pair.network, resolvers=lambda: (OUTSIDE_HOST, "9.9.9.9", "2001:db8::53")).others
        assert others.troubles() == []
        if tool == "nft":
            closed = "table inet i { chain in { type filter hook input priority 0; policy drop; ct state established accept; }; }"
            host.run("nft", closed)
        else:
            host.run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
            host.run("iptables", "-P", "INPUT", "DROP")
        found = others.troubles()
        assert [(trouble.way.what, trouble.certain) for trouble in found] == [
            (f"what machines ask the resolver {OUTSIDE_HOST}", True)
        ]
        if tool == "nft":
            host.run(*shlex.split(fix(found[0], "vmm-br0").removeprefix("sudo ")))
        else:
            others.accept()
        assert others.troubles() == []
        if tool == "nft":
            host.run("nft", "delete", "table", "inet", "i")


# What guides to a router of one's own have: out, and back; nothing begins from outside.
ROUTER = {
    "nft": "table inet router { chain passing { type filter hook forward priority 0; policy drop;"
    ' iifname "vmm-br0" accept; ct state established,related accept; }; }',
    "nft, before vmm's": "table inet router { chain passing { type filter hook forward priority -200; policy drop;"
    ' iifname "vmm-br0" accept; ct state established,related accept; }; }',
    "iptables": "iptables -P FORWARD DROP; iptables -A FORWARD -i vmm-br0 -j ACCEPT;"
    " iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
}


@pytest.mark.fault(50)
@pytest.mark.parametrize("tool", ROUTER)
def test_forwards_behind_a_firewall_that_lets_machines_out_alone_are_seen(host: Host, tool: str) -> None:
    forward = PortForward(machine="m", protocol=Protocol.UDP, host_port=5353, guest_port=53)
    with a_pair(host, forward) as pair, the_world_of(pair) as world, inside(host.namespace):
        network = replace(pair.network, running=lambda: [(pair.one.lease, (forward,))])
        host.run(*(("sh", "-ec", ROUTER[tool]) if tool == "iptables" else ("nft", ROUTER[tool])))
        with Outside(world) as neighbour:
            neighbour.send("shut out", OUTSIDE_HOST, 5353)
            assert pair.hears("shut out", 0.5) is None
            found = network.others.troubles()
            assert {(each.way.what, each.certain) for each in found} == {("what is led to machines, port 53/udp", True)}
            # Without a forward from outside, nothing is missed.
            assert replace(network, running=lambda: [(pair.one.lease, ())]).others.troubles() == []
            if tool == "iptables":
                network.others.accept()
            else:
                host.run(*shlex.split(fix(found[0], "vmm-br0").removeprefix("sudo ")))
            assert network.others.troubles() == []
            neighbour.send("let in", OUTSIDE_HOST, 5353)
            assert pair.hears("let in") is not None
        undone = "iptables -F; iptables -P FORWARD ACCEPT" if tool == "iptables" else "nft delete table inet router"
        host.run("sh", "-ec", undone)


OURS = "-m mark --mark 0x20000000/0x20000000 -m comment --comment vmm -j ACCEPT"
BAN = "-p udp -m udp --dport 9098 -j DROP"
BANNED = {
    # what stands there, what of FORWARD and its chain is left of it
    "before a policy": (["-P FORWARD DROP", f"-A FORWARD {BAN}"], [f"-A FORWARD {BAN}", f"-A FORWARD {OURS}"]),
    "before a final drop": (
        [f"-A FORWARD {BAN}", "-A FORWARD -i lo -j ACCEPT", "-A FORWARD -j DROP"],
        [f"-A FORWARD {BAN}", f"-A FORWARD {OURS}", "-A FORWARD -i lo -j ACCEPT", "-A FORWARD -j DROP"],
    ),
    "in a chain of its own": (
        ["-N MINE", "-A FORWARD -j MINE", f"-A MINE {BAN}", "-A MINE -j DROP"],
        ["-A FORWARD -j MINE", f"-A MINE {BAN}", f"-A MINE {OURS}", "-A MINE -j DROP"],
    ),
    "in a chain that all drops share": (
        ["-N BAD", "-A BAD -j DROP", f"-A FORWARD {BAN.replace('DROP', 'BAD')}", "-A FORWARD -j BAD"],
        [
            f"-A FORWARD {BAN.replace('DROP', 'BAD')}",
            f"-A FORWARD {OURS}",
            "-A FORWARD -j BAD",
            "-A BAD -j DROP",
        ],
    ),
    "behind an accept of before": (
        ["-P FORWARD DROP", f"-A FORWARD {OURS}", f"-A FORWARD {BAN}"],
        [f"-A FORWARD {BAN}", f"-A FORWARD {OURS}"],
    ),
    "with an accept behind it all": (
        [f"-A FORWARD {BAN}", "-A FORWARD -j DROP", f"-A FORWARD {OURS}"],
        [f"-A FORWARD {BAN}", f"-A FORWARD {OURS}", "-A FORWARD -j DROP"],
    ),
}


def rules_of_iptables(host: Host) -> list[str]:
    return [line for line in host.run("iptables", "-S").stdout.splitlines() if line.startswith("-A ")]


@pytest.mark.fault(50)
@pytest.mark.parametrize("ban", BANNED)
def test_an_accept_of_ours_overrules_nobody_who_drops_on_purpose(host: Host, ban: str) -> None:
    there, expected = BANNED[ban]
    with the_world(host) as world, a_pair(host) as pair, listening(world) as beyond:
        for rule in there:
            host.run("iptables", *rule.split())
        pair.network.others.accept()
        assert rules_of_iptables(host) == expected
        assert pair.network.others.troubles() == []
        # Once more: it stays where it is.
        pair.network.others.accept()
        assert rules_of_iptables(host) == expected
        pair.network.renew_ways()
        pair.knock(OUTSIDE_WORLD, "the world")
        assert pair.hears("answer")
        dropped = sum(
            int(line.split()[0]) for line in host.run("iptables", "-nvxL").stdout.splitlines() if "9098" in line
        )
        pair.knock(OUTSIDE_WORLD, "banned", port=9098)
        assert pair.reaches_gateway(1)
        now = sum(int(line.split()[0]) for line in host.run("iptables", "-nvxL").stdout.splitlines() if "9098" in line)
        assert (dropped, now) == (0, 1)
        assert beyond.heard() == [f"{OUTSIDE_HOST} the world"]


@pytest.mark.fault(50)
def test_a_ban_that_comes_behind_our_accept_is_told_and_obeyed(host: Host) -> None:
    host.run("iptables", "-P", "FORWARD", "DROP")
    with the_world(host), a_pair(host) as pair:
        assert rules_of_iptables(host) == [f"-A FORWARD {OURS}"]
        host.run("iptables", "-A", "FORWARD", *BAN.split())
        answer = facts.other_firewalls(pair.network)
        assert answer.standing is not Standing.OK
        assert f"-A FORWARD {BAN}" in answer.proof
        assert answer.fix == "sudo vmm reconcile"
        pair.network.others.accept()
        assert rules_of_iptables(host) == [f"-A FORWARD {BAN}", f"-A FORWARD {OURS}"]
        assert facts.other_firewalls(pair.network).standing is Standing.OK
        # What nobody needs any more goes.
        host.run("iptables", "-P", "FORWARD", "ACCEPT")
        pair.network.others.accept()
        assert rules_of_iptables(host) == [f"-A FORWARD {BAN}"]


@pytest.mark.fault(50)
@pytest.mark.parametrize("by", ["-s 172.16.0.0/16", "-i vmm-br0"])
def test_whoever_cuts_the_machines_off_is_told_and_not_overruled(host: Host, by: str) -> None:
    with the_world(host), a_pair(host) as pair:
        host.run("iptables", "-A", "FORWARD", *by.split(), "-j", "DROP")
        pair.network.others.accept()
        assert rules_of_iptables(host) == [f"-A FORWARD {by} -j DROP"]
        answer = facts.other_firewalls(pair.network)
        assert answer.fix == f"sudo iptables-nft -t filter -D FORWARD {by} -j DROP"
        # All but these is another matter.
        host.run("iptables", "-F", "FORWARD")
        host.run("iptables", "-A", "FORWARD", "!", "-s", "10.0.0.0/8", "-j", "DROP")
        pair.network.others.accept()
        assert pair.network.others.troubles() == []


@pytest.mark.fault(50)
def test_a_table_of_our_name_in_another_family_is_someone_elses(host: Host) -> None:
    with the_world(host), a_pair(host) as pair:
        host.run("nft", "table inet vmm { chain f { type filter hook forward priority 0; policy drop; }; }")
        assert {trouble.chain.family for trouble in pair.network.others.troubles()} == {"inet"}
        host.run("nft", "delete", "table", "inet", "vmm")


# As servers under load have it, to spare the table of connections.
UNTRACKED = {
    "nft": 'table inet fast { chain first { type filter hook prerouting priority raw; iifname "vmm-*" notrack; }; }',
    "nft, and what follows it": "table inet fast { chain first { type filter hook prerouting priority raw;"
    " jump spare; }; chain spare { ip saddr 172.16.0.0/16 notrack accept; }; }",
    "iptables": "iptables -t raw -A PREROUTING -s 172.16.0.0/16 -j CT --notrack",
}


@pytest.mark.fault(50)
@pytest.mark.parametrize("tool", UNTRACKED)
def test_what_another_firewall_keeps_from_tracking_is_not_called_ok(host: Host, tool: str) -> None:
    with a_pair(host) as pair, the_world_of(pair) as world, inside(host.namespace), Outside(world, 9099) as neighbour:
        network = pair.network
        assert network.others.troubles() == []
        pair.knock(OUTSIDE_WORLD, "tracked")
        assert neighbour.hears() == (OUTSIDE_HOST, "tracked")
        host.run(*(("sh", "-ec", UNTRACKED[tool]) if tool == "iptables" else ("nft", UNTRACKED[tool])))
        pair.knock(OUTSIDE_WORLD, "untracked")
        with pytest.raises(TimeoutError):
            neighbour.hears()
        (found,) = network.others.troubles()
        assert (found.way.what, found.untracked, found.certain) == ("what machines send to the world", True, True)
        answer = facts.other_firewalls(network)
        assert answer.standing is Standing.NOT_OK
        assert "from connection tracking" in answer.proof
        host.run(*shlex.split(fix(found, "vmm-br0").removeprefix("sudo ")))
        assert network.others.troubles() == []
        pair.knock(OUTSIDE_WORLD, "tracked again")
        assert neighbour.hears() == (OUTSIDE_HOST, "tracked again")
        host.run("sh", "-ec", "iptables -t raw -F" if tool == "iptables" else "nft delete table inet fast")


def test_answers_that_are_kept_from_tracking_are_told_and_a_servers_own_port_is_not(host: Host) -> None:
    with a_pair(host) as pair, the_world_of(pair), inside(host.namespace):
        others = replace(pair.network.others, way_out="up0")
        host.run(
            "iptables",
            "-t",
            "raw",
            "-A",
            "PREROUTING",
            "-p",
            "tcp",
            "--dport",
            "443",
            "-i",
            "up0",
            "-j",
            "CT",
            "--notrack",
        )
        assert others.troubles() == []
        host.run("iptables", "-t", "raw", "-A", "PREROUTING", "-i", "up0", "-j", "CT", "--notrack")
        (found,) = others.troubles()
        assert (found.way.what, found.untracked) == ("the answers to machines", True)
        assert fix(found, "vmm-br0").startswith("sudo iptables-nft -t raw -S PREROUTING  # ")
        host.run("iptables", "-t", "raw", "-F")
