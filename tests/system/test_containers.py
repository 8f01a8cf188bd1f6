"""A vmm on the host and another in a container of it, with the same paths, user ids and names: neither sees the other.

The container is what one is to the kernel: pid, mount and network namespaces of its own. Another directory lies where
the host's data directory does.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import SMALL, Host, is_running, sh, stock, wait_for

from conftest import add_tiny

pytestmark = [pytest.mark.system, pytest.mark.fault(43)]

# A shell takes what is orphaned, as an init does.
_INIT = 'mount --bind "$1" "$2"; echo ready; while :; do sleep 0.5; done'


@dataclass(frozen=True)
class Inside(Host):
    """The vmm in a container whose init has this pid on the host."""

    init: int

    @property
    def prefix(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "-t", str(self.init), "-m", "-p"]

    def pids(self) -> list[int]:
        """Return the pids of the engines within, as the host has them."""
        network = Path(f"/run/netns/{self.namespace}").stat().st_ino
        found = sh("pgrep", "-x", "firecracker", check=False).stdout.split()
        return [int(pid) for pid in found if _network(pid) == network]


def _network(pid: str) -> int:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except FileNotFoundError:
        # It has just ended.
        return 0


@pytest.fixture
def inside(tiny: Host, tmp_path: Path) -> Iterator[Inside]:
    """A container of the host's with a vmm that knows the same paths."""
    namespace, directory = f"{tiny.namespace}-c", tmp_path / "container"
    directory.mkdir()
    stock(directory)
    sh("ip", "netns", "add", namespace)
    argv = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", _INIT]
    try:
        sh("ip", "-n", namespace, "link", "set", "lo", "up")
        with subprocess.Popen([*argv, "init", str(directory), str(tiny.data_dir)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == b"ready\n"
                init = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
                made = Inside(namespace=namespace, data_dir=tiny.data_dir, init=int(init))
                add_tiny(made, tmp_path)
                yield made
                made.vmm("delete", "--all", "--force")
                made.vmm("teardown")
            finally:
                process.kill()
        wait_for(lambda: not is_running(made.init), what="the end of the container")
    finally:
        sh("ip", "netns", "del", namespace)


@pytest.mark.parametrize("jail", ["--jail", "--no-jail"])
def test_neither_takes_the_others_engine_for_its_own(tiny: Host, inside: Inside, jail: str) -> None:
    for vmm in (tiny, inside):
        vmm.vmm("create", "m", *SMALL, jail)
    theirs = inside.start("m")
    there = inside.pids()
    assert len(there) == 1
    # The host's has never started its own. One that asks by socket and user id alone finds the other's.
    assert [(row["state"], row["pid"]) for row in tiny.json("list", "--all")] == [("created", None)]
    assert tiny.vmm("reconcile").stdout == "All is as it is remembered.\n"
    tiny.vmm("stop", "--force", "m")
    own = tiny.start("m")
    assert inside.pids() == there
    # As a start leaves it that was killed before it knew its engine: it is looked for among all processes.
    for vmm, engine in ((tiny, own), (inside, theirs)):
        if vmm is tiny:
            vmm.sql("UPDATE machines SET state = 'starting', pid = 1, marker = ''")
        assert vmm.vmm("reconcile", check=False).returncode == 0
        assert [(row["state"], row["pid"]) for row in vmm.json("list", "--all")] == [("running", engine)]
    tiny.vmm("stop", "--force", "m")
    assert not is_running(own)
    assert [row["state"] for row in tiny.json("list", "--all")] == ["stopped"]
    tiny.vmm("delete", "--force", "m")
    # Nobody's engine is left that a restored database could not know of.
    assert tiny.json("list", "--all") == []
    assert inside.pids() == there
    assert inside.machine("m")["pid"] == theirs
    inside.vmm("stop", "--force", "m")
    assert not is_running(there[0])
