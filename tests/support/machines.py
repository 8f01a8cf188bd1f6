"""Machines for tests, as values and as a site made of plain objects: for unit tests of decisions only."""

from ipaddress import IPv4Address

from vmm.model.machine import EngineName, Machine, MachineSpec, MachineState
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
