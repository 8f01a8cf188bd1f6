"""Names: machines ask whom the host asks, as far as they can reach him, and past no other closed door of his."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import METADATA, OUTSIDE_HOST, OUTSIDE_WORLD, VMM, Host, sh
from pairs import GATEWAY, Outside, Pair, a_pair, the_world_of

pytestmark = pytest.mark.system

GOOGLES = f"nameserver {METADATA}\nsearch corp.example lab.example\noptions ndots:2 trust-ad\n"
# What the host says of names -> what a machine is told, and whom the firewall lets it ask.
SAID = {
    "a cloud's, at its metadata address": (GOOGLES, [METADATA]),
    "the host itself": (f"nameserver {OUTSIDE_HOST}\n", [OUTSIDE_HOST]),
    "IPv6 first": (f"nameserver 2001:db8::53\nnameserver {OUTSIDE_WORLD}\n", [OUTSIDE_WORLD]),
    "IPv6 alone": ("nameserver 2001:db8::53\n", ["9.9.9.9", "1.1.1.1"]),
    "nothing yet": ("# written by a boot that has no network yet\n", ["9.9.9.9", "1.1.1.1"]),
}


class Names:
    """A host whose /etc/resolv.conf is a file of the test's, for what is run by `vmm`."""

    def __init__(self, host: Host, file: Path) -> None:
        self.host, self.file = host, file

    def vmm(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        mounted = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        argv = [*self.host.prefix, "unshare", "--mount", "sh", "-c", mounted, str(self.file), *VMM, *arguments]
        return sh(*argv, check=check, env=self.host.environment)

    def told(self, name: str) -> str:
        """Return what the machine finds as its resolv.conf: in the archive that its kernel unpacks."""
        archive = (self.host.data_dir / "vms" / name / "initrd").read_bytes()
        entry = archive.rpartition(b"resolv.conf\0")[2]
        return entry[: entry.index(b"\0", 4)].strip(b"\0").decode()

    def let(self) -> set[str]:
        """Return whom the firewall lets machines ask wherever it is."""
        words = self.host.run("nft", "list", "set", "ip", "vmm", "resolvers").stdout.replace(",", " ").split()
        return {word for word in words if word[0].isdigit()}


@pytest.fixture(scope="module")
def names(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    file = tmp_path_factory.mktemp("names") / "resolv.conf"
    file.write_text(GOOGLES)
    shared_host.vmm("create", "m", "--engine", "qemu")
    found = Names(shared_host, file)
    found.vmm("start", "m", "--wait", "ssh")
    yield found
    shared_host.vmm("delete", "--force", "m")


def test_a_guest_is_given_the_hosts_servers_domains_and_options(names: Names) -> None:
    found = names.host.guest("m", "cat /etc/resolv.conf").splitlines()
    # A server that the host trusts to have verified is not one that a machine trusts.
    assert found == [f"nameserver {METADATA}", "search corp.example lab.example", "options ndots:2"]
    assert names.let() == {METADATA}


@pytest.mark.parametrize("kind", SAID)
def test_what_the_host_says_at_a_start_counts(names: Names, kind: str) -> None:
    said, servers = SAID[kind]
    names.file.write_text(said)
    names.vmm("stop", "m", "--force", check=False)
    names.vmm("start", "m")
    told = [line.split()[1] for line in names.told("m").splitlines() if line.startswith("nameserver")]
    assert told == servers
    assert set(servers) <= names.let()
    row = next(line for line in names.vmm("doctor", check=False).stdout.splitlines() if "resolvers" in line)
    assert ("ok" in row.split()[:2]) == (servers[0] != "9.9.9.9"), row


def test_a_machines_own_servers_are_asked_in_place_of_the_hosts(names: Names) -> None:
    names.vmm("stop", "m", "--force", check=False)
    names.host.vmm("set", "m", "--dns", "192.0.2.77")
    names.vmm("start", "m")
    assert "nameserver 192.0.2.77" in names.told("m")
    assert "192.0.2.77" in names.let()


@pytest.fixture
def asking(host: Host) -> Iterator[Pair]:
    host.vmm("config", "set", "vm_defaults.dns_servers", f"{METADATA},{OUTSIDE_HOST},{GATEWAY}")
    with a_pair(host) as made:
        yield made


def test_resolvers_behind_closed_doors_are_asked_for_names_and_for_nothing_else(asking: Pair) -> None:
    with (
        the_world_of(asking) as world,
        Outside(world, 53) as cloud,
        Outside(world, 80) as secrets,
        Outside(asking.host.namespace, 53) as own,
        Outside(asking.host.namespace, 9099) as service,
    ):
        for target in (METADATA, OUTSIDE_HOST, GATEWAY):
            for port in (53, 80, 9099):
                asking.knock(target, f"{target} {port}", port=port)
        assert cloud.hears()[1] == f"{METADATA} 53"
        assert {own.hears()[1], own.hears()[1]} == {f"{OUTSIDE_HOST} 53", f"{GATEWAY} 53"}
        for closed in (cloud, secrets, own, service):
            closed.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                closed.hears()
