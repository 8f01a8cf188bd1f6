"""Machines and plans for tests, as values."""

from ipaddress import IPv4Address
from pathlib import Path

from vmm.model.engine import BootPlan, Disk
from vmm.model.machine import EngineName, Limits, Machine, MachineSpec, MachineState
from vmm.model.network import lease_for


def a_spec(name: str, **changes: object) -> MachineSpec:
    values: dict[str, object] = {
        "name": name,
        "cpus": 1,
        "memory_mib": 512,
        "disk_mib": 1024,
        "image": "default",
        "kernel": "default",
        "engine": EngineName.QEMU,
        "labels": {},
        **changes,
    }
    return MachineSpec(**values)  # type: ignore[arg-type]


def a_machine(
    name: str, *, address: str = "172.16.0.2", state: MachineState = MachineState.STOPPED, **changes: object
) -> Machine:
    return Machine(
        id=f"{name:0<32}"[:32],
        spec=a_spec(name, **changes),
        lease=lease_for(IPv4Address(address)),
        state=state,
        wanted=False,
        created_at="2026-01-01T00:00:00Z",
    )


def a_plan(**changes: object) -> BootPlan:
    values: dict[str, object] = {
        "name": "m", "id": "0" * 32, "cpus": 2, "memory_mib": 512, "kernel": Path("/k"), "initrd": Path("/i"),
        "command_line": "console=ttyS0", "disks": (Disk(path=Path("/d,1")), Disk(path=Path("/seed"), read_only=True)),
        "tap": "vmm-ac100002", "mac": "06:00:ac:10:00:02", "socket": Path("/s,2.sock"), "console": Path("/c"),
        "log": Path("/l"), "config": Path("/e"), "uid": 0, "jails": None, "cgroup": False, "limits": Limits(),
        **changes,
    }  # fmt: skip
    return BootPlan(**values)  # type: ignore[arg-type]
