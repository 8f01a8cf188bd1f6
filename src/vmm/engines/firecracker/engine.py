"""Machines run by Firecracker: one exec with a configuration file, and the API beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vmm.engines import launch
from vmm.errors import EngineError
from vmm.host import files
from vmm.model.engine import BootPlan, EngineFeatures, EngineStatus
from vmm.model.machine import EngineName, ProcessIdentity
from vmm.model.value import Value

_KVM = Path("/dev/kvm")
_STATUS = {
    "Not started": EngineStatus.STARTING,
    "Running": EngineStatus.RUNNING,
    "Paused": EngineStatus.PAUSED,
}


class FirecrackerEngine(Value):
    """`binary` is the path of firecracker itself."""

    binary: Path

    @property
    def name(self) -> EngineName:
        return EngineName.FIRECRACKER

    @property
    def features(self) -> EngineFeatures:
        return EngineFeatures(snapshot=True, pause=True, jailer=True, power_off_ends=False)

    def spawn(self, plan: BootPlan) -> ProcessIdentity:
        """Start Firecracker with API and configuration in one exec: no request stands before the first instruction."""
        if not os.access(self.binary, os.X_OK):
            raise EngineError(
                "Firecracker is not on this host.",
                details=f"{self.binary} is not a program that can be run.",
                resolution="Install it: sudo vmm setup",
            )
        # Firecracker says so too, if it does not panic first: its API's thread and its guest's race to the end.
        if not os.access(_KVM, os.R_OK | os.W_OK):
            raise EngineError(
                "Firecracker needs KVM, which this host does not give.",
                details=f"{_KVM} cannot be opened for reading and writing.",
                resolution="Run it as root, and see vmm doctor; machines made with --engine qemu need no KVM.",
            )
        files.write_atomic(plan.config, json.dumps(configuration(plan)), mode=0o600, durable=False)
        # --level Error: the log is for what went wrong. Never --enable-pci (CVE-2026-5747).
        argv = [str(self.binary), "--id", plan.id, "--api-sock", str(plan.socket), "--config-file", str(plan.config)]
        return launch.spawn([*argv, "--log-path", str(plan.log), "--level", "Error"], plan)

    def await_running(self, plan: BootPlan, process: ProcessIdentity, *, timeout_s: float) -> None:
        launch.await_running(
            plan, process, timeout_s=timeout_s, ask=lambda limit: self.status(plan.socket, timeout_s=limit)
        )

    def status(self, socket: Path, *, timeout_s: float = 2.0) -> EngineStatus:
        # Its API is asked once the process is on its way: what it takes to import that passes while it starts.
        from vmm.engines.firecracker import api
        from vmm.engines.sockets import silent

        state = api.request(socket, "GET", "/", timeout_s=timeout_s).get("state")
        if state not in _STATUS:
            raise silent(socket, f"it reports the state {state!r}")
        return _STATUS[str(state)]

    def press_power_button(self, socket: Path) -> bool:
        """Send Ctrl-Alt-Del. It reaches only guests with a PS/2 keyboard driver; others do not notice."""
        from vmm.engines.firecracker import api

        api.request(socket, "PUT", "/actions", {"action_type": "SendCtrlAltDel"}, timeout_s=2.0)
        return True


def configuration(plan: BootPlan) -> dict[str, object]:
    """Return Firecracker's own description of a machine (its API's types, in one file)."""
    boot: dict[str, object] = {"kernel_image_path": str(plan.kernel), "boot_args": plan.command_line}
    if plan.initrd is not None:
        boot["initrd_path"] = str(plan.initrd)
    return {
        "boot-source": boot,
        "drives": [
            {
                "drive_id": f"disk{number}",
                "path_on_host": str(disk.path),
                # The kernel's root is named on its command line, where stage-1 reads it too.
                "is_root_device": False,
                "is_read_only": disk.read_only,
                # What a guest flushed has reached the disk of the host.
                "cache_type": "Writeback",
            }
            for number, disk in enumerate(plan.disks)
        ],
        "machine-config": {"vcpu_count": plan.cpus, "mem_size_mib": plan.memory_mib},
        "network-interfaces": [{"iface_id": "eth0", "guest_mac": plan.mac, "host_dev_name": plan.tap}],
    }
