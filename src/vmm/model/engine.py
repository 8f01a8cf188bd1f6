"""What an engine is given to run a machine, and what it reports of it. The contract itself is in `model.site`."""

from __future__ import annotations

from enum import StrEnum

from vmm import TYPE_CHECKING
from vmm.model.value import Value

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.model.machine import Limits


class EngineFeatures(Value):
    """What an engine can do; what it cannot is refused early, by name."""

    snapshot: bool
    pause: bool
    jailer: bool
    power_off_ends: bool  # whether the process ends when the guest powers off (Firecracker: only at a reboot)


class Disk(Value):
    """A virtio-blk device. The first disk of a plan is the root disk (/dev/vda in the guest)."""

    path: Path
    read_only: bool = False


class BootPlan(Value):
    """Everything an engine needs to run one machine, decided and on disk. Paths are absolute.

    `socket` is the engine's API (Firecracker HTTP, qemu QMP); it is also the marker in the process's command line.
    `console` is appended to, never truncated. `log` is the engine's own words, truncated at each start.
    `config` is a file that the engine may write for itself. `host_interface` facts (tap, MAC) come with the lease.
    `uid` is the user and group id that the engine runs with, 0 for root. `jails` is where jails stand, None for a
    machine without one. `cgroup` says whether it is put into one of its own, with `limits` (a unit of systemd's has
    done so already). `socket_group` may use the API too.
    """

    name: str
    id: str
    cpus: int
    memory_mib: int
    kernel: Path
    initrd: Path | None
    command_line: str
    disks: tuple[Disk, ...]
    tap: str
    mac: str
    socket: Path
    console: Path
    log: Path
    config: Path
    uid: int
    jails: Path | None
    cgroup: bool
    limits: Limits
    socket_group: int | None = None


class EngineStatus(StrEnum):
    """What the engine itself reports of its guest."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
