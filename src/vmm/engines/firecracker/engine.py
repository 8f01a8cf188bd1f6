"""Machines run by Firecracker: one exec with a configuration file, and the API beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.engines import launch
from vmm.engines.firecracker.configuration import configuration
from vmm.errors import EngineError
from vmm.host import files
from vmm.model.engine import BootPlan, EngineFeatures, EngineStatus
from vmm.model.machine import EngineName, ProcessIdentity
from vmm.model.value import Value

if TYPE_CHECKING:
    from vmm.engines.firecracker.jail import Jail

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
        _refuse_missing(self.binary, "Firecracker", "sudo vmm setup")
        # Firecracker says so too, if it does not panic first: its API's thread and its guest's race to the end.
        if not os.access(_KVM, os.R_OK | os.W_OK):
            raise EngineError(
                "Firecracker needs KVM, which this host does not give.",
                details=f"{_KVM} cannot be opened for reading and writing.",
                resolution="Run it as root, and see vmm doctor; machines made with --engine qemu need no KVM.",
            )
        if plan.jails is not None:
            return self._spawn_jailed(plan, plan.jails)
        content = configuration(
            plan,
            kernel=str(plan.kernel),
            initrd=None if plan.initrd is None else str(plan.initrd),
            disks=[str(disk.path) for disk in plan.disks],
        )
        files.write_atomic(plan.config, json.dumps(content), mode=0o600, durable=False)
        # --level Error: the log is for what went wrong. Never --enable-pci (CVE-2026-5747).
        argv = [str(self.binary), "--id", plan.id, "--api-sock", str(plan.socket), "--config-file", str(plan.config)]
        return launch.spawn([*argv, "--log-path", str(plan.log), "--level", "Error"], plan, marker=str(plan.socket))

    def _spawn_jailed(self, plan: BootPlan, jails: Path) -> ProcessIdentity:
        from vmm.engines.firecracker import jail as jailing

        jailer = self.binary.with_name("jailer")
        _refuse_missing(jailer, "Firecracker's jailer", f"sudo vmm setup --force; or: vmm set {plan.name} --no-jail")
        jail = self._jail(plan.id, jails)
        detour = launch.Detour(
            prepare=lambda: jailing.build(jail, plan),
            argv=lambda: jailing.arguments(jail, plan, jailer=jailer),
            pid=jail.pid,
            ready=lambda: jailing.expose(jail, plan.socket, group=plan.socket_group),
        )
        return launch.spawn_through(plan, detour, marker=jail.marker)

    def markers(self, *, machine_id: str, socket: Path) -> tuple[str, ...]:
        from vmm.engines.firecracker.jail import marker_of

        return (marker_of(machine_id), str(socket))

    def holes(self) -> tuple[str, ...]:
        """Return what is known against this Firecracker and its jailer, a sentence each."""
        from vmm.engines.firecracker import releases

        version = releases.installed_version(self.binary)
        found = [f"Firecracker {version} has {hole.name}: {hole.what}." for hole in releases.known_holes(version)]
        if releases.is_older(version, releases.FLOOR):
            found.append(f"Firecracker {version} is older than {releases.FLOOR}, the least for real use.")
        return tuple(found)

    def clean_up(self, machine_id: str, *, jails: Path) -> None:
        """Remove what an engine that has ended left: its jail, whatever release made it."""
        from vmm.engines.firecracker import jail as jailing

        for jail in jailing.every(machine_id, jails):
            jailing.demolish(jail)

    def await_running(self, plan: BootPlan, process: ProcessIdentity, *, timeout_s: float) -> None:
        launch.await_running(
            plan,
            process,
            timeout_s=timeout_s,
            ask=lambda limit: self.status(plan.socket, timeout_s=limit),
            ready=lambda: plan.socket.exists() or (plan.jails is not None and self._expose(plan, plan.jails)),
            hollow=lambda: self.is_hollow(process) and launch.has_spoken(plan),
        )

    def is_hollow(self, process: ProcessIdentity) -> bool:
        """Whether it has an API and no CPU any more.

        A guest that ends while a request is on its way leaves Firecracker so for good: its main thread waits for its
        API's, and that one for an answer (seen with 1.12.1, once in 30 starts of a guest that resets at once).
        """
        try:
            threads = [path.read_text(errors="replace") for path in Path(f"/proc/{process.pid}/task").glob("*/comm")]
        except OSError:
            return False
        # Firecracker's own names of its threads, as 1.12.1 has them.
        has_api = any(name.startswith("fc_api") for name in threads)
        return has_api and not any(name.startswith("fc_vcpu") for name in threads)

    def _expose(self, plan: BootPlan, jails: Path) -> bool:
        from vmm.engines.firecracker import jail as jailing

        return jailing.expose(self._jail(plan.id, jails), plan.socket, group=plan.socket_group)

    def adopt(self, machine_id: str, *, socket: Path, jails: Path, group: int | None) -> None:
        """Give the API of an engine that runs its place, where the command that started it did not come to that."""
        from vmm.engines.firecracker import jail as jailing

        if not socket.exists():
            jailing.expose(self._jail(machine_id, jails), socket, group=group)

    def put_back(self, machine_id: str, disk: Path, *, jails: Path) -> bool:
        """Give the root disk its name again, where that was removed and the jail has the last; whether it did."""
        from vmm.engines.firecracker import jail as jailing

        return any(jailing.put_back(jail, disk) for jail in jailing.every(machine_id, jails))

    def _jail(self, machine_id: str, jails: Path) -> Jail:
        from vmm.engines.firecracker import jail as jailing

        return jailing.Jail(base=jails, program=self.binary.resolve(), id=machine_id)

    def status(self, socket: Path, *, timeout_s: float = 2.0) -> EngineStatus:
        # Its API is asked once the process is on its way: what it takes to import that passes while it starts.
        from vmm.engines.firecracker import api
        from vmm.engines.sockets import silent

        state = api.request(socket, "GET", "/", timeout_s=timeout_s).get("state")
        if not isinstance(state, str) or state not in _STATUS:
            raise silent(socket, f"it reports the state {state!r}")
        return _STATUS[state]

    def press_power_button(self, socket: Path) -> bool:
        """Send Ctrl-Alt-Del. It reaches only guests with a PS/2 keyboard driver; others do not notice."""
        from vmm.engines.firecracker import api

        api.request(socket, "PUT", "/actions", {"action_type": "SendCtrlAltDel"}, timeout_s=2.0)
        return True


def _refuse_missing(binary: Path, what: str, resolution: str) -> None:
    if binary.is_file() and os.statvfs(binary).f_flag & os.ST_NOEXEC:
        from vmm.host import facts

        found = facts.data_directory(binary)
        raise EngineError(f"{what} cannot be run where it lies.", details=f"{found.proof}.", resolution=found.fix)
    if not os.access(binary, os.X_OK):
        raise EngineError(
            f"{what} is not on this host.",
            details=f"{binary} is not a program that can be run.",
            resolution=f"Install it: {resolution}",
        )
