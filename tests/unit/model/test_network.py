from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import ConfigError, ConflictError, UsageError
from vmm.model.network import (
    Protocol,
    checked_resolver,
    checked_subnet,
    free_address,
    lease_for,
    parse_forward,
)


def test_the_first_machine_gets_the_address_after_the_gateway() -> None:
    subnet = checked_subnet("172.16.0.0/16", "172.16.0.1")
    assert str(free_address(subnet, set())) == "172.16.0.2"


@pytest.mark.fault(33)
def test_the_255th_machine_and_those_after_it_have_addresses_of_their_own() -> None:
    subnet = checked_subnet("172.16.0.0/16", "172.16.0.1")
    taken: set[int] = set()
    for _ in range(600):
        taken.add(int(free_address(subnet, taken)))
    given = [IPv4Address(number) for number in sorted(taken)]
    assert [str(address) for address in given[252:256]] == ["172.16.0.254", "172.16.0.255", "172.16.1.0", "172.16.1.1"]
    leases = [lease_for(address) for address in given]
    assert len({lease.mac for lease in leases}) == len({lease.tap for lease in leases}) == 600


@pytest.mark.fault(33)
@pytest.mark.parametrize("cidr", ["10.9.8.0/24", "10.9.8.0/30", "192.168.77.64/27", "172.16.5.0/25"])
def test_any_subnet_hands_out_all_but_network_gateway_and_broadcast(cidr: str) -> None:
    first = str(checked_subnet(cidr, str(IPv4Address(int(IPv4Address(cidr.partition("/")[0])) + 1))).gateway)
    subnet = checked_subnet(cidr, first)
    taken: set[int] = set()
    for _ in range(subnet.network.num_addresses - 3):
        taken.add(int(free_address(subnet, taken)))
    forbidden = {int(subnet.network.network_address), int(subnet.network.broadcast_address), int(IPv4Address(first))}
    assert not taken & forbidden
    with pytest.raises(ConflictError) as caught:
        free_address(subnet, taken)
    assert cidr in caught.value.brief


def test_a_freed_address_is_given_again_and_the_gateway_in_the_middle_is_skipped() -> None:
    subnet = checked_subnet("10.0.0.0/29", "10.0.0.3")
    taken = {int(IPv4Address("10.0.0.1")), int(IPv4Address("10.0.0.2"))}
    assert str(free_address(subnet, taken)) == "10.0.0.4"


@pytest.mark.fault(33)
@given(st.lists(st.integers(min_value=0, max_value=2**32 - 1), unique=True, min_size=2, max_size=50))
def test_macs_and_taps_are_unique_because_addresses_are(numbers: list[int]) -> None:
    leases = [lease_for(IPv4Address(number)) for number in numbers]
    assert len({lease.mac for lease in leases}) == len(leases)
    assert len({lease.tap for lease in leases}) == len(leases)
    assert all(len(lease.tap) <= 15 for lease in leases)


@pytest.mark.parametrize(
    ("cidr", "gateway"),
    [
        ("nonsense", "172.16.0.1"),
        ("172.16.0.0/16", "10.0.0.1"),
        ("172.16.0.0/16", "172.16.0.0"),
        ("172.16.0.0/16", "172.16.255.255"),
        ("172.16.0.0/31", "172.16.0.1"),
        ("172.16.0.5/16", "172.16.0.1"),
        ("fd00::/64", "fd00::1"),
    ],
)
def test_subnets_that_cannot_be_are_refused(cidr: str, gateway: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_subnet(cidr, gateway)
    assert "vmm config set" in caught.value.resolution or "Give" in caught.value.resolution


def test_forwards_are_read_in_every_form() -> None:
    plain = parse_forward("m", "8080:80")
    assert (plain.host_address, plain.host_port, plain.guest_port, plain.protocol) == (
        "0.0.0.0",
        8080,
        80,
        Protocol.TCP,
    )
    assert parse_forward("m", "53:53/udp").protocol is Protocol.UDP
    assert parse_forward("m", "127.0.0.1:8080:80").host_address == "127.0.0.1"


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    "text",
    ["", "80", "0:80", "80:0", "65536:1", "a:b", "1:2:3", "80:80/sctp", "-1:2", "1:2:3:4", "1.2.3.4.5:1:2", "80:80/"],
)
def test_what_is_no_forward_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a port forward"):
        parse_forward("m", text)


def test_resolvers() -> None:
    assert checked_resolver("1.1.1.1") == "1.1.1.1"
    with pytest.raises(UsageError):
        checked_resolver("example.org")
    for nobodys in ("224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1"):
        with pytest.raises(UsageError, match=nobodys):
            checked_resolver(nobodys)
