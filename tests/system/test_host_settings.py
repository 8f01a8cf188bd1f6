"""Settings of the host that someone sets back, ids that are given to someone, and parts that a kernel may lack."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import SMALL, VMM, Host, sh, the_world, wait_for

from conftest import add_tiny

pytestmark = [pytest.mark.system, pytest.mark.fault(50)]


@pytest.fixture(scope="module")
def stocked(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a way to the world, another link, and two machines."""
    with the_world(shared_host):
        shared_host.run("ip", "link", "add", "other0", "type", "bridge")
        add_tiny(shared_host, tmp_path_factory.mktemp("kernel"))
        for name in ("m", "n"):
            shared_host.vmm("create", name, *SMALL)
        shared_host.vmm("port-forward", "add", "m", "127.0.0.1:8080:80")
        yield shared_host
        shared_host.vmm("delete", "--all", "--force")


def setting(host: Host, link: str, name: str = "forwarding") -> str:
    return host.run("cat", f"/proc/sys/net/ipv4/conf/{link}/{name}").stdout.strip()


def put(host: Host, link: str, name: str, value: str) -> None:
    host.run("sysctl", "-qw", f"net.ipv4.conf.{link}.{name}={value}")


def check(host: Host, name: str) -> dict:
    done = host.vmm("doctor", "--output", "json", check=False)
    return {row["name"]: row for row in json.loads(done.stdout)}[name]


def forwarding(host: Host) -> dict[str, str]:
    return {link: setting(host, link) for link in ("all", "default", "other0", "lo", "up0", "vmm-br0")}


WHOLE = {"all": "0", "default": "0", "other0": "0", "lo": "0", "up0": "1", "vmm-br0": "1"}


def test_forwarding_that_is_set_back_is_mended_link_by_link_and_taken_back(stocked: Host) -> None:
    host = stocked
    host.start("m")
    assert forwarding(host) == WHOLE
    assert setting(host, "vmm-br0", "route_localnet") == "1"
    # By the supervisor: the whole host's switch takes every link's along.
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    wait_for(lambda: forwarding(host) == WHOLE, timeout=30, what="forwarding by the supervisor")
    put(host, "vmm-br0", "route_localnet", "0")
    wait_for(lambda: setting(host, "vmm-br0", "route_localnet") == "1", timeout=30, what="the way from localhost")
    assert any("ip forwarding" in event["detail"] for event in host.json("events"))
    (supervisor,) = host.supervisors()
    sh("kill", "-STOP", str(supervisor))
    try:
        _is_mended_by_commands(host)
    finally:
        sh("kill", "-CONT", str(supervisor))
    # What someone else switched on, teardown leaves on.
    put(host, "other0", "forwarding", "1")
    host.vmm("stop", "--force", "n")
    host.vmm("teardown")
    assert (setting(host, "up0"), setting(host, "other0"), setting(host, "all")) == ("0", "1", "0")
    put(host, "other0", "forwarding", "0")


def _is_mended_by_commands(host: Host) -> None:
    for link in ("up0", "vmm-br0"):
        put(host, link, "forwarding", "0")
        row = check(host, "ip forwarding")
        assert (row["status"], row["fix"]) == ("warning", "sudo vmm reconcile")
        assert link in row["detail"]
        assert "ip forwarding" in host.vmm("reconcile", check=False).stdout
        assert forwarding(host) == WHOLE
    put(host, "vmm-br0", "route_localnet", "0")
    assert "localhost" in check(host, "ip forwarding")["detail"]
    assert "localhost" in host.vmm("reconcile", check=False).stdout
    assert setting(host, "vmm-br0", "route_localnet") == "1"
    assert host.vmm("reconcile").stdout == "All is as it is remembered.\n"
    put(host, "up0", "forwarding", "0")
    host.start("n")
    assert forwarding(host) == WHOLE
    host.vmm("stop", "--force", "m")
    assert setting(host, "vmm-br0", "route_localnet") == "0"
    # What no forward needs is closed, whoever opened it.
    put(host, "vmm-br0", "route_localnet", "1")
    assert "no forward needs it" in check(host, "ip forwarding")["detail"]
    host.vmm("reconcile", check=False)
    assert setting(host, "vmm-br0", "route_localnet") == "0"


def test_a_link_that_forwarded_before_vmm_came_does_so_after_it(stocked: Host) -> None:
    stocked.vmm("teardown")
    put(stocked, "up0", "forwarding", "1")
    stocked.start("n")
    stocked.vmm("stop", "--force", "n")
    stocked.vmm("teardown")
    assert setting(stocked, "up0") == "1"
    put(stocked, "up0", "forwarding", "0")


def with_accounts(host: Host, file: Path, target: str, *arguments: str):
    """Run vmm where one of the files of accounts is another."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", str(file), target, *VMM, *arguments]
    return host.run(*argv, check=False, env=host.environment)


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    ("target", "line", "whose"),
    [
        ("/etc/passwd", "alice:x:70003:70003::/home/alice:/bin/sh", "the user alice"),
        ("/etc/group", "staff9:x:70003:", "the group staff9"),
        ("/etc/subuid", "alice:70000:65536", "alice's range in /etc/subuid"),
        ("/etc/subgid", "alice:1:70003", "alice's range in /etc/subgid"),
    ],
)
def test_a_range_of_ids_that_holds_someones_is_refused_wherever_it_comes_from(
    stocked: Host, tmp_path: Path, target: str, line: str, whose: str
) -> None:
    file = tmp_path / "accounts"
    file.write_text(Path(target).read_text() + line + "\n")
    said = with_accounts(stocked, file, target, "config", "set", "uid_range", "70000-70009")
    assert said.returncode == 1
    assert f"is {whose}" in said.stderr
    config = stocked.data_dir / "config" / "config.toml"
    before = config.read_text() if config.exists() else ""
    assert "uid_range" not in before
    config.parent.mkdir(exist_ok=True)
    config.write_text(f'uid_range = "70000-70009"\n{before}')
    try:
        for arguments in (["start", "n"], ["setup", "--no-kernel", "--no-image"]):
            said = with_accounts(stocked, file, target, *arguments)
            assert said.returncode == 1, arguments
            for part in ("Error: The range of user ids", f"is {whose}", "To mend it: "):
                assert part in said.stderr, arguments
            assert "Traceback" not in said.stderr
        rows = json.loads(with_accounts(stocked, file, target, "doctor", "--output", "json").stdout)
        row = next(row for row in rows if row["name"] == "jails")
        assert row["status"] == "failure"
        assert whose in row["detail"]
        # What it says to do is what mends it.
        command = shlex.split(row["fix"].partition(": ")[2].removeprefix("sudo vmm "))
        assert with_accounts(stocked, file, target, *command).returncode == 0
        assert with_accounts(stocked, file, target, "start", "n").returncode == 0
        stocked.vmm("stop", "--force", "n")
    finally:
        config.write_text(before)


@pytest.mark.fault(40)
def test_doctor_says_whether_taps_can_have_filters(stocked: Host, tmp_path: Path) -> None:
    assert check(stocked, "tap filters")["status"] == "ok"
    # No kernel without them is at hand: in place of tc stands what it says on one.
    words = "RTNETLINK answers: Operation not supported"
    tc = tmp_path / "tc"
    tc.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 2\n")
    tc.chmod(0o755)
    place = next(path for path in ("/usr/sbin/tc", "/sbin/tc") if Path(path).exists())
    said = with_accounts(stocked, tc, str(Path(place).resolve()), "doctor", "--output", "json")
    row = next(row for row in json.loads(said.stdout) if row["name"] == "tap filters")
    assert row["status"] == "warning"
    assert words in row["detail"]
    assert "cls_bpf" in row["fix"]
