"""What stays in memory for machines that run: engines less their guests' memory, and vmm's own processes."""

import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from ground import Bench

_KIB_A_MIB = 1024
_MEMORY_MIB = 128  # hosts.SMALL's
# Where a machine's group counts its memory: cgroups of version 1, of version 2, and of a host's mix.
_COUNTS = ("memory/vmm/{id}/memory.usage_in_bytes", "vmm/{id}/memory.current", "unified/vmm/{id}/memory.current")


@dataclass(frozen=True)
class Engine:
    """In KiB: what is resident of the engine itself, and what its cgroup counts besides the guest (None: no cgroup)."""

    own_kib: int
    cgroup_kib: int | None


def head() -> str:
    return (
        "| machines | engines | engine RSS less guest, MiB | its cgroup less guest, MiB | processes of vmm's |"
        " RSS of each, MiB | of it its own |\n|---:|---:|---:|---:|---:|---:|---:|\n"
    )


def report(bench: Bench) -> str:
    """Return a row of the table above for the machines that run now."""
    machines = [machine for machine in bench.host.json("list") if machine["pid"] is not None]
    engines = [_engine(machine) for machine in machines]
    pids = {machine["pid"] for machine in machines}
    helpers = [int(line.partition(":")[0]) for line in bench.host.processes()]
    helpers = [pid for pid in helpers if pid not in pids]
    own = statistics.median(engine.own_kib for engine in engines)
    groups = [engine.cgroup_kib for engine in engines if engine.cgroup_kib is not None]
    cells = [
        len(machines),
        len(engines),
        _mib([own]),
        _mib([statistics.median(groups)] if groups else []),
        len(helpers),
        _mib([_rollup(pid)["Rss"] for pid in helpers]),
        _mib([_rollup(pid)["Private_Clean"] + _rollup(pid)["Private_Dirty"] for pid in helpers]),
    ]
    return f"| {' | '.join(map(str, cells))} |\n"


def _mib(values: list[float]) -> str:
    return ", ".join(f"{value / _KIB_A_MIB:.1f}" for value in values) or "-"


def _engine(machine: dict) -> Engine:
    mappings = _mappings(Path(f"/proc/{machine['pid']}/smaps").read_text())
    guest = [mapping for mapping in mappings if mapping["Size"] >= _MEMORY_MIB * _KIB_A_MIB]
    if len(guest) != 1:
        raise SystemExit(f"The guest's memory cannot be told among the engine's mappings: {guest}")
    resident = guest[0]["Rss"]
    return Engine(sum(mapping["Rss"] for mapping in mappings) - resident, _counted(machine["id"], resident))


def _counted(machine_id: str, guest_kib: int) -> int | None:
    for name in _COUNTS:
        path = Path("/sys/fs/cgroup", name.format(id=machine_id))
        if path.exists():
            return int(path.read_text()) // 1024 - guest_kib
    return None


def _mappings(smaps: str) -> list[dict[str, int]]:
    """Return the fields in kB of each mapping (proc_pid_smaps(5)); one begins with its addresses."""
    parts = re.split(r"^[0-9a-f]+-[0-9a-f]+ .*$", smaps, flags=re.MULTILINE)[1:]
    return [{name: int(kib) for name, kib in re.findall(r"^(\w+): +(\d+) kB$", part, re.MULTILINE)} for part in parts]


def _rollup(pid: int) -> dict[str, int]:
    return _mappings(Path(f"/proc/{pid}/smaps_rollup").read_text())[0]
