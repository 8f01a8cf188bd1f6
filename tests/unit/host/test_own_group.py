"""Whether what systemd was asked for is in force, on groups made of plain files."""

from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.host import own_group
from vmm.model.machine import Limits

LIMITS = Limits(cpus=0.5, memory_mib=64, pids=50, io_read_bps=1000)


def a_host(directory: Path, lines: str, groups: str, files: dict[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (directory / "mounts").write_text(lines.replace("ROOT", str(directory)))
    (directory / "own").write_text(groups)
    return {"mounts": directory / "mounts", "own": directory / "own"}


V2 = "cgroup2 ROOT/cg cgroup2 rw,nosuid 0 0\n"
V1 = "".join(f"cgroup ROOT/{name} cgroup rw,{name} 0 0\n" for name in ("cpu", "memory", "pids", "blkio"))
V1_GROUPS = "".join(f"{n}:{name}:/u\n" for n, name in enumerate(("cpu", "memory", "pids", "blkio")))


def test_all_in_force_on_version_2(tmp_path: Path) -> None:
    set_files = {
        "cg/u/cpu.max": "50000 100000",
        "cg/u/memory.max": "1000",
        "cg/u/pids.max": "50",
        "cg/u/io.max": "8:0 rbps=1000",
    }
    own_group.require(LIMITS, **a_host(tmp_path, V2, "0::/u\n", set_files))


def test_all_in_force_on_version_1(tmp_path: Path) -> None:
    files = {"cpu/u/cpu.cfs_quota_us": "50000", "memory/u/memory.limit_in_bytes": "4096", "pids/u/pids.max": "50",
             "blkio/u/blkio.throttle.read_bps_device": "8:0 1000"}  # fmt: skip
    own_group.require(LIMITS, **a_host(tmp_path, V1, V1_GROUPS, files))


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("lines", "groups", "files", "missing"),
    [
        (V2, "0::/u\n", {"cg/u/cpu.max": "max 100000", "cg/u/pids.max": "50"}, "cpus, memory_mib, io_read_bps"),
        (V1, V1_GROUPS, {"cpu/u/cpu.cfs_quota_us": "-1", "memory/u/memory.limit_in_bytes": "9223372036854771712",
                         "pids/u/pids.max": "max"}, "cpus, memory_mib, pids, io_read_bps"),
        ("", "", {}, "cpus, memory_mib, pids, io_read_bps"),
    ],
)  # fmt: skip
def test_what_is_not_in_force_is_named(
    tmp_path: Path, lines: str, groups: str, files: dict[str, str], missing: str
) -> None:
    with pytest.raises(HostError) as caught:
        own_group.require(LIMITS, **a_host(tmp_path, lines, groups, files))
    assert f"Not in force on its unit: {missing}." in caught.value.details


def test_no_limits_need_no_groups(tmp_path: Path) -> None:
    own_group.require(Limits(), **a_host(tmp_path, "", "", {}))
