"""What is made of nft's own account of the tables; the account was recorded from nft 1.0.6, its rules' bodies left out."""

import json
from ipaddress import IPv4Address

import pytest

from vmm.host import process
from vmm.model.network import PortForward, Protocol, checked_subnet, lease_for
from vmm.network import inspection, tables
from vmm.network.firewall import Firewall

SUBNET = checked_subnet("172.16.0.0/16", "172.16.0.1")
WALL = Firewall(bridge="vmm-br0", subnet=SUBNET, owner="of_0123456789abcdef")
A, B = lease_for(IPv4Address("172.16.0.2")), lease_for(IPv4Address("172.16.0.3"))
WEB = PortForward(machine="a", protocol=Protocol.TCP, host_port=8080, guest_port=80)
DNS = PortForward(machine="a", protocol=Protocol.UDP, host_address="127.0.0.1", host_port=53, guest_port=5353)
ATTACHED = [(A, (WEB, DNS)), (B, ())]

META = '{"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}}'
# `nft -j list table ip vmm` and `bridge vmm` with ATTACHED.
IP = """
{"table": {"family": "ip", "name": "vmm", "handle": 3}}
{"set": {"family": "ip", "name": "machines", "table": "vmm", "type": "ipv4_addr", "handle": 15, "elem": ["172.16.0.2", "172.16.0.3"]}}
{"set": {"family": "ip", "name": "own", "table": "vmm", "type": ["ipv4_addr", "ipv4_addr"], "handle": 16, "elem": [{"concat": ["172.16.0.2", "172.16.0.2"]}, {"concat": ["172.16.0.3", "172.16.0.3"]}]}}
{"set": {"family": "ip", "name": "uplinks", "table": "vmm", "type": "ifname", "handle": 17}}
{"set": {"family": "ip", "name": "resolvers", "table": "vmm", "type": "ipv4_addr", "handle": 18}}
{"set": {"family": "ip", "name": "flows", "table": "vmm", "type": "ipv4_addr", "handle": 19, "size": 65535}}
{"map": {"family": "ip", "name": "ports", "table": "vmm", "type": ["inet_proto", "inet_service"], "handle": 20, "map": "ipv4_addr . inet_service", "elem": [[{"concat": ["tcp", 8080]}, {"concat": ["172.16.0.2", 80]}]]}}
{"map": {"family": "ip", "name": "ports_at", "table": "vmm", "type": ["inet_proto", "ipv4_addr", "inet_service"], "handle": 21, "map": "ipv4_addr . inet_service", "elem": [[{"concat": ["udp", "127.0.0.1", 53]}, {"concat": ["172.16.0.2", 5353]}]]}}
{"chain": {"family": "ip", "table": "vmm", "name": "forwards", "handle": 1}}
{"chain": {"family": "ip", "table": "vmm", "name": "prerouting", "handle": 2, "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}}
{"chain": {"family": "ip", "table": "vmm", "name": "output", "handle": 3, "type": "nat", "hook": "output", "prio": -100, "policy": "accept"}}
{"chain": {"family": "ip", "table": "vmm", "name": "postrouting", "handle": 4, "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}}
{"chain": {"family": "ip", "table": "vmm", "name": "outside", "handle": 5, "type": "filter", "hook": "postrouting", "prio": 150, "policy": "accept"}}
{"chain": {"family": "ip", "table": "vmm", "name": "guard", "handle": 6, "type": "filter", "hook": "prerouting", "prio": -50, "policy": "accept"}}
{"chain": {"family": "ip", "table": "vmm", "name": "from_machines", "handle": 7}}
{"chain": {"family": "ip", "table": "vmm", "name": "to_host", "handle": 8}}
{"chain": {"family": "ip", "table": "vmm", "name": "vetted", "handle": 9}}
{"chain": {"family": "ip", "table": "vmm", "name": "forward", "handle": 10, "type": "filter", "hook": "forward", "prio": -5, "policy": "accept"}}
{"chain": {"family": "ip", "table": "vmm", "name": "leaving", "handle": 11}}
{"chain": {"family": "ip", "table": "vmm", "name": "entering", "handle": 12}}
{"chain": {"family": "ip", "table": "vmm", "name": "passed", "handle": 13}}
{"chain": {"family": "ip", "table": "vmm", "name": "input", "handle": 14, "type": "filter", "hook": "input", "prio": 0, "policy": "accept"}}
{"rule": {"family": "ip", "table": "vmm", "chain": "forwards", "handle": 23}}
{"rule": {"family": "ip", "table": "vmm", "chain": "forwards", "handle": 25}}
{"rule": {"family": "ip", "table": "vmm", "chain": "prerouting", "handle": 26}}
{"rule": {"family": "ip", "table": "vmm", "chain": "output", "handle": 27}}
{"rule": {"family": "ip", "table": "vmm", "chain": "postrouting", "handle": 29}}
{"rule": {"family": "ip", "table": "vmm", "chain": "postrouting", "handle": 30}}
{"rule": {"family": "ip", "table": "vmm", "chain": "outside", "handle": 32}}
{"rule": {"family": "ip", "table": "vmm", "chain": "guard", "handle": 33}}
{"rule": {"family": "ip", "table": "vmm", "chain": "guard", "handle": 34}}
{"rule": {"family": "ip", "table": "vmm", "chain": "guard", "handle": 35}}
{"rule": {"family": "ip", "table": "vmm", "chain": "guard", "handle": 36}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 37}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 38}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 39}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 40}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 41}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 42}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 43}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 44}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 46}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 48}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 49}}
{"rule": {"family": "ip", "table": "vmm", "chain": "from_machines", "handle": 50}}
{"rule": {"family": "ip", "table": "vmm", "chain": "to_host", "handle": 51}}
{"rule": {"family": "ip", "table": "vmm", "chain": "to_host", "handle": 52}}
{"rule": {"family": "ip", "table": "vmm", "chain": "to_host", "handle": 54}}
{"rule": {"family": "ip", "table": "vmm", "chain": "to_host", "handle": 55}}
{"rule": {"family": "ip", "table": "vmm", "chain": "vetted", "handle": 56}}
{"rule": {"family": "ip", "table": "vmm", "chain": "forward", "handle": 57}}
{"rule": {"family": "ip", "table": "vmm", "chain": "forward", "handle": 58}}
{"rule": {"family": "ip", "table": "vmm", "chain": "forward", "handle": 59}}
{"rule": {"family": "ip", "table": "vmm", "chain": "forward", "handle": 60}}
{"rule": {"family": "ip", "table": "vmm", "chain": "forward", "handle": 61}}
{"rule": {"family": "ip", "table": "vmm", "chain": "forward", "handle": 62}}
{"rule": {"family": "ip", "table": "vmm", "chain": "leaving", "handle": 63}}
{"rule": {"family": "ip", "table": "vmm", "chain": "leaving", "handle": 64}}
{"rule": {"family": "ip", "table": "vmm", "chain": "leaving", "handle": 65}}
{"rule": {"family": "ip", "table": "vmm", "chain": "leaving", "handle": 67}}
{"rule": {"family": "ip", "table": "vmm", "chain": "leaving", "handle": 69}}
{"rule": {"family": "ip", "table": "vmm", "chain": "leaving", "handle": 70}}
{"rule": {"family": "ip", "table": "vmm", "chain": "leaving", "handle": 71}}
{"rule": {"family": "ip", "table": "vmm", "chain": "leaving", "handle": 72}}
{"rule": {"family": "ip", "table": "vmm", "chain": "entering", "handle": 73}}
{"rule": {"family": "ip", "table": "vmm", "chain": "entering", "handle": 74}}
{"rule": {"family": "ip", "table": "vmm", "chain": "entering", "handle": 75}}
{"rule": {"family": "ip", "table": "vmm", "chain": "entering", "handle": 76}}
{"rule": {"family": "ip", "table": "vmm", "chain": "passed", "handle": 77}}
{"rule": {"family": "ip", "table": "vmm", "chain": "input", "handle": 78}}
{"rule": {"family": "ip", "table": "vmm", "chain": "input", "handle": 79}}
{"rule": {"family": "ip", "table": "vmm", "chain": "input", "handle": 80}}
{"rule": {"family": "ip", "table": "vmm", "chain": "input", "handle": 81}}
{"rule": {"family": "ip", "table": "vmm", "chain": "input", "handle": 83}}
{"rule": {"family": "ip", "table": "vmm", "chain": "input", "handle": 84}}
{"rule": {"family": "ip", "table": "vmm", "chain": "input", "handle": 85}}
"""
BRIDGE = """
{"table": {"family": "bridge", "name": "vmm", "handle": 4}}
{"set": {"family": "bridge", "name": "senders", "table": "vmm", "type": ["ifname", "ether_addr", "ipv4_addr"], "handle": 4, "elem": [{"concat": ["vmm-ac100002", "06:00:ac:10:00:02", "172.16.0.2"]}, {"concat": ["vmm-ac100003", "06:00:ac:10:00:03", "172.16.0.3"]}]}}
{"chain": {"family": "bridge", "table": "vmm", "name": "prerouting", "handle": 1, "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}}
{"chain": {"family": "bridge", "table": "vmm", "name": "asking", "handle": 2}}
{"chain": {"family": "bridge", "table": "vmm", "name": "input", "handle": 3, "type": "filter", "hook": "input", "prio": -300, "policy": "accept"}}
{"rule": {"family": "bridge", "table": "vmm", "chain": "prerouting", "handle": 5}}
{"rule": {"family": "bridge", "table": "vmm", "chain": "prerouting", "handle": 6}}
{"rule": {"family": "bridge", "table": "vmm", "chain": "prerouting", "handle": 7}}
{"rule": {"family": "bridge", "table": "vmm", "chain": "prerouting", "handle": 8}}
{"rule": {"family": "bridge", "table": "vmm", "chain": "asking", "handle": 9}}
{"rule": {"family": "bridge", "table": "vmm", "chain": "input", "handle": 10}}
"""
IP6 = """
{"table": {"family": "ip6", "name": "vmm", "handle": 6}}
{"chain": {"family": "ip6", "table": "vmm", "name": "prerouting", "handle": 1, "type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}}
{"rule": {"family": "ip6", "table": "vmm", "chain": "prerouting", "handle": 2}}
{"rule": {"family": "ip6", "table": "vmm", "chain": "prerouting", "handle": 3}}
"""


def account(lines: str, without: str | None = None) -> str:
    """Return the recorded account, or one without the lines that hold a text."""
    kept = [line for line in lines.strip().splitlines() if without is None or without not in line]
    return f'{{"nftables": [{", ".join([META, *kept])}]}}'


def has_no_elements(lines: str) -> str:
    """Return the account of tables that hold nobody: nft leaves `elem` out then."""
    entries = [json.loads(line) for line in lines.strip().splitlines()]
    for entry in entries:
        for kind in ("set", "map"):
            entry.get(kind, {}).pop("elem", None)
    return json.dumps({"nftables": [json.loads(META), *entries]})


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What nft would say of each family's table; one that is not in it is not there."""
    tables = {"ip": account(IP), "bridge": account(BRIDGE), "ip6": account(IP6)}

    def run(argv, **how):
        if argv[0] == "unshare":
            # As in a container that may make no namespace: then the rules are counted, and not compared.
            return process.Completed(argv=tuple(argv), code=1, stdout="", stderr="not permitted")
        assert argv[:4] == ["nft", "-j", "list", "table"]
        said = tables.get(argv[4])
        missing = "Error: No such file or directory"
        return process.Completed(
            argv=tuple(argv), code=1 if said is None else 0, stdout=said or "", stderr="" if said else missing
        )

    monkeypatch.setattr(inspection.process, "run", run)
    return tables


def test_tables_as_they_should_be_differ_in_nothing(kernel: dict[str, str]) -> None:
    assert WALL.differences(ATTACHED) == []


def test_empty_tables_are_right_for_nobody(kernel: dict[str, str]) -> None:
    kernel.update(ip=has_no_elements(IP), bridge=has_no_elements(BRIDGE))
    assert WALL.differences([]) == []
    assert WALL.differences([(A, ())]) == [
        "172.16.0.2 was not in machines",
        "172.16.0.2 . 172.16.0.2 was not in own",
        "vmm-ac100002 . 06:00:ac:10:00:02 . 172.16.0.2 was not in senders",
    ]


@pytest.mark.fault(29)
@pytest.mark.parametrize("families", [("ip",), ("bridge",), ("ip6",), ("ip", "bridge")])
def test_a_table_that_is_gone(kernel: dict[str, str], families: tuple[str, ...]) -> None:
    for family in families:
        del kernel[family]
    assert WALL.differences(ATTACHED) == [f"the firewall's table {family} vmm was gone" for family in families]


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("family", "lines", "handle", "told"),
    [
        ("ip", IP, 60, "the chain forward of ip vmm had 5 rules of 6"),
        ("ip", IP, 26, "the chain prerouting of ip vmm had 0 rules of 1"),
        ("ip", IP, 33, "the chain guard of ip vmm had 3 rules of 4"),
        ("ip", IP, 84, "the chain input of ip vmm had 6 rules of 7"),
        ("bridge", BRIDGE, 7, "the chain prerouting of bridge vmm had 3 rules of 4"),
        ("bridge", BRIDGE, 10, "the chain input of bridge vmm had 0 rules of 1"),
        ("ip6", IP6, 2, "the chain prerouting of ip6 vmm had 1 rules of 2"),
    ],
)
def test_a_rule_that_is_gone(kernel: dict[str, str], family: str, lines: str, handle: int, told: str) -> None:
    """Of the same name in another family it is another chain: bridge has an input and a prerouting too."""
    rule = f'"handle": {handle}}}}}'
    kept = [line for line in lines.strip().splitlines() if not ('"rule"' in line and rule in line)]
    assert len(kept) == len(lines.strip().splitlines()) - 1
    kernel[family] = account("\n".join(kept))
    assert WALL.differences(ATTACHED) == [told]


@pytest.mark.fault(29)
def test_a_rule_that_someone_added(kernel: dict[str, str]) -> None:
    kernel["ip"] = account(IP + '{"rule": {"family": "ip", "table": "vmm", "chain": "forward", "handle": 30}}')
    assert WALL.differences(ATTACHED) == ["the chain forward of ip vmm had 7 rules of 6"]


@pytest.mark.fault(29)
@pytest.mark.fault(29)
def test_a_rule_that_someone_replaced(kernel: dict[str, str]) -> None:
    """As many as there should be, and one of them lets pass what the other dropped."""
    standing = inspection._rules(entry for said in kernel.values() for entry in json.loads(said)["nftables"])
    counts = tables.rule_counts(WALL._tables())
    hooks = tables.hooks(WALL._tables())
    assert inspection.differences({}, counts, hooks, standing) == []
    kernel["ip"] = kernel["ip"].replace('"handle": 60}', '"handle": 60, "expr": [{"accept": null}]}')
    assert inspection.differences({}, counts, hooks, standing) == ["the chain forward of ip vmm had other rules"]
    # Where nobody can say what they should be, they are counted.
    assert inspection.differences({}, counts, hooks) == []


@pytest.mark.fault(29)
def test_rules_in_another_order_are_other_rules(kernel: dict[str, str]) -> None:
    def account_of(*verdicts: str) -> str:
        rules = [{"rule": {"family": "bridge", "chain": "input", "expr": [{verdict: None}]}} for verdict in verdicts]
        return json.dumps({"nftables": rules})

    standing = inspection._rules(json.loads(account_of("accept", "drop"))["nftables"])
    counts = {("bridge", "input"): 2}
    kernel["bridge"] = account_of("accept", "drop")
    assert inspection.differences({}, counts, {}, standing) == []
    kernel["bridge"] = account_of("drop", "accept")
    assert inspection.differences({}, counts, {}, standing) == ["the chain input of bridge vmm had other rules"]


@pytest.mark.fault(40)
@pytest.mark.parametrize("able", [True, False])
def test_what_rules_should_be_is_nfts_own_word(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    """In a network namespace that nobody else sees; a container may not be allowed to make one."""
    asked: list[list[str]] = []

    def run(argv, **how):
        asked.append(argv)
        added = '{"add": {"rule": {"family": "ip", "table": "vmm", "chain": "input", "handle": 2, "expr": [{"drop": null}]}}}'
        chain = '{"add": {"chain": {"family": "ip", "table": "vmm", "name": "input", "handle": 1}}}'
        said = f'{{"nftables": [{META}, {chain}, {added}]}}'
        return process.Completed(argv=tuple(argv), code=0 if able else 1, stdout=said if able else "", stderr="-")

    monkeypatch.setattr(inspection.process, "run", run)
    assert inspection.rules_of("table ip vmm { }") == ({("ip", "input"): [[{"drop": None}]]} if able else None)
    assert asked == [["unshare", "--net", "nft", "--json", "--echo", "table ip vmm { }"]]


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            '"prio": -50, "policy": "accept"',
            '"prio": -50, "policy": "drop"',
            (
                "the chain guard of ip vmm was filter on prerouting at -50 with policy drop, "
                "not filter on prerouting at -50 with policy accept"
            ),
        ),
        (
            '"prio": 150, "policy"',
            '"prio": 90, "policy"',
            (
                "the chain outside of ip vmm was filter on postrouting at 90 with policy accept, "
                "not filter on postrouting at 150 with policy accept"
            ),
        ),
        (
            ', "type": "filter", "hook": "input", "prio": 0, "policy": "accept"',
            "",
            "the chain input of ip vmm was on no hook, not filter on input at 0 with policy accept",
        ),
        (
            '"name": "vmm", "handle": 3',
            '"name": "vmm", "flags": "ip"',
            "the firewall's table ip vmm had flags, as `dormant`",
        ),
        (
            '"name": "vmm", "handle": 3',
            '"name": "vmm", "flags": ["dormant"]',
            "the firewall's table ip vmm had flags, as `dormant`",
        ),
    ],
)
def test_walls_that_hang_elsewhere_or_nowhere(kernel: dict[str, str], before: str, after: str, told: str) -> None:
    assert kernel["ip"].count(before) == 1
    kernel["ip"] = kernel["ip"].replace(before, after)
    assert WALL.differences(ATTACHED) == [told]


def test_a_chain_that_is_someone_elses(kernel: dict[str, str]) -> None:
    hook = '"type": "filter", "hook": "forward", "prio": 9, "policy": "drop"'
    kernel["ip"] = account(
        IP + f'{{"chain": {{"family": "ip", "table": "vmm", "name": "mine", "handle": 99, {hook}}}}}'
    )
    assert WALL.differences(ATTACHED) == ["the chain mine of ip vmm is none of vmm's"]


def test_a_set_that_is_gone(kernel: dict[str, str]) -> None:
    kernel["ip"] = account(IP, without='"name": "machines"')
    assert WALL.differences(ATTACHED) == ["172.16.0.2 was not in machines", "172.16.0.3 was not in machines"]


def test_who_is_missing_and_who_was_left(kernel: dict[str, str]) -> None:
    other = lease_for(IPv4Address("172.16.0.9"))
    assert WALL.differences([(A, (WEB, DNS)), (other, ())]) == [
        "172.16.0.9 was not in machines",
        "172.16.0.3 was left in machines",
        "172.16.0.9 . 172.16.0.9 was not in own",
        "172.16.0.3 . 172.16.0.3 was left in own",
        "vmm-ac100009 . 06:00:ac:10:00:09 . 172.16.0.9 was not in senders",
        "vmm-ac100003 . 06:00:ac:10:00:03 . 172.16.0.3 was left in senders",
    ]


def test_a_forward_that_leads_elsewhere(kernel: dict[str, str]) -> None:
    """The same port of the host, another port of the machine: the map's key is right and its value is not."""
    moved = PortForward(machine="a", protocol=Protocol.TCP, host_port=8080, guest_port=81)
    assert WALL.differences([(A, (moved, DNS)), (B, ())]) == [
        "tcp . 8080 . 172.16.0.2 . 81 was not in ports",
        "tcp . 8080 . 172.16.0.2 . 80 was left in ports",
    ]
    # One at an address of the host is another than one at all of them.
    everywhere = PortForward(machine="a", protocol=Protocol.UDP, host_port=53, guest_port=5353)
    assert WALL.differences([(A, (WEB, everywhere)), (B, ())]) == [
        "udp . 53 . 172.16.0.2 . 5353 was not in ports",
        "udp . 127.0.0.1 . 53 . 172.16.0.2 . 5353 was left in ports_at",
    ]


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("172.16.0.2", ["172.16.0.2"]),
        (8080, ["8080"]),
        ({"concat": ["vmm-ac100002", "06:00:ac:10:00:02", "172.16.0.2"]}, ["vmm-ac100002", "06:00:ac:10:00:02", "172.16.0.2"]),
        ([{"concat": ["tcp", 8080]}, {"concat": ["172.16.0.2", 80]}], ["tcp", "8080", "172.16.0.2", "80"]),
        (["a", "b"], ["a", "b"]),
        ({"concat": [{"concat": ["a"]}, "b"]}, ["a", "b"]),
    ],
)  # fmt: skip
def test_the_parts_of_an_element_however_they_are_nested(value: object, parts: list[str]) -> None:
    assert list(inspection._parts(value)) == parts


def test_every_chain_of_the_template_is_counted() -> None:
    counts = tables.rule_counts(WALL._tables())
    assert set(counts) == {
        ("ip", "forwards"), ("ip", "prerouting"), ("ip", "output"), ("ip", "postrouting"), ("ip", "outside"),
        ("ip", "guard"), ("ip", "from_machines"), ("ip", "to_host"), ("ip", "vetted"), ("ip", "forward"),
        ("ip", "leaving"), ("ip", "entering"), ("ip", "passed"), ("ip", "input"), ("ip6", "prerouting"),
        ("bridge", "prerouting"), ("bridge", "asking"), ("bridge", "input"),
    }  # fmt: skip
    # One that had none would be a chain that keeps nothing out.
    assert min(counts.values()) >= 1
    # As many as nft itself counted in what was recorded.
    assert sum(counts.values()) == (IP + BRIDGE + IP6).count('"rule"')
