"""Settings of the host that someone sets back, ids that are given to someone, and parts that a kernel may lack."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import SMALL, VMM, Host, the_world

from conftest import add_tiny

pytestmark = [pytest.mark.system, pytest.mark.fault(50)]


@pytest.fixture(scope="module")
def stocked(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a way to the world, and a machine."""
    with the_world(shared_host):
        add_tiny(shared_host, tmp_path_factory.mktemp("kernel"))
        shared_host.vmm("create", "n", *SMALL)
        yield shared_host
        shared_host.vmm("delete", "--all", "--force")


def setting(host: Host, link: str, name: str = "forwarding") -> str:
    return host.run("cat", f"/proc/sys/net/ipv4/conf/{link}/{name}").stdout.strip()


def put(host: Host, link: str, name: str, value: str) -> None:
    host.run("sysctl", "-qw", f"net.ipv4.conf.{link}.{name}={value}")


def check(host: Host, name: str) -> dict:
    done = host.vmm("doctor", "--output", "json", check=False)
    return {row["name"]: row for row in json.loads(done.stdout)}[name]


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
