"""Another subnet, gateway or bridge: refused while machines hold or use the old one, and then in force as a whole."""

import json
import re
from ipaddress import IPv4Address

import pytest
from frames import IPV4, Guest, ethernet, inside, ipv4, udp
from hosts import OUTSIDE_HOST, OUTSIDE_WORLD, SMALL, Host, serving, the_world

from vmm.app import open_site
from vmm.model.network import Lease, lease_for

pytestmark = [pytest.mark.system, pytest.mark.fault(33)]

OLD = ("172.16.0.0/16", "172.16.0.1")
NEW = ("10.77.0.0/24", "10.77.0.1")
# Answers with the address that it was asked from.
WHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 9)); print("ready", flush=True)
while True:
    data, who = s.recvfrom(2048)
    s.sendto(who[0].encode(), who)
"""


def network(host: Host) -> dict[str, str]:
    """Return all of a host's network that vmm makes."""
    asked = (("ip", "-o", "addr"), ("ip", "route"), ("ip", "rule"), ("nft", "--stateless", "list", "ruleset"))
    return {" ".join(words): host.run(*words).stdout for words in asked}


def by_hand(host: Host, cidr: str, gateway: str) -> None:
    (host.data_dir / "config" / "config.toml").write_text(f'subnet = "{cidr}"\ngateway = "{gateway}"\n')


def seen_as(host: Host, lease: Lease) -> str | None:
    """Return whom the world sees when a machine with this lease asks it; None when no answer comes."""
    with inside(host.namespace):
        site = open_site(data_dir=host.data_dir)
        with site.network.attaching(lease, ()):
            pass
        try:
            with Guest(lease) as guest:
                asked = ipv4(lease.address, OUTSIDE_WORLD, 17, udp(1234, 9, b"who am I?"))
                guest.send(ethernet(lease.mac, lease_for_text(site.subnet.gateway).mac, IPV4, asked))
                answer = guest.until(lambda frame: b"." in frame[42:], 2)
                return answer[42:].decode() if answer else None
        finally:
            site.network.detach(lease, ())


def lease_for_text(address: str) -> Lease:
    return lease_for(IPv4Address(address))


def test_config_set_refuses_a_subnet_that_has_not_the_machines_addresses(tiny: Host) -> None:
    tiny.vmm("config", "init")
    tiny.vmm("create", "m", *SMALL)
    written = (tiny.data_dir / "config" / "config.toml").read_bytes()
    for values in (
        ("subnet", NEW[0], "gateway", NEW[1]),
        ("subnet", NEW[0]),
        ("gateway", "172.16.0.2"),
        ("subnet", "172.16.0.0/30", "gateway", "172.16.0.2"),
    ):
        said = tiny.fails("config", "set", *values)
        assert "m (172.16.0.2)" in said, said
        assert "vmm delete" in said
    assert (tiny.data_dir / "config" / "config.toml").read_bytes() == written
    assert [path.name for path in (tiny.data_dir / "config").iterdir()] == ["config.toml"]
    # One that has them is none of these, and with the machine gone each is free.
    tiny.vmm("config", "set", "subnet", "172.16.0.0/24", "gateway", "172.16.0.1")
    tiny.vmm("delete", "m")
    tiny.vmm("config", "set", "subnet", NEW[0], "gateway", NEW[1])


def test_config_set_refuses_another_network_while_machines_run_on_it(tiny: Host) -> None:
    tiny.vmm("config", "init")
    tiny.vmm("create", "m", *SMALL)
    tiny.vmm("start", "m")
    before = network(tiny)
    for key, value in (("gateway", "172.16.0.9"), ("bridge_name", "vmm-br7")):
        said = tiny.fails("config", "set", key, value)
        assert "vmm stop --all" in said, said
    # What is so already moves nothing.
    tiny.vmm("config", "set", "subnet", OLD[0], "gateway", OLD[1], "bridge_name", "vmm-br0")
    assert network(tiny) == before
    tiny.vmm("stop", "m", "--force")
    tiny.vmm("config", "set", "gateway", "172.16.0.9", "bridge_name", "vmm-br7")
    tiny.vmm("start", "m")
    links = tiny.run("ip", "-o", "-4", "addr").stdout
    assert "172.16.0.9/16" in links
    assert "172.16.0.1" not in links
    assert "vmm-br0" not in tiny.links()


def test_a_file_that_was_edited_by_hand_is_refused_at_start_and_nothing_is_touched(tiny: Host) -> None:
    tiny.vmm("config", "init")
    for name in ("old", "runs"):
        tiny.vmm("create", name, *SMALL)
    tiny.vmm("start", "runs")
    before = network(tiny)
    by_hand(tiny, *NEW)
    tiny.vmm("create", "new", *SMALL)
    assert tiny.machine("new")["ip_address"] == "10.77.0.2"
    said = tiny.fails("start", "old")
    assert "'old'" in said
    assert "172.16.0.2" in said
    assert NEW[0] in said
    said = tiny.fails("start", "new")
    assert "172.16.0.1 of 172.16.0.0/16" in said
    assert "vmm config set subnet 172.16.0.0/16 gateway 172.16.0.1" in said
    assert tiny.fails("start", "old", "new")
    assert network(tiny) == before
    assert tiny.machine("runs")["state"] == "running"
    (row,) = (row for row in json.loads(tiny.vmm("doctor", "--output", "json", check=False).stdout)
              if row["name"] == "addresses")  # fmt: skip
    assert row["status"] != "ok"
    assert "old (172.16.0.2), runs (172.16.0.3)" in row["detail"]
    assert tiny.vmm("reconcile", check=False).returncode == 1
    assert network(tiny) == before
    # As it says: put back, all is as it was; or stopped, the new one is in force.
    by_hand(tiny, *OLD)
    tiny.vmm("start", "old")
    tiny.vmm("stop", "--all", "--force")
    by_hand(tiny, *NEW)
    tiny.vmm("start", "new")
    assert "172.16" not in "".join(network(tiny).values())
    assert "'old'" in tiny.fails("start", "old")


@pytest.mark.fault(50)
def test_tables_of_another_configuration_are_replaced_at_the_next_start(tiny: Host) -> None:
    with the_world(tiny) as world, serving(world, "-c", WHO):
        tiny.vmm("setup", "--no-kernel", "--no-image")
        assert seen_as(tiny, lease_for_text("172.16.0.2")) == OUTSIDE_HOST
        tiny.vmm("config", "set", "subnet", NEW[0], "gateway", NEW[1])
        # Nothing has looked at the network since: the old tables and the old bridge stand.
        assert "ip saddr 172.16.0.0/16" in network(tiny)["nft --stateless list ruleset"]
        tiny.vmm("create", "m", *SMALL)
        tiny.vmm("start", "m")
        rules = network(tiny)["nft --stateless list ruleset"]
        assert re.search(r"ip saddr 10\.77\.0\.0/24 oifname .* masquerade", rules), rules
        assert "172.16" not in "".join(network(tiny).values())
        assert "10.77.0.2" in rules
        assert seen_as(tiny, lease_for_text("10.77.0.9")) == OUTSIDE_HOST
        tiny.vmm("reconcile")
