"""Groups on made-up tables of mounts and directories; tests/system/test_cgroups.py has the kernel's own."""

import os
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.host import ceilings, cgroups
from vmm.host.cgroups import Ceiling, Group, Throttle
from vmm.model.machine import Limits

NAME = "0123456789abcdef" * 2
SOME = Throttle(device="254:0", read_bps=1000, write_iops=20)
ALL = Ceiling(cpu_quota_us=150_000, memory_bytes=192 << 20, pids=64, io=(SOME,))


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what makes a table of mounts: one line for each "KIND DIRECTORY OPTIONS", the directories in tmp_path."""

    def table(*mounts: str) -> Path:
        lines = ["sysfs /sys sysfs rw,nosuid 0 0"]
        for mount in mounts:
            kind, directory, options = mount.split(" ")
            (tmp_path / directory).mkdir(exist_ok=True)
            if kind == "cgroup":
                (tmp_path / directory / "tasks").touch()
            lines.append(f"{kind} {tmp_path}/{directory} {kind} {options} 0 0")
        path = tmp_path / "mounts"
        path.write_text("\n".join(lines) + "\n")
        monkeypatch.setattr(cgroups, "_MOUNTS", path)
        return tmp_path

    return table


def v2(root: Path, controllers: str) -> Path:
    (root / "cgroup.controllers").write_text(controllers + "\n")
    return root


def in_three_parts(error: HostError) -> None:
    assert error.brief.endswith(".")
    assert error.details
    assert error.resolution


def left(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("vmm*"))


def test_the_version_is_where_the_controllers_are(mounted) -> None:
    mounted()
    assert cgroups.version() == 0
    mounted("cgroup cpu,cpuacct rw,nosuid,cpu,cpuacct", "cgroup memory rw,memory", "cgroup pids rw,pids")
    assert cgroups.version() == 1
    root = mounted("cgroup2 unified rw,nosuid")
    v2(root / "unified", "cpuset cpu io memory hugetlb pids")
    assert cgroups.version() == 2
    # As systemd lays it out with both: version 2 is there, and has nothing.
    root = mounted("cgroup2 unified rw", "cgroup memory rw,memory", "cgroup systemd rw,name=systemd")
    v2(root / "unified", "hugetlb")
    assert cgroups.version() == 1
    v2(root / "unified", "cpu pids")
    assert cgroups.version() == 2


def test_what_another_mount_hides_is_not_there(mounted) -> None:
    root = mounted("cgroup memory rw,memory", "cgroup2 all rw")
    (root / "memory/tasks").unlink()
    assert cgroups.version() == 0
    assert cgroups.make(NAME, Ceiling()) == Group(directories=())
    cgroups.remove(NAME)
    assert left(root) == []


def test_what_is_read_only_is_not_there(mounted) -> None:
    root = mounted("cgroup2 all ro,nosuid", "cgroup memory ro,memory")
    v2(root / "all", "cpu io memory pids")
    assert cgroups.version() == 0
    assert cgroups.make(NAME, Ceiling()) == Group(directories=())
    assert left(root) == []


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("ceiling", "word"),
    [
        (Ceiling(cpu_quota_us=50_000), "--cpu-limit"),
        (Ceiling(memory_bytes=1 << 28), "--memory-limit"),
        (Ceiling(pids=10), "--pids-limit"),
        (Ceiling(io=(SOME,)), "--io"),
    ],
    ids=["cpu", "memory", "pids", "io"],
)
@pytest.mark.parametrize("host", ["no cgroups", "read-only", "version 1 without it", "version 2 without it"])
def test_a_limit_whose_controller_the_kernel_lacks_is_refused_before_anything_is_made(
    mounted, ceiling: Ceiling, word: str, host: str
) -> None:
    others = {"cpu", "memory", "pids", "io"} - ceiling.controllers
    if host == "no cgroups":
        root = mounted()
    elif host == "version 1 without it":
        root = mounted(*(f"cgroup {name} rw,{name.replace('io', 'blkio')}" for name in others))
    else:
        root = mounted(f"cgroup2 all {'ro' if host == 'read-only' else 'rw'},nosuid")
        v2(root / "all", " ".join(others if host != "read-only" else {"cpu", "memory", "pids", "io"}))
    with pytest.raises(HostError, match="limits cannot be set on this host") as caught:
        cgroups.make(NAME, ceiling)
    in_three_parts(caught.value)
    assert word in caught.value.resolution
    assert left(root) == []


def test_without_limits_a_machine_needs_no_controller(mounted) -> None:
    root = mounted("cgroup memory rw,memory")
    assert cgroups.make(NAME, Ceiling()).directories == (root / "memory/vmm" / NAME,)
    mounted()
    group = cgroups.make(NAME, Ceiling())
    assert group.directories == ()
    assert cgroups.join(group) == ()


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "ceiling", [Ceiling(cpu_quota_us=50_000), Ceiling(io=(SOME,))], ids=["bandwidth", "throttling"]
)
def test_a_controller_that_the_kernel_has_by_half_is_refused_too(mounted, ceiling: Ceiling) -> None:
    """CONFIG_CFS_BANDWIDTH or CONFIG_BLK_DEV_THROTTLING off: the controller is there, its file is not."""
    root = mounted("cgroup cpu rw,cpu", "cgroup memory rw,memory", "cgroup pids rw,pids", "cgroup blkio rw,blkio")
    with pytest.raises(HostError, match="limits cannot be set") as caught:
        cgroups.make(NAME, ceiling)
    in_three_parts(caught.value)
    assert "No such file" in caught.value.details
    assert left(root) == []


def test_a_controller_that_is_not_handed_down_is_refused_when_asked_for(mounted) -> None:
    """A subtree_control that takes words and does not act on them."""
    root = v2(mounted("cgroup2 all rw") / "all", "cpu memory pids")
    (root / "vmm").mkdir()
    for directory in (root, root / "vmm"):
        (directory / "cgroup.subtree_control").write_text("")
    with pytest.raises(HostError, match="Memory limits cannot be set") as caught:
        cgroups.make(NAME, Ceiling(memory_bytes=1 << 28))
    assert "subtree_control" in caught.value.details
    (root / "vmm").mkdir(exist_ok=True)
    assert not (root / "vmm" / NAME).exists()


def test_one_group_is_in_all_that_is_mounted_whatever_is_mounted_together(mounted) -> None:
    root = mounted("cgroup cpu,cpuacct rw,cpu,cpuacct", "cgroup memory,pids rw,memory,pids", "cgroup blkio rw,blkio")
    group = cgroups.make(NAME, Ceiling())
    assert group.directories == (root / "cpu,cpuacct/vmm" / NAME, root / "memory,pids/vmm" / NAME)
    assert cgroups.names() == [NAME]
    assert not (root / "blkio/vmm").exists()


def test_a_hierarchy_mounted_twice_counts_once(mounted) -> None:
    mounted("cgroup memory rw,memory", "cgroup again rw,memory")
    assert len(cgroups.make(NAME, Ceiling()).directories) == 1


def test_a_host_that_mixes_the_versions_is_served_by_both(mounted) -> None:
    root = mounted("cgroup2 unified rw", "cgroup cpu rw,cpu")
    v2(root / "unified", "memory pids")
    (root / "unified/vmm").mkdir()
    (root / "unified/vmm/cgroup.subtree_control").write_text("memory pids\n")
    group = cgroups.make(NAME, Ceiling())
    assert group.directories == (root / "unified/vmm" / NAME, root / "cpu/vmm" / NAME)


def test_directories_are_nobody_elses_to_write_under_any_umask(mounted) -> None:
    root = mounted("cgroup memory rw,memory")
    old = os.umask(0)
    try:
        cgroups.make(NAME, Ceiling())
    finally:
        os.umask(old)
    for path in (root / "memory/vmm", root / "memory/vmm" / NAME):
        assert path.stat().st_mode & 0o777 == 0o755


def test_a_group_in_use_loses_its_old_limits_before_it_gets_new_ones(mounted) -> None:
    root = v2(mounted("cgroup2 all rw") / "all", "cpu io memory pids")
    group = root / "vmm" / NAME
    group.mkdir(parents=True)
    (root / "vmm/cgroup.subtree_control").write_text("cpu io memory pids\n")
    files = {"cpu.max": "5000 100000", "memory.max": "1", "memory.swap.max": "0", "memory.oom.group": "1"}
    for file, value in {**files, "pids.max": "2", "io.max": "8:0 rbps=1 wbps=max riops=max wiops=max\n"}.items():
        (group / file).write_text(value)
    assert cgroups.make(NAME, Ceiling(memory_bytes=4096)).directories == (group,)
    assert {path.name: path.read_text() for path in group.iterdir()} == {
        "cpu.max": "max", "memory.max": "4096", "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "max",
        "io.max": "8:0 rbps=max wbps=max riops=max wiops=max",
    }  # fmt: skip


def test_what_is_written_to_version_1() -> None:
    assert list(ceilings._settings(1, ALL)) == [
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "150000"),
        ("memory.limit_in_bytes", "201326592"),
        ("memory.memsw.limit_in_bytes", "201326592"),
        ("pids.max", "64"),
        ("blkio.throttle.read_bps_device", "254:0 1000"),
        ("blkio.throttle.write_iops_device", "254:0 20"),
    ]
    assert list(ceilings._settings(1, Ceiling())) == []


def test_what_is_written_to_version_2() -> None:
    assert list(ceilings._settings(2, ALL)) == [
        ("cpu.max", "150000 100000"),
        ("memory.max", "201326592"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("pids.max", "64"),
        ("io.max", "254:0 rbps=1000 wiops=20"),
    ]
    assert list(ceilings._settings(2, Ceiling())) == []


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", ["", ".", "..", "../memory", "a/b", "/etc", "a\0b"])
@pytest.mark.parametrize(
    "verb",
    [lambda name: cgroups.make(name, Ceiling()), cgroups.remove, cgroups.members, cgroups.ended_by_oom],
    ids=["make", "remove", "members", "ended_by_oom"],
)
def test_a_name_that_leads_out_is_refused(mounted, name: str, verb) -> None:
    root = mounted("cgroup memory rw,memory")
    with pytest.raises(ValueError, match="leads out"):
        verb(name)
    assert left(root) == []


def test_links_are_not_followed(mounted, tmp_path: Path) -> None:
    root = mounted("cgroup memory rw,memory")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / NAME).mkdir(parents=True)
    (elsewhere / NAME / "cgroup.procs").write_text("1\n")
    (root / "memory/vmm").symlink_to(elsewhere)
    for verb in (lambda: cgroups.make(NAME, Ceiling()), lambda: cgroups.remove(NAME), cgroups.names):
        with pytest.raises(HostError) as caught:
            verb()
        in_three_parts(caught.value)
    assert cgroups.ended_by_oom(NAME) is False
    assert sorted(path.name for path in elsewhere.rglob("*")) == [NAME, "cgroup.procs"]
    (root / "memory/vmm").unlink()
    (root / "memory/vmm").mkdir()
    (root / "memory/vmm" / NAME).symlink_to(elsewhere / NAME)
    with pytest.raises(HostError):
        cgroups.make(NAME, Ceiling())
    with pytest.raises(HostError):
        cgroups.join(Group(directories=(root / "memory/vmm" / NAME,)))
    assert cgroups.names() == []


def test_vmms_own_group_goes_when_no_machine_is_in_it(mounted) -> None:
    root = mounted("cgroup memory rw,memory", "cgroup pids rw,pids", "cgroup cpu rw,cpu")
    (root / "memory/vmm" / NAME).mkdir(parents=True)
    (root / "pids/vmm").mkdir()
    cgroups.dissolve()
    assert cgroups.names() == [NAME]
    assert not (root / "pids/vmm").exists()


def test_reading_a_group(mounted) -> None:
    root = mounted("cgroup memory rw,memory", "cgroup pids rw,pids")
    for controller, pids in (("memory", "17\n0\n9\n"), ("pids", "9\n23\n")):
        (root / controller / "vmm" / NAME).mkdir(parents=True)
        (root / controller / "vmm" / NAME / "cgroup.procs").write_text(pids)
    # 0 is a process of another pid namespace: nothing that may be handed to kill(2).
    assert cgroups.members(NAME) == [9, 17, 23]
    assert cgroups.members("f" * 32) == []
    assert not cgroups.ended_by_oom(NAME)
    control = root / "memory/vmm" / NAME / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    assert not cgroups.ended_by_oom(NAME)
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert cgroups.ended_by_oom(NAME)


def test_a_mount_point_that_a_user_chose_parts_no_line(mounted) -> None:
    """A user may mount FUSE at any name of theirs; the kernel escapes spaces, tabs and line feeds only."""
    root = mounted("cgroup memory rw,memory")
    with (root / "mounts").open("ab") as table:
        table.write(
            "me /home/me/a\x0b\x85\u2028\rb fuse.x rw,nosuid,nodev 0 0\n".encode() + b"me /home/\xff fuse rw 0 0\n"
        )
    assert cgroups.version() == 1
    assert ceilings.unescaped(r"/dev/mapper/a\134x20b\040c") == r"/dev/mapper/a\x20b c"


def test_limits_become_the_kernels_units(tmp_path: Path) -> None:
    limits = Limits(cpus=1.5, memory_mib=64, pids=40)
    asked = cgroups.ceiling(limits, guest_memory_mib=128, disk=tmp_path / "no such disk")
    assert asked == Ceiling(cpu_quota_us=150_000, memory_bytes=192 * 1024 * 1024, pids=40)
    assert cgroups.ceiling(Limits(), guest_memory_mib=128, disk=tmp_path / "none") == Ceiling()
    assert Ceiling().controllers == frozenset()
    assert ALL.controllers == {"cpu", "memory", "pids", "io"}


def test_io_limits_of_a_disk_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="I/O limits") as caught:
        cgroups.ceiling(Limits(io_read_bps=1), guest_memory_mib=128, disk=tmp_path / "none")
    in_three_parts(caught.value)


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /sys with a disk of two partitions, and a disk as device mapper makes them."""
    for disk, number, parts in (
        ("nvme0n1", "259:0", {"nvme0n1p1": "259:1", "nvme0n1p2": "259:2"}),
        ("dm-0", "253:0", {}),
    ):
        directory = tmp_path / "devices" / "block" / disk
        directory.mkdir(parents=True)
        (directory / "dev").write_text(f"{number}\n")
        found = {number: directory}
        for part, part_number in parts.items():
            (directory / part).mkdir()
            (directory / part / "partition").write_text("1\n")
            (directory / part / "dev").write_text(f"{part_number}\n")
            found[part_number] = directory / part
        (tmp_path / "dev" / "block").mkdir(parents=True, exist_ok=True)
        for each, target in found.items():
            (tmp_path / "dev" / "block" / each).symlink_to(target)
    monkeypatch.setattr(ceilings, "_SYS", tmp_path)
    return tmp_path


def test_the_device_is_the_whole_disk(sysfs: Path) -> None:
    assert [ceilings._whole(device) for device in ("259:2", "259:0", "253:0")] == ["259:0", "259:0", "253:0"]
    with pytest.raises(OSError, match="no block device"):
        ceilings._whole("0:99")


def test_a_btrfs_over_several_devices_is_no_single_one(sysfs: Path) -> None:
    devices = sysfs / "fs/btrfs/some-uuid/devices"
    devices.mkdir(parents=True)
    (devices / "nvme0n1p2").symlink_to(sysfs / "dev/block/259:2")
    assert ceilings._whole("259:2") == "259:0"
    (devices / "dm-0").symlink_to(sysfs / "dev/block/253:0")
    with pytest.raises(OSError, match="spread over dm-0, nvme0n1p2"):
        ceilings._whole("259:2")


def test_an_anonymous_device_is_looked_up_by_its_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "28 27 0:40 /@home /home rw,relatime shared:1 - btrfs /dev/mapper/a\\134x20b rw,subvol=/@home\n"
        "128 27 0:41 / /run rw - tmpfs tmpfs rw\n"
    )
    monkeypatch.setattr(ceilings, "_MOUNTINFO", table)
    assert ceilings._mount_of("28") == ("btrfs", r"/dev/mapper/a\x20b")
    assert ceilings._mount_of("128") == ("tmpfs", "tmpfs")
    with pytest.raises(OSError, match="not listed"):
        ceilings._mount_of("2")
    with (tmp_path / "file").open("wb") as stream:
        assert ceilings._mount_id(stream.fileno()) in {
            line.split(" ")[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        }
