"""The kernel's own cgroups: what a group is to hold, it holds. Version 2 runs in a guest where this host has version 1."""

import contextlib
import importlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts import Host, sh, wait_for

from vmm.errors import HostError
from vmm.host import cgroups
from vmm.host.cgroups import Ceiling, Group, Throttle
from vmm.model.machine import Limits

pytestmark = pytest.mark.system

ROOT = Path("/sys/fs/cgroup")
V1 = cgroups.version() == 1
_numbers = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    """The id of a machine that no host has; nothing of it may stay."""
    if cgroups.version() == 0:
        pytest.skip("no cgroups are mounted for writing here")
    made = f"{os.getpid():016x}{next(_numbers):016x}"
    assert made not in cgroups.names()
    yield made
    assert made not in cgroups.names()
    # The last one takes vmm's own with it.
    if not cgroups.names():
        assert [*ROOT.glob("vmm*"), *ROOT.glob("*/vmm*")] == []


@pytest.fixture
def child(name: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return what starts a Python program in a group; all of them are ended, and the group is removed, after the test."""
    with contextlib.ExitStack() as ended:
        ended.callback(cgroups.remove, name)

        def start(group: Group, program: str) -> subprocess.Popen[bytes]:
            doors = cgroups.join(group)

            def enter() -> None:
                for door in doors:
                    os.write(door, b"0")

            try:
                process = subprocess.Popen(
                    [sys.executable, "-S", "-u", "-c", program],
                    preexec_fn=enter,  # noqa: PLW1509  # no other thread runs while a child is started
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            finally:
                for door in doors:
                    os.close(door)
            ended.callback(_end, process)
            return process

        yield start


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


WAIT = "import sys; print('in', flush=True); sys.stdin.read()"
FORK_BOMB = """
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError:
    print(made, flush=True)
    time.sleep(60)
"""
ALLOCATE = "import sys; data = bytearray(int(sys.stdin.readline())); print(len(data), flush=True)"


def value(group: Group, file: str) -> str:
    """Return what a file of the group says, in whichever hierarchy it is."""
    found = [directory / file for directory in group.directories if (directory / file).exists()]
    assert len(found) == 1, file
    return found[0].read_text().strip()


def cpu(group: Group) -> str:
    if V1:
        return f"{value(group, 'cpu.cfs_quota_us')} {value(group, 'cpu.cfs_period_us')}".replace("-1", "max")
    return value(group, "cpu.max")


def memory(group: Group) -> int | None:
    said = value(group, "memory.limit_in_bytes" if V1 else "memory.max")
    return None if said == "max" or int(said) > 1 << 60 else int(said)


def test_a_group_without_limits_has_its_processes_and_limits_nothing(name: str, child) -> None:
    group = cgroups.make(name, Ceiling())
    assert (cpu(group), memory(group), value(group, "pids.max")) == ("max 100000", None, "max")
    for directory in group.directories:
        assert directory.stat().st_mode & 0o777 == 0o755
    process = child(group, WAIT)
    assert process.stdout.readline() == b"in\n"
    assert cgroups.members(name) == [process.pid]
    assert name in cgroups.names()
    # In every hierarchy, by the kernel's own word.
    own = Path(f"/proc/{process.pid}/cgroup").read_text()
    assert own.count(f"/vmm/{name}\n") == len(group.directories)
    assert not cgroups.ended_by_oom(name)


def test_nobody_else_is_moved(name: str, child) -> None:
    before = Path("/proc/self/cgroup").read_text()
    process = child(cgroups.make(name, Ceiling()), WAIT)
    process.stdout.readline()
    assert Path("/proc/self/cgroup").read_text() == before


def test_the_pids_limit_stops_a_fork_bomb(name: str, child) -> None:
    group = cgroups.make(name, Ceiling(pids=20))
    process = child(group, FORK_BOMB)
    assert process.stdout.readline() == b"19\n"
    pids = cgroups.members(name)
    assert len(pids) == 20
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_the_memory_limit_ends_what_takes_more_and_that_is_told(name: str, child) -> None:
    group = cgroups.make(name, Ceiling(memory_bytes=64 << 20))
    assert memory(group) == 64 << 20
    modest = child(group, ALLOCATE)
    assert modest.communicate(b"16000000\n")[0] == b"16000000\n"
    assert not cgroups.ended_by_oom(name)
    greedy = child(group, ALLOCATE)
    assert greedy.communicate(b"200000000\n")[0] == b""
    assert greedy.returncode == -signal.SIGKILL
    assert cgroups.ended_by_oom(name)
    # The next run of the machine starts from nothing.
    cgroups.make(name, Ceiling(memory_bytes=64 << 20))
    assert not cgroups.ended_by_oom(name)


def test_the_cpu_limit_holds(name: str, child) -> None:
    group = cgroups.make(name, Ceiling(cpu_quota_us=20_000))
    assert cpu(group) == "20000 100000"
    # What the interpreter's own start took is not counted: emulated, that is half a second.
    spin = (
        "import time; began = time.process_time(); end = time.monotonic() + 1\n"
        "while time.monotonic() < end: pass\nprint(time.process_time() - began)"
    )
    said = child(group, spin).communicate()[0]
    # A fifth of a second, and the one period that was under way.
    assert 0.05 < float(said) < 0.5


def whole_disk(path: Path) -> str:
    """Return MAJOR:MINOR of the disk that holds a file; skip where none does."""
    number = path.stat().st_dev
    directory = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if os.major(number) == 0 or not directory.exists():
        pytest.skip("temporary files lie on no device here")
    directory = directory.resolve()
    return ((directory.parent if (directory / "partition").exists() else directory) / "dev").read_text().strip()


def test_the_io_limit_holds_on_the_device_of_the_disk(name: str, child, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(8 << 20))
    os.sync()
    device = whole_disk(disk)
    ceiling = cgroups.ceiling(Limits(io_read_bps=2 << 20, io_write_iops=500), guest_memory_mib=128, disk=disk)
    assert ceiling.io == (Throttle(device=device, read_bps=2 << 20, write_iops=500),)
    group = cgroups.make(name, ceiling)
    assert throttles(group, device) == {"rbps": str(2 << 20), "wiops": "500"}
    read = f"""
import mmap, os, time
fd, page, start = os.open({str(disk)!r}, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 1 << 20), time.monotonic()
while os.readv(fd, [page]) == 1 << 20: pass
print(time.monotonic() - start)
"""
    # 8 MiB at 2 MiB/s.
    assert 3 < float(child(group, read).communicate()[0]) < 8
    assert float(subprocess.run([sys.executable, "-S", "-c", read], capture_output=True, check=True).stdout) < 1
    # With the first one still in it, the group of the next run has no limit that was not asked for again.
    waiting = child(group, WAIT)
    waiting.stdout.readline()
    again = cgroups.make(name, cgroups.ceiling(Limits(io_write_bps=4096), guest_memory_mib=128, disk=disk))
    assert throttles(again, device) == {"wbps": "4096"}


def throttles(group: Group, device: str) -> dict[str, str]:
    """Return the limits of a group on a device, by their names in version 2."""
    if not V1:
        line = next((line for line in value(group, "io.max").splitlines() if line.startswith(f"{device} ")), "")
        return {key: rate for key, rate in (pair.split("=") for pair in line.split()[1:]) if rate != "max"}
    files = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}
    said = {key: value(group, f"blkio.throttle.{file}_device").split() for key, file in files.items()}
    assert all(words == [] or words[0] == device for words in said.values())
    return {key: words[1] for key, words in said.items() if words}


ASK = r"""
import sys
from pathlib import Path
from vmm.errors import HostError
from vmm.host import cgroups
from vmm.model.machine import Limits
disk = Path(sys.argv[1])
disk.touch()
# Other limits have nothing to do with disks.
assert cgroups.ceiling(Limits(pids=9), guest_memory_mib=128, disk=disk) == cgroups.Ceiling(pids=9)
try:
    cgroups.ceiling(Limits(io_write_bps=1 << 20), guest_memory_mib=128, disk=disk)
except HostError as error:
    print(error.brief, error.details, error.resolution, sep="\n")
"""


@pytest.mark.parametrize("kind", [pytest.param("tmpfs", marks=pytest.mark.fault(40)), "overlay"])
def test_io_limits_on_a_file_system_without_a_device_are_refused(tmp_path: Path, kind: str) -> None:
    for directory in ("lower", "upper", "work", "mounted"):
        (tmp_path / directory).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    options = options if kind == "overlay" else "rw"
    done = in_mounts_of_its_own(
        f"mount -t {kind} -o {options} none {tmp_path}/mounted || exit 9", ASK, f"{tmp_path}/mounted/disk"
    )
    if done.returncode == 9:
        pytest.skip(f"this kernel mounts no {kind} here: {done.stderr}")
    brief, details, resolution = done.stdout.splitlines()
    assert "I/O limits cannot be set" in brief
    assert f"it is on {kind}" in details
    assert "Leave the I/O limits out" in resolution


def in_mounts_of_its_own(first: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a mount namespace after a line of shell."""
    shell = f'{first}; exec "$@"'
    done = sh("unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-c", program, *arguments, check=False)
    assert done.returncode in (0, 9), done.stderr
    return done


def test_hierarchies_that_another_mount_hides_are_not_there() -> None:
    """As in a network namespace of iproute2's, or in a container that mounts its own /sys over the host's."""
    program = """
from vmm.host import cgroups
print(cgroups.version(), cgroups.make("f" * 32, cgroups.Ceiling()).directories, cgroups.names())
cgroups.remove("f" * 32)
"""
    assert in_mounts_of_its_own("mount -t tmpfs none /sys || exit 1", program).stdout == "0 () []\n"


ASK_FOR_PIDS = """
from vmm.errors import HostError
from vmm.host import cgroups
print(cgroups.make("f" * 32, cgroups.Ceiling()).directories)
try:
    cgroups.make("f" * 32, cgroups.Ceiling(pids=9))
except HostError as error:
    print(error.brief, error.details)
print(cgroups.names())
"""


@pytest.mark.fault(40)
def test_hierarchies_that_are_read_only_refuse_limits_and_nothing_else() -> None:
    remount = "for m in $(grep -o '/sys/fs/cgroup[^ ]*' /proc/mounts); do mount -o remount,bind,ro $m || exit 1; done"
    said = in_mounts_of_its_own(remount, ASK_FOR_PIDS).stdout
    assert said.startswith("()\nProcess limits cannot be set on this host. No hierarchy mounted for writing has")


def test_hierarchies_that_we_may_not_write_refuse_limits_and_nothing_else(name: str) -> None:
    """As in a rootless container, which sees the host's groups and may make none."""
    nobody = "import os\nfrom vmm.host import cgroups\nos.setgid(65534)\nos.setuid(65534)\n"
    groups, refusal, names = sh(sys.executable, "-c", nobody + ASK_FOR_PIDS).stdout.splitlines()
    assert groups == "()"
    assert "cannot be made" in refusal
    assert "Permission denied" in refusal
    assert "f" * 32 not in names


def test_a_device_that_the_kernel_does_not_take_is_refused_and_leaves_nothing(name: str) -> None:
    with pytest.raises(HostError, match="I/O limits cannot be set") as caught:
        cgroups.make(name, Ceiling(pids=9, io=(Throttle(device="0:0", read_bps=1),)))
    assert "0:0" in caught.value.details
    assert name not in cgroups.names()


def test_a_group_with_a_live_process_stays_and_says_so(name: str, child) -> None:
    process = child(cgroups.make(name, Ceiling(pids=9)), WAIT)
    process.stdout.readline()
    start = time.monotonic()
    with pytest.raises(HostError, match="processes still run in it") as caught:
        cgroups.remove(name)
    assert 0.9 < time.monotonic() - start < 2
    assert str(process.pid) in caught.value.details
    assert str(process.pid) in caught.value.resolution
    assert cgroups.members(name) == [process.pid]
    assert process.poll() is None


def test_removing_waits_for_processes_that_are_going_away(name: str, child) -> None:
    process = child(cgroups.make(name, Ceiling()), WAIT)
    process.stdout.readline()
    timer = threading.Timer(0.3, process.kill)
    timer.start()
    try:
        # A zombie is no process any more: nobody reaps it before.
        cgroups.remove(name)
    finally:
        timer.join()
    assert name not in cgroups.names()
    assert cgroups.members(name) == []
    cgroups.remove(name)


def test_what_a_crash_left_is_taken_over(name: str, child) -> None:
    """Also with a process still in it, and with limits that are not asked for again."""
    full = Ceiling(cpu_quota_us=30_000, memory_bytes=64 << 20, pids=9)
    process = child(cgroups.make(name, full), WAIT)
    process.stdout.readline()
    for ceiling, expected in (
        (Ceiling(pids=7), ("max 100000", None, "7")),
        (Ceiling(memory_bytes=48 << 20), ("max 100000", 48 << 20, "max")),
        (Ceiling(memory_bytes=96 << 20, cpu_quota_us=250_000), ("250000 100000", 96 << 20, "max")),
        (Ceiling(), ("max 100000", None, "max")),
    ):
        group = cgroups.make(name, ceiling)
        assert (cpu(group), memory(group), value(group, "pids.max")) == expected
        assert cgroups.members(name) == [process.pid]


def killed_at(step: int, act: Callable[[], object]) -> int:
    """Do something in a process that is ended before its change number `step`; return 73, or 0 when it had fewer."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code, left = 1, step

    def mortal(change: Callable) -> Callable:
        def changed(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(73)
            return change(*args, **kwargs)

        return changed

    try:
        os.mkdir, os.rmdir, os.write = mortal(os.mkdir), mortal(os.rmdir), mortal(os.write)
        act()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.fault(1)
@pytest.mark.parametrize(("verb", "least"), [("make", 9), ("make again", 9), ("remove", 2)])
def test_killed_at_any_step_it_is_found_and_mended(name: str, verb: str, least: int) -> None:
    ceiling = Ceiling(cpu_quota_us=50_000, memory_bytes=64 << 20, pids=9)
    for step in itertools.count(1):
        if verb != "make":
            cgroups.make(name, ceiling)
        code = killed_at(
            step, (lambda: cgroups.remove(name)) if verb == "remove" else lambda: cgroups.make(name, ceiling)
        )
        group = cgroups.make(name, ceiling)
        assert (cpu(group), memory(group), value(group, "pids.max")) == ("50000 100000", 64 << 20, "9")
        killed_at(step, lambda: cgroups.remove(name))
        cgroups.remove(name)
        assert name not in cgroups.names()
        if code == 0:
            break
        assert code == 73
    assert step > (least if V1 else 2)


def test_groups_that_come_and_go_side_by_side_do_not_meet(name: str) -> None:
    """The last machine's group takes the group of all along, while the next one is made in it."""
    program = """
import sys
from vmm.host import cgroups
for _ in range(int(sys.argv[2])):
    for directory in cgroups.make(sys.argv[1], cgroups.Ceiling(pids=9)).directories:
        assert (directory / "cgroup.procs").read_text() == ""
    cgroups.remove(sys.argv[1])
"""
    argv = [sys.executable, "-c", program]
    racing = [subprocess.Popen([*argv, f"{name[:31]}{n}", "100"], stderr=subprocess.PIPE) for n in "abcd"]
    said = [process.communicate()[1].decode() for process in racing]
    assert [process.returncode for process in racing] == [0] * 4, said


@pytest.mark.skipif(V1, reason="version 2 alone forbids it")
def test_a_container_whose_own_processes_stand_in_the_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its root is no root to the kernel: a group that holds processes hands no controller of memory down."""
    cgroups.make(name, Ceiling())
    cgroups.remove(name)
    box = ROOT / f"box-{os.getpid()}"
    box.mkdir()
    (tmp_path / "mounts").write_text(f"cgroup2 {box} cgroup2 rw,nosuid 0 0\n")
    monkeypatch.setattr(cgroups, "_MOUNTS", tmp_path / "mounts")
    with subprocess.Popen([sys.executable, "-c", WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (box / "cgroup.procs").write_text(str(process.pid))
        assert cgroups.version() == 2
        with pytest.raises(HostError, match="Memory limits cannot be set") as caught:
            cgroups.make(name, Ceiling(memory_bytes=64 << 20))
        assert "busy" in caught.value.details
        assert "container" in caught.value.resolution
        assert not (box / "vmm").exists()
        assert (box / "cgroup.subtree_control").read_text() == ""
        # Without limits its machines have groups all the same, which hold their processes together.
        group = cgroups.make(name, Ceiling())
        assert group.directories == (box / "vmm" / name,)
        (group.directories[0] / "cgroup.procs").write_text(str(process.pid))
        assert cgroups.members(name) == [process.pid]
        process.kill()
    cgroups.remove(name)
    box.rmdir()


INIT = """#!{shell}
export PATH=/usr/bin:/bin:/sbin LC_ALL=C.UTF-8 PYTHONPATH=/vmm/src:/vmm/support:/vmm/site PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /vmm
{python} -m pytest --noconftest -p no:cacheprovider -q --color=no -m system -c pyproject.toml test_cgroups.py
echo "the tests ended with $?"
exec {python} -c "import time; time.sleep(100000)"
"""


@pytest.mark.skipif(not V1, reason="this host has version 2: all of this file has just run on it")
def test_all_of_this_with_version_2_in_a_guest(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "image.ext4"
    root_with_python(tmp_path / "root")
    sh("mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "root"), str(image), "256M")
    host.vmm("image", "import", str(image), "--name", "python")
    host.vmm("create", "inner", "--image", "python", "--engine", "qemu", "--cpus", "2", "--memory", "1024")
    host.vmm("start", "inner")
    console = host.data_dir / "logs" / "inner.console"

    def said() -> str:
        return console.read_text(errors="replace")

    wait_for(
        lambda: "the tests ended with" in said() or "Kernel panic" in said(), timeout=240, what="the guest's tests"
    )
    print(said()[-8000:])
    assert "the tests ended with 0" in said()
    passed = re.search(r"(\d+) passed, (\d+) skipped", said())
    assert passed is not None
    assert int(passed[1]) >= 15


def root_with_python(root: Path) -> None:
    """Make the root of a guest that runs these tests: this Python, pytest, a shell, mount, vmm, and what they link to."""
    python, library = Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib")).resolve()
    unwanted = shutil.ignore_patterns("test", "idlelib", "lib2to3", "tkinter", "ensurepip", "config-*", "dist-packages")
    shutil.copytree(library, root / str(library)[1:], ignore=unwanted)
    for package in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        source = Path(importlib.import_module(package).__file__ or "").parent
        shutil.copytree(source, root / "vmm" / "site" / package)
    shutil.copy(source.parent / "py.py", root / "vmm" / "site")
    tree = Path(__file__).parents[2]
    shutil.copytree(tree / "src", root / "vmm" / "src")
    shutil.copytree(tree / "tests" / "support", root / "vmm" / "support")
    shutil.copy(tree / "pyproject.toml", root / "vmm")
    shutil.copy(__file__, root / "vmm")
    programs = [python, *(Path(shutil.which(name) or name) for name in ("sh", "grep", "mount", "unshare"))]
    for path in programs:
        copied(path, root)
    linked = sh("ldd", *map(str, [*programs, *(library / "lib-dynload").glob("*.so")])).stdout
    for path in set(re.findall(r"\s(/\S+) \(0x", linked)):
        copied(Path(path), root)
    for directory in ("dev", "proc", "sys", "tmp", "etc", "root"):
        (root / directory).mkdir()
    init = root / "sbin" / "init"
    init.parent.mkdir()
    init.write_text(INIT.format(python=python, shell=programs[1]))
    init.chmod(0o755)


def copied(path: Path, root: Path) -> None:
    target = root / str(path)[1:]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)
