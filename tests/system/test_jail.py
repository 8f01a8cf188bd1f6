"""What confines an engine: its jail, its own user, its limits; and what is refused where they cannot hold."""

import contextlib
import grp
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_kernel
from hosts import LIBRARY, SMALL, VMM, Host, sh, status_of, wait_for

from conftest import add_kernel, add_tiny
from vmm import config
from vmm.host import cgroups, memory

pytestmark = pytest.mark.system

QEMU = (*SMALL[:-1], "qemu")
NOBODY = 65534
GROUP = "daemon"


@pytest.fixture(scope="module")
def stocked(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    directory = tmp_path_factory.mktemp("kernels")
    add_tiny(shared_host, directory)
    add_kernel(shared_host, directory, "eats", tiny_kernel.build(tiny_kernel.Then.EAT))
    return shared_host


@pytest.fixture
def lab(stocked: Host) -> Iterator[Host]:
    """The module's host, with no machine and no configuration of another test's."""
    yield stocked
    stocked.vmm("delete", "--all", "--force")
    shutil.rmtree(stocked.data_dir / "jails", ignore_errors=True)
    (stocked.data_dir / "config" / "config.toml").unlink(missing_ok=True)


def jail_of(host: Host, name: str) -> Path:
    return host.data_dir / "jails" / "firecracker" / host.machine(name)["id"]


def modes(*paths: Path) -> list[tuple[str, int, int]]:
    """Return mode, owner and group of each, as `ls` writes the first."""
    found = [path.lstat() for path in paths]
    return [(stat.filemode(there.st_mode), there.st_uid, there.st_gid) for there in found]


def assert_confined(pid: int) -> int:
    """Assert that no thread of an engine has a right, nor a way to any; return its user id."""
    uids = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        facts = status_of(f"{pid}/task/{task.name}")
        assert {facts[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}, facts["Name"]
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2"), facts["Name"]
        # Its group is its own too, and it is in no other.
        assert set(facts["Groups"].split()) <= {facts["Uid"].split()[0]}
        uids |= {*facts["Uid"].split(), *facts["Gid"].split()}
    assert len(uids) == 1
    uid = int(uids.pop())
    assert config.UIDS[0] <= uid <= config.UIDS[1]
    return uid


def test_a_firecracker_has_no_right_no_neighbour_and_nothing_but_its_own_files(lab: Host) -> None:
    pids = {}
    for name in ("one", "two"):
        lab.vmm("create", name, *SMALL)
        pids[name] = lab.start(name)
    uids = {name: assert_confined(pid) for name, pid in pids.items()}
    assert uids["one"] != uids["two"]
    for name, pid in pids.items():
        # The first process of a namespace, of which it sees nothing but itself.
        assert status_of(pid)["NSpid"].split() == [str(pid), "1"]
        assert not Path(f"/proc/{pid}/ns/pid").samefile("/proc/self/ns/pid")
        assert len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) == 1
        jail = jail_of(lab, name)
        root = Path(f"/proc/{pid}/root")
        assert root.samefile(jail / "root")
        own = "config.json dev disk0 firecracker firecracker.pid log run vmlinux"
        assert {path.name for path in root.iterdir()} == {f"{jail.name}.sock", *own.split()}
        assert list((root / "run").iterdir()) == []
        # Nothing was copied, and the kernel is everyone's to read and no one's to write.
        assert (root / "disk0").samefile(lab.data_dir / "vms" / name / "disk.ext4")
        assert (root / "vmlinux").samefile(lab.data_dir / "images" / "kernels" / "tiny" / "vmlinux")
        assert modes(root / "vmlinux", root / "disk0") == [("-rw-r--r--", 0, 0), ("-rw-------", uids[name], uids[name])]
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max open files +1024 +1024 ", limits, re.MULTILINE)
        assert re.search(rf"^Max file size +{256 << 20} +{256 << 20} ", limits, re.MULTILINE)
    lab.vmm("stop", "--all", "--force")
    assert list((lab.data_dir / "jails").glob("*/*")) == []


def test_a_qemu_has_no_right_either_and_no_monitor(lab: Host) -> None:
    uids = set()
    for name in ("one", "two"):
        lab.vmm("create", name, *QEMU)
        pid = lab.start(name)
        uids.add(assert_confined(pid))
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert b"-monitor" not in arguments
        assert [word for word in arguments if word.startswith(b"unix:")] == [
            f"unix:{lab.data_dir}/sockets/{name}.sock,server=on,wait=off".encode()
        ]
    assert len(uids) == 2


@pytest.mark.fault(24)
@pytest.mark.parametrize("engine", ["firecracker", "qemu"])
@pytest.mark.parametrize("umask", [0, 0o777], ids=oct)
def test_no_mode_is_wider_than_it_must_be_whatever_the_umask(lab: Host, engine: str, umask: int) -> None:
    lab.vmm("create", "m", *SMALL[:-1], engine, umask=umask)
    lab.vmm("start", "m", umask=umask)
    pid = lab.machine("m")["pid"]
    uid = int(status_of(pid)["Uid"].split()[0])
    data = lab.data_dir
    secret = [data / "vms" / "m" / "disk.ext4", data / "vms" / "m" / "ssh_host_ed25519_key", *data.glob("logs/m.*")]
    assert len(secret) == 4
    for path in (*secret, *data.glob("sockets/*"), *data.glob("state/locks/*"), data / "state" / "supervisor.lock"):
        assert path.lstat().st_mode & 0o077 == 0, path
    assert modes(data / "sockets") == [("drwx------", 0, 0)]
    (socket,) = data.glob("sockets/*")
    assert modes(socket)[0][1:] == (0, 0)
    for path in (data, data / "vms", data / "vms" / "m", data / "logs", data / "state"):
        assert path.stat().st_mode & 0o022 == 0, path
    if engine == "firecracker":
        jail = jail_of(lab, "m")
        assert modes(jail.parents[1], jail.parent, jail, jail / "root") == [
            *[("drwx------", 0, 0)] * 3,
            ("drwx------", uid, uid),
        ]
        assert modes(socket) == [("srw-------", 0, 0)]
        for path in jail.rglob("*"):
            assert path.name in ("vmlinux", "firecracker") or path.lstat().st_mode & 0o077 == 0, path


CONNECT = """
import os, socket, sys
gid, path = int(sys.argv[1]), sys.argv[2]
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(65534, 65534, 65534)
socket.socket(socket.AF_UNIX).connect(path)
"""


@pytest.mark.fault(24)
@pytest.mark.parametrize("engine", ["firecracker", "qemu"])
def test_the_api_is_for_a_group_where_one_is_configured_and_for_no_one_else(lab: Host, engine: str) -> None:
    for parent in (lab.data_dir, *lab.data_dir.parents):
        if parent != Path("/tmp") and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    gid, path = grp.getgrnam(GROUP).gr_gid, lab.data_dir / "sockets" / "m.sock"

    def connects(group: int) -> bool:
        done = sh(sys.executable, "-I", "-c", CONNECT, str(group), str(path), check=False)
        assert done.returncode == 0 or "Permission denied" in done.stderr, done.stderr
        return done.returncode == 0

    lab.vmm("create", "m", *SMALL[:-1], engine)
    lab.start("m")
    assert (connects(gid), connects(NOBODY)) == (False, False)
    lab.vmm("config", "set", "socket_group", GROUP)
    lab.vmm("restart", "m", "--force")
    assert modes(path) == [("srw-rw----", 0, gid)]
    assert (connects(gid), connects(NOBODY)) == (True, False)
    lab.vmm("config", "set", "socket_group", "nosuchgroup")
    assert "There is no group 'nosuchgroup'" in lab.fails("restart", "m", "--force")
    (lab.data_dir / "config" / "config.toml").unlink()
    lab.start("m")
    assert modes(path.parent)[0][0] == "drwx------"
    assert (connects(gid), connects(NOBODY)) == (False, False)


# The device itself is opened before: on many hosts every user may.
OPEN_TAP = """
import fcntl, os, struct, sys
tun, uid = os.open("/dev/net/tun", os.O_RDWR), int(sys.argv[2])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
fcntl.ioctl(tun, 0x400454CA, struct.pack("=16sH22x", sys.argv[1].encode(), 0x0002 | 0x1000 | 0x4000))
"""


def test_a_tap_is_opened_by_its_machine_alone(lab: Host) -> None:
    for name in ("one", "two"):
        lab.vmm("create", name, *SMALL)
        lab.start(name)
    (supervisor,) = lab.supervisors()
    one, two = (lab.machine(name) for name in ("one", "two"))
    own, other = (int(status_of(shown["pid"])["Uid"].split()[0]) for shown in (one, two))

    def opens(uid: int) -> subprocess.CompletedProcess[str]:
        return lab.run(sys.executable, "-I", "-c", OPEN_TAP, one["tap_device"], str(uid), check=False)

    assert "Device or resource busy" in opens(own).stderr
    # With its engine gone, and nobody there yet to take the tap away, it is for the taking.
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(one["pid"], signal.SIGKILL)
        wait_for(lambda: opens(own).returncode == 0)
        for uid in (other, NOBODY):
            assert "Operation not permitted" in opens(uid).stderr
    finally:
        os.kill(supervisor, signal.SIGCONT)


def test_without_a_jail_it_is_roots_and_every_start_says_so_loudly(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL, "--no-jail")
    assert lab.machine("m")["jail"] is False
    for arguments in (("start", "m"), ("restart", "m", "--force"), ("restart", "m", "--force", "--quiet")):
        assert "Warning: m runs WITHOUT A JAIL" in lab.vmm(*arguments).stderr
    facts = status_of(lab.machine("m")["pid"])
    assert set(facts["Uid"].split()) == {"0"}
    # Its own filters are on all the same.
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    assert not (lab.data_dir / "jails").exists()
    assert "m: run as root, without a jail" in jails(lab)["detail"]
    assert "It is running" in lab.fails("set", "m", "--jail")
    lab.vmm("stop", "m", "--force")
    lab.vmm("set", "m", "--jail")
    assert lab.machine("m")["jail"] is True
    assert "JAIL" not in lab.vmm("start", "m").stderr
    assert_confined(lab.machine("m")["pid"])
    assert jails(lab)["status"] == "ok"


def jails(host: Host) -> dict[str, str]:
    """Return what doctor says of the jails."""
    said = json.loads(host.vmm("doctor", "--output", "json", check=False).stdout)
    (found,) = (check for check in said if check["name"] == "jails")
    return found


@pytest.fixture
def bait(tmp_path: Path) -> Iterator[Path]:
    """A directory of root's that someone wants vmm to change; in the end nothing of it is changed."""
    directory = tmp_path / "bait"
    directory.mkdir(mode=0o755)
    (directory / "shadow").write_text("root:*:\n")
    (directory / "shadow").chmod(0o640)
    before = _seen(directory)
    yield directory
    assert _seen(directory) == before


def _seen(directory: Path) -> dict[str, object]:
    found = {}
    for path in (directory, *directory.rglob("*")):
        if not os.path.lexists(path):
            continue
        there = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (there.st_mode, there.st_uid, there.st_gid, there.st_ino, there.st_mtime_ns, content)
    return found


def refused(host: Host, name: str = "m") -> str:
    """Start a machine, which is refused and leaves nothing but its reason."""
    said = host.fails("start", name)
    shown = host.machine(name)
    assert (shown["state"], shown["pid"]) == ("failed", None)
    assert shown["reason"].split(".")[0] in said
    assert shown["tap_device"] not in host.links()
    assert shown["id"] not in cgroups.names()
    assert list(host.data_dir.glob("sockets/*")) == []
    return said


@pytest.mark.fault(26)
@pytest.mark.parametrize("way", ["owned by another", "writable by all", "a link to another's", "below a shared one"])
def test_a_place_for_jails_that_others_can_write_to_is_refused(lab: Host, bait: Path, tmp_path: Path, way: str) -> None:
    lab.vmm("create", "m", *SMALL)
    base = lab.data_dir / "jails"
    match way:
        case "owned by another":
            base.mkdir()
            os.chown(base, NOBODY, NOBODY)
            (base / "firecracker").symlink_to(bait)
        case "writable by all":
            base.mkdir()
            base.chmod(0o777)
            (base / "firecracker").symlink_to(bait)
        case "a link to another's":
            elsewhere = tmp_path / "elsewhere"
            elsewhere.mkdir()
            os.chown(elsewhere, NOBODY, NOBODY)
            base.symlink_to(elsewhere)
        case "below a shared one":
            lab.data_dir.chmod(0o775)
    before = _seen(base)
    said = refused(lab)
    assert "The data directory is open to other users" in said
    assert "others can write there" in said
    if way == "below a shared one":
        lab.data_dir.chmod(0o755)
    else:
        assert _seen(base) == before
        sh("rm", "-r", str(base))
    lab.start("m")


@pytest.mark.fault(26)
def test_what_only_looks_runs_nothing_that_others_may_have_chosen(lab: Host, tmp_path: Path) -> None:
    lab.vmm("create", "m", *SMALL)
    lab.start("m")
    program, ran = tmp_path / "program", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\necho ran >> {ran}\necho Firecracker v1.15.1\n")
    program.chmod(0o755)
    for supervisor in lab.supervisors():
        os.kill(supervisor, signal.SIGKILL)
    file = lab.data_dir / "config" / "config.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'firecracker = "{program}"\nqemu = "{program}"\n')
    os.chown(file.parent, NOBODY, NOBODY)
    os.chown(lab.data_dir, NOBODY, NOBODY)
    try:
        checks = {
            check["name"]: check for check in json.loads(lab.vmm("doctor", "--output", "json", check=False).stdout)
        }
        assert "others can write there" in checks["firecracker"]["detail"]
        assert "others can write there" in checks["data directory"]["detail"]
        lab.vmm("version", "--output", "json")
        lab.vmm("list")
        assert not ran.exists()
        assert lab.supervisors() == []
    finally:
        os.chown(lab.data_dir, 0, 0)
        shutil.rmtree(file.parent)
    lab.vmm("list")
    wait_for(lab.supervisors)


@pytest.mark.fault(26)
@pytest.mark.parametrize("way", ["a link", "a directory", "a directory with a link in it", "a file", "a link above"])
def test_a_jail_that_others_prepared_is_refused_and_left_alone(lab: Host, bait: Path, way: str) -> None:
    """As they could have while the place was still open to them."""
    lab.vmm("create", "m", *SMALL)
    jail = jail_of(lab, "m")
    place = jail.parent if way == "a link above" else jail
    place.parent.mkdir(parents=True, mode=0o700)
    match way:
        case "a link" | "a link above":
            place.symlink_to(bait)
        case "a file":
            place.write_text("here first")
        case _:
            place.mkdir()
            if "link" in way:
                (place / "root").symlink_to(bait)
    os.chown(place, NOBODY, NOBODY, follow_symlinks=False)
    before = _seen(place)
    said = refused(lab)
    assert "Something that is not vmm's stands where a jail is to be" in said
    assert str(place) in said
    assert _seen(place) == before
    # It is not taken for something that could be mended without a look at it.
    told = lab.vmm("reconcile", check=False)
    assert told.returncode == 1, told
    assert "NOT MENDED" in told.stdout
    assert _seen(place) == before
    sh("rm", "-r", str(place))
    lab.start("m")


@pytest.mark.fault(26)
def test_what_a_start_that_was_killed_left_of_its_jail_is_replaced(lab: Host, bait: Path) -> None:
    lab.vmm("create", "m", *SMALL)
    jail = jail_of(lab, "m")
    (jail / "root" / "dev" / "net").mkdir(parents=True)
    os.chown(jail / "root", config.UIDS[0] + 2, config.UIDS[0] + 2)
    (jail / "root" / "firecracker.pid").write_text("1\n")
    (jail / "root" / "vmlinux").symlink_to(bait / "shadow")
    (jail / "root" / "log").symlink_to(bait / "shadow")
    (jail / "root" / "dev" / "net" / "tun").symlink_to(bait)
    pid = lab.start("m")
    assert Path(f"/proc/{pid}/root/vmlinux").samefile(lab.data_dir / "images" / "kernels" / "tiny" / "vmlinux")
    assert_confined(pid)


@contextlib.contextmanager
def a_tmpfs(*where: Path) -> Iterator[None]:
    mounted: list[Path] = []
    try:
        for path in where:
            sh("mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "vmmtest", str(path))
            mounted.append(path)
        yield
    finally:
        for path in reversed(mounted):
            sh("umount", str(path))


def mounts_below(host: Host) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split(" ")[1] for line in lines if str(host.data_dir) in line]


def test_what_cannot_be_linked_is_bound_and_no_mount_stays(lab: Host) -> None:
    """Disks and kernels on file systems of their own, as on a host with a large disk beside its small one."""
    vms, kernel = lab.data_dir / "vms", lab.data_dir / "images" / "kernels" / "tiny"
    content = {path.name: path.read_bytes() for path in kernel.iterdir()}
    with a_tmpfs(vms, kernel):
        for name, data in content.items():
            (kernel / name).write_bytes(data)
        kernel.chmod(0o755)
        lab.vmm("create", "m", *SMALL)
        pid = lab.start("m")
        uid = assert_confined(pid)
        for inside, outside, way in (("vmlinux", kernel / "vmlinux", "ro"), ("disk0", vms / "m" / "disk.ext4", "rw")):
            assert Path(f"/proc/{pid}/root/{inside}").samefile(outside)
            mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
            (line,) = (line for line in mounts if f" /{inside} " in line)
            assert way in line.split(" ")[5].split(",")
        assert modes(vms / "m" / "disk.ext4")[0] == ("-rw-------", uid, uid)
        wait_for(lambda: "tiny guest" in lab.console("m"))
        assert len(mounts_below(lab)) == 4
        lab.vmm("restart", "m", "--force")
        assert len(mounts_below(lab)) == 4
        # Of one that was killed they are taken off as well.
        os.kill(lab.machine("m")["pid"], signal.SIGKILL)
        wait_for(lambda: len(mounts_below(lab)) == 2, what="the end of the jail's mounts")
        lab.start("m")
        lab.vmm("delete", "m", "--force")
        assert mounts_below(lab) == [str(vms), str(kernel)]


@pytest.mark.fault(27)
def test_a_hole_is_named_by_the_first_start_and_by_doctor_ever_after(tiny: Host) -> None:
    for name in ("one", "two"):
        tiny.vmm("create", name, *SMALL)
    assert "CVE-2026-1386" in tiny.vmm("start", "one").stderr
    assert tiny.vmm("start", "two").stderr == ""
    assert tiny.vmm("restart", "one", "--force").stderr == ""
    for _ in range(2):
        (jailer,) = (check for check in tiny.json("doctor") if check["name"] == "jailer")
        assert jailer["status"] == "warning"
        assert "CVE-2026-1386" in jailer["detail"]
        assert jailer["fix"]


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("version", "doctor", "named"),
    [
        ("1.12.1", ("warning", "warning"), {"CVE-2026-1386"}),
        ("1.14.0", ("warning", "warning"), {"CVE-2026-1386", "CVE-2026-5747"}),
        ("1.14.3", ("warning", "ok"), {"CVE-2026-5747"}),
        ("1.15.1", ("ok", "ok"), set()),
        ("1.16.1", ("ok", "ok"), set()),
    ],
)
def test_each_release_is_known_by_what_it_says_of_itself(
    lab: Host, tmp_path: Path, version: str, doctor: tuple[str, str], named: set[str]
) -> None:
    for name, called in (("firecracker", "Firecracker"), ("jailer", "Jailer")):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && exec echo "{called} v{version}"\nexec {LIBRARY}/bin/{name} "$@"\n'
        )
        program.chmod(0o755)
    lab.vmm("config", "set", "firecracker", str(tmp_path / "firecracker"))
    # Each is said once a host: as if this were another one.
    lab.vmm("list")
    with contextlib.suppress(Exception):
        lab.sql("DELETE FROM notes")
    # In a jail there is no shell to run the stand-in.
    lab.vmm("create", "m", *SMALL, "--no-jail")
    assert set(re.findall(r"CVE-\d+-\d+", lab.vmm("start", "m").stderr)) == named
    checks = {check["name"]: check for check in lab.json("doctor")}
    assert (checks["firecracker"]["status"], checks["jailer"]["status"]) == doctor
    assert version in checks["firecracker"]["detail"]


def test_without_the_jailer_it_is_refused_and_runs_only_when_told_to(lab: Host, tmp_path: Path) -> None:
    (tmp_path / "firecracker").symlink_to(LIBRARY / "bin" / "firecracker")
    lab.vmm("config", "set", "firecracker", str(tmp_path / "firecracker"))
    lab.vmm("create", "m", *SMALL)
    said = refused(lab)
    assert "Firecracker's jailer is not on this host" in said
    assert "vmm set m --no-jail" in said
    (jailer,) = (check for check in lab.json("doctor") if check["name"] == "jailer")
    assert jailer["status"] == "warning"
    lab.vmm("set", "m", "--no-jail")
    lab.start("m")


def cgroup_file(machine_id: str, v1: str, v2: str) -> str:
    """Return what a file of a machine's cgroup holds, whichever version the host has."""
    for hierarchy in cgroups._hierarchies():
        path = hierarchy.top / machine_id / (v1 if hierarchy.version == 1 else v2)
        if path.exists():
            return path.read_text().strip()
    raise AssertionError(f"no hierarchy has {v1} or {v2} for {machine_id}")


@pytest.mark.parametrize("engine", ["firecracker", "qemu"])
def test_limits_are_the_kernels_and_the_engine_is_under_them(lab: Host, engine: str) -> None:
    limits = ("--cpu-limit", "1.5", "--memory-limit", "200M", "--pids-limit", "20",
              "--io-read-bps", "10M", "--io-write-bps", "5M", "--io-read-iops", "300", "--io-write-iops", "200")  # fmt: skip
    lab.vmm("create", "m", *SMALL[:-1], engine, *limits)
    pid = lab.start("m")
    shown = lab.machine("m")
    assert shown["limits"] == {
        "cpus": 1.5, "memory_mib": 200, "pids": 20,
        "io_read_bps": 10 << 20, "io_write_bps": 5 << 20, "io_read_iops": 300, "io_write_iops": 200,
    }  # fmt: skip
    group = shown["id"]
    assert cgroups.members(group) == [pid]
    assert cgroup_file(group, "cpu.cfs_quota_us", "cpu.max").split()[0] == "150000"
    assert cgroup_file(group, "memory.limit_in_bytes", "memory.max") == str((128 + 200) << 20)
    assert cgroup_file(group, "pids.max", "pids.max") == "20"
    rates = [
        cgroup_file(group, f"blkio.throttle.{what}_device", "io.max")
        for what in ("read_bps", "write_bps", "read_iops", "write_iops")
    ]
    for rate, expected in zip(rates, (10 << 20, 5 << 20, 300, 200), strict=True):
        assert re.search(rf"[ =]{expected}\b", rate), rate
    lab.vmm("stop", "m", "--force")
    assert group not in cgroups.names()
    lab.vmm("set", "m", "--cpu-limit", "none", "--io-read-bps", "none", "--pids-limit", "30")
    pid = lab.start("m")
    assert lab.machine("m")["limits"].keys() == {
        "memory_mib", "pids", "io_write_bps", "io_read_iops", "io_write_iops",
    }  # fmt: skip
    assert cgroups.members(group) == [pid]
    assert cgroup_file(group, "cpu.cfs_quota_us", "cpu.max").split()[0] in ("-1", "max")
    assert cgroup_file(group, "pids.max", "pids.max") == "30"
    assert not re.search(rf"[ =]{10 << 20}\b", cgroup_file(group, "blkio.throttle.read_bps_device", "io.max"))


@pytest.mark.fault(13, 30)
def test_an_engine_that_wants_more_memory_than_it_may_have_fails_for_that_reason(lab: Host) -> None:
    lab.vmm("create", "m", *QEMU, "--kernel", "eats", "--memory-limit", "16M")
    # The guest writes to all of its memory, and what qemu needs besides is more than the least that may be given.
    lab.vmm("start", "m", check=False)
    wait_for(lambda: lab.events("m")[-1][0] == "failed")
    reason = lab.machine("m")["reason"]
    assert "more memory than --memory-limit leaves it" in reason
    assert lab.events("m")[-1] == ("failed", reason)
    lab.vmm("set", "m", "--memory-limit", "256M")
    pid = lab.start("m")
    wait_for(lambda: int(status_of(pid)["VmRSS"].split()[0]) > 128 << 10, what="the guest's memory")
    assert lab.machine("m")["state"] == "running"


def in_mounts_of_its_own(host: Host, first: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run vmm in a mount namespace after a line of shell, whatever it ends with."""
    return host.run(
        "unshare", "-m", "sh", "-c", f'{first} || exit 99; exec "$@"', "sh", *VMM, *arguments,
        check=False, env=host.environment,
    )  # fmt: skip


@pytest.mark.fault(40)
def test_limits_on_a_host_that_cannot_hold_them_are_refused_and_only_they(lab: Host) -> None:
    lab.vmm("create", "limited", *SMALL, "--cpu-limit", "0.5")
    lab.vmm("create", "free", *SMALL)
    hidden = "mount -t tmpfs none /sys/fs/cgroup"
    done = in_mounts_of_its_own(lab, hidden, "start", "limited")
    assert done.returncode == 1, done
    assert "Error: CPU limits cannot be set on this host" in done.stderr
    assert "To mend it: Leave --cpu-limit out" in done.stderr
    assert lab.machine("limited")["state"] == "failed"
    assert lab.machine("limited")["tap_device"] not in lab.links()
    done = in_mounts_of_its_own(lab, hidden, "start", "free")
    assert done.returncode == 0, done
    assert_confined(lab.machine("free")["pid"])


def test_memory_that_the_host_has_not_is_refused_with_the_figures(lab: Host, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal:  {300 << 10} kB\nMemFree:  {300 << 10} kB\n")
    small = f"mount --bind {tmp_path}/meminfo /proc/meminfo"
    names = ("a", "b", "c", "d")
    for name in names:
        lab.vmm("create", name, *SMALL)
    # With room for two of four: it is never given out twice, however they come.
    racing = [
        subprocess.Popen(
            [*lab.prefix, "unshare", "-m", "sh", "-c", f'{small}; exec "$@"', "sh", *VMM, "start", name],
            env=lab.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for name in names
    ]  # fmt: skip
    said = [process.communicate(timeout=60)[1] for process in racing]
    assert sorted(process.returncode for process in racing) == [0, 0, 1, 1], said
    running = [name for name in names if lab.machine(name)["state"] == "running"]
    left, other = (name for name in names if name not in running)
    assert len(running) == 2
    done = in_mounts_of_its_own(lab, small, "start", left)
    assert f"Error: The host has not the memory for the machine '{left}'." in done.stderr
    assert "It wants 128 MiB; those that run have 256 of the host's 300 MiB." in done.stderr
    assert "--overcommit" in done.stderr
    assert lab.machine(left)["state"] == "created"
    # One whose engine is gone has none, whether anyone has noted its end or not.
    (supervisor,) = lab.supervisors()
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(lab.machine(running[0])["pid"], signal.SIGKILL)
        wait_for(lambda: lab.machine(running[0])["state"] == "failed")
        assert lab.sql("SELECT state FROM machines WHERE name = ?", running[0]) == [("running",)]
        assert in_mounts_of_its_own(lab, small, "start", left).returncode == 0
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert in_mounts_of_its_own(lab, small, "start", other).returncode == 1
    assert in_mounts_of_its_own(lab, small, "start", other, "--overcommit").returncode == 0


def test_the_hosts_real_memory_is_what_counts(lab: Host) -> None:
    total = memory.total_mib()
    if total >= 65536:
        pytest.skip(f"no machine can be larger than this host's {total} MiB")
    lab.vmm("create", "m", *SMALL, "--memory", "65536")
    assert f"It wants 65536 MiB; those that run have 0 of the host's {total} MiB." in lab.fails("start", "m")


@pytest.mark.fault(33)
def test_a_range_of_user_ids_without_a_place_refuses_the_machine_and_leaves_nothing(lab: Host) -> None:
    first = config.UIDS[0]
    lab.vmm("config", "set", "uid_range", f"{first}-{first + 2}")
    lab.vmm("create", "fits", *SMALL)
    said = lab.fails("create", "m", *SMALL)
    assert f"uid_range is {first}-{first + 2}" in said
    assert "vmm config set uid_range" in said
    assert [row["name"] for row in lab.json("list")] == ["fits"]
    assert [path.name for path in (lab.data_dir / "vms").iterdir()] == ["fits"]
    assert_confined(lab.start("fits"))
    said = lab.fails("config", "set", "uid_range", f"{first}-{first + 9}")
    assert "Machines run with user ids of the range that this would change." in said
    assert f'uid_range = "{first}-{first + 2}"' in (lab.data_dir / "config" / "config.toml").read_text()
    # One without a jail needs none.
    lab.vmm("create", "m", *SMALL, "--no-jail")
