"""`vmm reconcile`: what a crash of the host, another program or a careless hand did, told and mended."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import SMALL, Host, is_running, wait_for

from conftest import add_tiny
from vmm.host import cgroups

pytestmark = pytest.mark.system

IN_ORDER = "All is as it is remembered.\n"
FOREIGN = """
add table ip other
delete table ip other
add table bridge other
delete table bridge other
table ip other {
  set machines { type ipv4_addr; elements = { 172.16.0.2 } }
  chain forward { type filter hook forward priority 10; policy accept; ip saddr 172.16.0.9 counter packets 0 bytes 0 drop; }
}
table bridge other {
  chain prerouting { type filter hook prerouting priority -200; policy accept; ether type 0x88b5 drop; }
}
"""


@pytest.fixture(scope="module")
def stocked(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    add_tiny(shared_host, tmp_path_factory.mktemp("kernel"))
    return shared_host


@pytest.fixture
def lab(stocked: Host) -> Iterator[Host]:
    """The module's host, with no machine of another test's."""
    yield stocked
    stocked.vmm("delete", "--all", "--force")
    stocked.vmm("teardown")


def reconciled(host: Host, *, code: int = 0) -> list[dict]:
    """Reconcile, and return what was found."""
    done = host.vmm("reconcile", "--output", "json", check=False)
    assert done.returncode == code, done
    return json.loads(done.stdout)


def assert_in_order(host: Host) -> None:
    assert host.vmm("reconcile").stdout == IN_ORDER


def states(host: Host) -> dict[str, str]:
    return {row["name"]: row["state"] for row in host.json("list")}


def rules(host: Host, table: str = "vmm") -> str:
    """Return both families' table of that name, as nft writes them; the elements of sets and maps sorted."""
    text = "".join(host.run("nft", "list", "table", family, table).stdout for family in ("ip", "bridge"))
    return re.sub(r"{ ([^{}]+) }", lambda found: str(sorted(re.split(r",\s*", found[1].strip()))), text)


def crash(host: Host) -> None:
    """What a crash of the host leaves: files and the database of an earlier boot, and nothing else."""
    rows = host.json("list")
    engines = [row["pid"] for row in rows if row["pid"] is not None]
    # First of all what would still act.
    for pid in [*host.supervisors(), *engines]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, engines)) and host.supervisors() == [])
    for row in rows:
        cgroups.remove(row["id"])
        host.run("ip", "link", "del", row["tap_device"], check=False)
    host.run("ip", "link", "del", "vmm-br0")
    host.run("nft", "flush", "ruleset")
    host.sql("UPDATE machines SET boot_id = 'an-earlier-boot' WHERE boot_id IS NOT NULL")


@pytest.mark.fault(4)
def test_after_a_crash_of_the_host_the_truth_is_told_and_what_was_wanted_comes_back_once(lab: Host) -> None:
    lab.vmm("create", "wanted", *SMALL)
    lab.vmm("create", "also-wanted", *SMALL)
    lab.vmm("create", "by-hand", *SMALL, "--no-auto-start")
    lab.vmm("create", "stopped", *SMALL)
    lab.vmm("create", "never", *SMALL)
    lab.vmm("port-forward", "add", "wanted", "127.0.0.1:8080:80")
    for name in ("wanted", "also-wanted", "by-hand", "stopped"):
        lab.start(name)
    lab.vmm("stop", "stopped", "--force")
    sockets = {path.name for path in lab.data_dir.glob("sockets/*")}
    assert len(sockets) == 3
    crash(lab)
    # What an engine of that boot has left deceives nobody.
    assert {path.name for path in lab.data_dir.glob("sockets/*")} == sockets
    assert len(list(lab.data_dir.glob("jails/*/*"))) == 3
    failed = {"wanted": "failed", "also-wanted": "failed", "by-hand": "failed"}
    assert states(lab) == {**failed, "stopped": "stopped", "never": "created"}
    assert "the host was restarted" in lab.machine("wanted")["reason"]
    repairs = {repair["subject"]: repair for repair in reconciled(lab)}
    # Whatever the supervisor, which the listing has brought back, is quicker with or at work on, is told by the events.
    for name in failed:
        wait_for(lambda name=name: lab.events(name)[-1][0] == "failed")
        if name in repairs:
            assert "it was recorded as running; its engine" in repairs[name]["what"]
    assert all(repair["done"] for repair in repairs.values())
    assert_in_order(lab)
    assert list(lab.data_dir.glob("sockets/*")) == []
    assert list(lab.data_dir.glob("jails/*/*")) == []
    before = {name: len(lab.events(name)) for name in failed}
    lab.vmm("autostart")
    assert states(lab) == {
        "wanted": "running", "also-wanted": "running", "by-hand": "failed", "stopped": "stopped", "never": "created",
    }  # fmt: skip
    assert "127.0.0.1 . 8080 : 172.16.0.2 . 80" in rules(lab)
    lab.vmm("autostart")
    for name in ("wanted", "also-wanted"):
        assert [kind for kind, _ in lab.events(name)[before[name] :]] == ["started"]
    assert_in_order(lab)


@pytest.mark.fault(4)
def test_a_boot_that_starts_what_was_wanted_needs_no_reconcile_before(lab: Host) -> None:
    for name in ("one", "two"):
        lab.vmm("create", name, *SMALL, "--restart", "always")
        lab.start(name)
    crash(lab)
    lab.vmm("autostart")
    # Their policy may have been quicker than the boot: either way each runs, once.
    wait_for(lambda: states(lab) == {"one": "running", "two": "running"})
    time.sleep(1.5)
    assert len([line for line in lab.processes() if "firecracker --id" in line]) == 2
    assert_in_order(lab)


@pytest.mark.fault(3)
@pytest.mark.parametrize("verb", ["reconcile", "stop", "delete", "start", "supervise"])
def test_a_process_that_has_the_pid_of_an_engine_is_never_signalled(lab: Host, verb: str) -> None:
    """With its start time too, which a reused pid was seen to have; its command line is still another."""
    lab.vmm("create", "m", *SMALL)
    engine = lab.start("m")
    (supervisor,) = lab.supervisors()
    with subprocess.Popen(["sleep", "300"]) as foreign:
        os.kill(supervisor, signal.SIGSTOP)
        try:
            os.kill(engine, signal.SIGKILL)
            wait_for(lambda: not is_running(engine))
            ticks = Path(f"/proc/{foreign.pid}/stat").read_text().rpartition(")")[2].split()[19]
            lab.sql("UPDATE machines SET pid = ?, start_ticks = ?", foreign.pid, int(ticks))
            assert lab.machine("m")["state"] == "failed"
            match verb:
                case "reconcile":
                    assert "it was recorded as running" in reconciled(lab)[0]["what"]
                case "supervise":
                    os.kill(supervisor, signal.SIGCONT)
                    wait_for(lambda: lab.sql("SELECT state FROM machines") == [("failed",)])
                case "start":
                    assert lab.start("m") != foreign.pid
                case _:
                    lab.vmm(verb, "m", "--force")
            assert foreign.poll() is None
            # Nobody waits for it, or watches it, from now on.
            assert lab.sql("SELECT count(*) FROM machines WHERE pid = ?", foreign.pid) == [(0,)]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor, signal.SIGCONT)
            foreign.kill()


@pytest.mark.fault(3)
@pytest.mark.parametrize("jail", ["--jail", "--no-jail"])
def test_a_process_that_only_names_a_machines_socket_is_no_engine(lab: Host, jail: str) -> None:
    """Such as someone's curl or socat on it: an argument is anybody's to choose."""
    lab.vmm("create", "m", *SMALL, jail)
    socket_path = lab.data_dir / "sockets" / "m.sock"
    marker = f"/{lab.machine('m')['id']}.sock" if jail == "--jail" else str(socket_path)
    waits = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(300)", marker]
    nobody = {"user": 65534, "group": 65534, "extra_groups": (), "start_new_session": True}
    for who in ({}, nobody):
        with subprocess.Popen(waits, stdout=subprocess.PIPE, executable="/usr/bin/python3", **who) as foreign:
            try:
                assert foreign.stdout is not None
                assert foreign.stdout.readline() == b"ready\n"
                assert_in_order(lab)
                assert lab.machine("m")["state"] in ("created", "stopped")
                lab.vmm("set", "m", "--kernel", "tiny")
                disk = lab.data_dir / "vms" / "m" / "disk.ext4"
                disk.rename(disk.with_suffix(".away"))
                lab.sql("UPDATE machines SET started_at = '2026-01-01T00:00:00Z'")
                lab.fails("start", "m")
                disk.with_suffix(".away").rename(disk)
                assert foreign.poll() is None
                pid = lab.start("m")
                assert pid != foreign.pid
                lab.vmm("stop", "m", "--force")
                assert foreign.poll() is None
            finally:
                foreign.kill()


def test_what_was_removed_by_hand_is_told_and_keeps_nothing_else_from_running(lab: Host) -> None:
    for name in ("disk", "other"):
        lab.vmm("create", name, *SMALL)
        lab.start(name)
    disk = lab.data_dir / "vms" / "disk" / "disk.ext4"
    images, kernels = (lab.data_dir / "images" / kind / "tiny" for kind in ("rootfs", "kernels"))
    kept = {path: path.with_name(".away") for path in (images, kernels)}
    disk.unlink()
    for path, away in kept.items():
        path.rename(away)
    try:
        # What runs has all that it needs.
        assert states(lab) == {"disk": "running", "other": "running"}
        (repair,) = reconciled(lab)
        assert (repair["subject"], repair["done"]) == ("disk", True)
        assert f"it is back ({disk})" in repair["what"]
        assert disk.samefile(f"/proc/{lab.machine('disk')['pid']}/root/disk0")
        assert_in_order(lab)
        # Whatever ends the machine keeps it too.
        inode = disk.stat().st_ino
        shutil.rmtree(disk.parent)
        lab.vmm("stop", "--all", "--force")
        assert disk.stat().st_ino == inode
        # With nobody to have it open, it is gone.
        disk.unlink()
        (repair,) = reconciled(lab, code=1)
        assert (repair["subject"], repair["done"]) == ("disk", False)
        assert f"its disk is gone ({disk})" in repair["what"]
        assert "vmm delete disk" in repair["what"]
        assert "There is no kernel 'tiny'" in lab.fails("start", "other")
        kept[kernels].rename(kernels)
        assert "has lost its disk" in lab.fails("start", "disk")
        # A machine's disk is its own: it never needs the image that it was made from again.
        lab.start("other")
        assert "There is no image 'tiny'" in lab.fails("create", "new", *SMALL)
    finally:
        for path, away in kept.items():
            if away.exists():
                away.rename(path)
    lab.vmm("delete", "disk")
    assert_in_order(lab)


@pytest.mark.parametrize("what", ["moved", "removed under qemu"])
def test_a_disk_that_cannot_be_put_back_is_told_while_there_is_time(lab: Host, what: str) -> None:
    lab.vmm("create", "m", *(SMALL if what == "moved" else (*SMALL[:-1], "qemu")))
    pid = lab.start("m")
    disk, away = (lab.data_dir / "vms" / "m" / name for name in ("disk.ext4", "away"))
    if what == "moved":
        disk.rename(away)
    else:
        disk.unlink()
    (repair,) = reconciled(lab, code=1)
    assert (repair["subject"], repair["done"]) == ("m", False)
    assert f"its disk is gone ({disk}) while it runs" in repair["what"]
    if what != "moved":
        (held,) = (fd for fd in Path(f"/proc/{pid}/fd").iterdir() if str(fd.readlink()).startswith(str(disk)))
        shutil.copyfile(held, away)
    lab.vmm("stop", "m", "--force")
    assert not disk.exists()
    away.rename(disk)
    lab.start("m")


@pytest.mark.fault(29)
def test_a_tap_that_is_gone_is_no_ones_to_mend_but_its_machines_restart(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL)
    lab.start("m")
    tap = lab.machine("m")["tap_device"]
    lab.run("ip", "link", "del", tap)
    for _ in range(2):
        (repair,) = reconciled(lab, code=1)
        assert f"the tap {tap} is gone" in repair["what"]
        assert repair["done"] is False
    lab.vmm("restart", "m", "--force")
    assert_in_order(lab)


def test_what_nobody_uses_is_removed(lab: Host) -> None:
    data = lab.data_dir
    for name in ("runs", "stands"):
        lab.vmm("create", name, *SMALL)
        lab.start(name)
    lab.vmm("stop", "stands", "--force")
    stands, runs = (lab.machine(name) for name in ("stands", "runs"))
    strays = [
        data / "jails" / "firecracker" / ("f" * 32),
        data / "jails" / "firecracker" / stands["id"],
        data / "jails" / "firecracker-of-before" / ("e" * 32),
        data / "staging" / "image-999999-0123abcd",
    ]
    for stray in strays:
        (stray / "root" / "dev").mkdir(parents=True)
        (stray / "root" / "disk0").write_text("a link to a disk")
    cgroups.make(stands["id"], cgroups.Ceiling())
    for name in ("stands", "nobody"):
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(data / "sockets" / f"{name}.sock"))
    lab.run("ip", "tuntap", "add", stands["tap_device"], "mode", "tap")
    found = reconciled(lab)
    assert all(repair["done"] for repair in found)
    told = "\n".join(f"{repair['subject']}: {repair['what']}" for repair in found)
    assert "stands: jail and cgroup and socket and tap of its own were left" in told
    assert "nobody: a socket of no machine was left" in told
    assert "the working directory image-999999-0123abcd was left" in told
    assert all(f"{letter * 32}: a jail of no machine was left" in told for letter in "ef")
    assert [stray for stray in strays if stray.exists()] == []
    assert {path.name for path in data.glob("sockets/*")} == {"runs.sock"}
    assert stands["tap_device"] not in lab.links()
    assert stands["id"] not in cgroups.names()
    assert lab.machine("runs")["pid"] == runs["pid"]
    assert is_running(runs["pid"])
    assert_in_order(lab)


def test_what_someone_may_want_is_kept(lab: Host) -> None:
    """A disk of no record, work that goes on, another data directory's group: they only look as if they were left."""
    data = lab.data_dir
    lab.vmm("create", "m", *SMALL)
    lost = data / "vms" / "lost"
    lost.mkdir()
    (lost / "disk.ext4").write_text("all that is left of someone's work")
    disks = {path: path.stat() for path in data.glob("vms/*/disk.ext4")}
    assert len(disks) == 2
    other = f"{os.getpid():032x}"
    cgroups.make(other, cgroups.Ceiling())
    at_work = data / "staging" / f"image-{os.getpid()}-4567cdef"
    at_work.mkdir(parents=True)
    (at_work / "part").write_text("of an image")
    held = os.open(at_work, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert_in_order(lab)
        assert (at_work / "part").exists()
        assert other in cgroups.names()
        assert {path: path.stat() for path in data.glob("vms/*/disk.ext4")} == disks
    finally:
        os.close(held)
        cgroups.remove(other)
        shutil.rmtree(lost)
    # The one at work has ended: what it held is a stray now.
    assert [repair["what"] for repair in reconciled(lab)] == [f"the working directory {at_work.name} was left"]


@pytest.mark.fault(17)
def test_an_engine_that_a_restored_database_does_not_know_of_is_taken_back(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL)
    pid = lab.start("m")

    def forget() -> None:
        lab.sql(
            "UPDATE machines SET state = 'stopped', wanted = 0, boot_id = NULL, pid = NULL, start_ticks = NULL, marker = NULL"
        )

    forget()
    (repair,) = reconciled(lab)
    assert (repair["subject"], repair["done"]) == ("m", True)
    assert repair["what"] == f"its engine runs (pid {pid}), and was recorded as stopped"
    shown = lab.machine("m")
    assert (shown["state"], shown["pid"], shown["wanted"]) == ("running", pid, True)
    assert_in_order(lab)
    # A start that comes first must not end what runs.
    forget()
    lab.fails("start", "m")
    assert is_running(pid)
    assert (lab.machine("m")["state"], lab.machine("m")["pid"]) == ("running", pid)
    assert_in_order(lab)
    lab.vmm("stop", "m", "--force")
    assert not is_running(pid)


@pytest.mark.fault(2)
def test_reconciles_at_once_with_each_other_and_with_starts_and_stops_are_in_no_ones_way(lab: Host) -> None:
    names = [f"m{number}" for number in range(4)]
    for name in names:
        lab.vmm("create", name, *SMALL)
    for name in names[2:]:
        lab.start(name)
    for round_number in range(2):
        up, down = (names[:2], names[2:]) if round_number == 0 else (names[2:], names[:2])
        lab.run("nft", "flush", "ruleset")
        commands = [("reconcile",), *(("start", name) for name in up), ("reconcile",),
                    *(("stop", name, "--force") for name in down), ("reconcile",)]  # fmt: skip
        racing = [lab.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for words in commands]
        said = [process.communicate(timeout=60) for process in racing]
        assert [process.returncode for process in racing] == [0] * len(commands), list(zip(commands, said, strict=True))
        assert states(lab) == {**dict.fromkeys(up, "running"), **dict.fromkeys(down, "stopped")}
        assert_in_order(lab)
        table = rules(lab)
        for row in lab.json("list"):
            assert (row["tap_device"] in table) == (row["state"] == "running"), row["name"]


HANDLE = "nft -a list chain ip vmm leaving | sed -n '/169.254/s/.*# handle //p'"
DAMAGES = {
    "the whole ruleset flushed": ["nft flush ruleset"],
    "one table deleted": ["nft delete table ip vmm"],
    "the other table deleted": ["nft delete table bridge vmm"],
    "the bridge deleted": ["ip link del vmm-br0"],
    "the bridge down": ["ip link set vmm-br0 down"],
    "the bridge without its address": ["ip addr flush dev vmm-br0"],
    "a machine taken out of the rules": ["nft delete element ip vmm machines { 172.16.0.2 }"],
    "a sender taken out": ["nft flush set bridge vmm senders"],
    "a forward taken out": ["nft flush map ip vmm ports_at"],
    "a stranger among the machines": ["nft add element ip vmm machines { 172.16.99.99 }"],
    "a stranger's forward": ["nft add element ip vmm ports { tcp . 99 : 172.16.0.2 . 99 }"],
    "a chain emptied": ["nft flush chain ip vmm forward"],
    "a rule added": ["nft insert rule ip vmm forward accept"],
    "a rule replaced by another": [f"nft replace rule ip vmm leaving handle $({HANDLE}) ip saddr 172.16.0.2 accept"],
    "all at once": ["nft flush ruleset", "ip link del vmm-br0"],
}


@pytest.fixture(scope="module")
def two(stocked: Host) -> Iterator[Host]:
    """Two machines that run, one of them with forwards; and rules and a bridge of someone else's."""
    stocked.run("ip", "link", "add", "other0", "type", "bridge")
    for name in ("one", "two"):
        stocked.vmm("create", name, *SMALL)
    stocked.vmm("port-forward", "add", "one", "127.0.0.1:8080:80")
    stocked.vmm("port-forward", "add", "one", "5353:53/udp")
    for name in ("one", "two"):
        stocked.start(name)
    # It would put back most of it within a second, before anyone else could notice.
    wait_for(stocked.supervisors, what="its supervisor")
    watching = stocked.supervisors()
    for pid in watching:
        os.kill(pid, signal.SIGSTOP)
    yield stocked
    for pid in watching:
        os.kill(pid, signal.SIGCONT)
    stocked.vmm("delete", "--all", "--force")
    stocked.run("nft", "flush", "ruleset")
    stocked.run("ip", "link", "del", "other0")
    stocked.vmm("teardown")


def surroundings(host: Host) -> tuple[str, str, str]:
    """Return how the machines' network looks, and what is someone else's."""
    taps = sorted(line.split("link/")[0].partition(": ")[2] for line in host.links().splitlines() if "vmm-ac" in line)
    bridge = [line for line in host.run("ip", "-o", "-4", "addr", "show", "vmm-br0").stdout.split() if "/" in line]
    others = rules(host, "other") + host.run("ip", "-o", "-d", "link", "show", "other0").stdout
    return rules(host), f"{taps} {bridge}", others


@pytest.mark.fault(29)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_network_is_restored_and_what_is_others_is_left_alone(two: Host, damage: str) -> None:
    pids = {row["name"]: row["pid"] for row in two.json("list")}
    two.run("nft", "-f", "-", input=FOREIGN)
    before = surroundings(two)
    for command in DAMAGES[damage]:
        two.run("sh", "-ec", command)
    # A flush takes what is others' too; they come back with it as they please.
    if "flush ruleset" in DAMAGES[damage][0]:
        two.run("nft", "-f", "-", input=FOREIGN)
    found = reconciled(two)
    assert found, "nobody noticed"
    assert {(repair["subject"], repair["done"]) for repair in found} == {("network", True)}
    assert surroundings(two) == before
    assert_in_order(two)
    assert {row["name"]: row["pid"] for row in two.json("list")} == pids


@pytest.mark.fault(29)
def test_a_firewall_that_begins_to_drop_is_noticed(two: Host) -> None:
    two.run("iptables", "-P", "FORWARD", "DROP")
    try:
        assert reconciled(two)
        assert (
            "--mark 0x20000000/0x20000000 -m comment --comment vmm -j ACCEPT"
            in two.run("iptables", "-S", "FORWARD").stdout
        )
        assert_in_order(two)
    finally:
        two.run("iptables", "-P", "FORWARD", "ACCEPT")
        two.run("iptables", "-F", "FORWARD")
