"""Wiring: the only module that names concrete adapters.

Every room is imported when it is first asked for: a listing needs the store alone, and pays for nothing else.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm import config as configuration
from vmm.errors import ConflictError, HostError, VmmError
from vmm.model.machine import EngineName, Machine, Stray, UnreadableRecord
from vmm.model.network import place_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.app.facts import HostFacts
    from vmm.app.processes import HostProcesses
    from vmm.config import Config
    from vmm.guest.ssh import SshGuest
    from vmm.host.recognition import Recognition
    from vmm.host.systemd import MachineUnits
    from vmm.images.kernels import KernelLibrary
    from vmm.images.library import ImageLibrary
    from vmm.model.defaults import Defaults
    from vmm.model.network import Lease, PortForward, Subnet
    from vmm.model.site import Engine, Traces
    from vmm.network.host_network import HostNetwork
    from vmm.storage.machine_files import MachineDirectories
    from vmm.storage.store import SqliteStore


def load_config(*, data_dir: Path | None = None, config_file: Path | None = None) -> Config:
    """Read the configuration of this host; flags win over environment, file and built-in values."""
    from vmm.host.reading import read_bytes

    return configuration.load(read=read_bytes, data_dir=data_dir, file=config_file)


def require_root(command: str) -> None:
    """Raise HostError when this process has not the rights that `command` needs from the kernel."""
    if os.geteuid() != 0:
        raise HostError(
            f"vmm {command} needs root.",
            details=f"It changes links, firewall or disks; this process has user id {os.geteuid()}.",
            resolution=f"Run it as root: sudo vmm {command} ...",
        )


def open_site(
    *,
    data_dir: Path | None = None,
    config_file: Path | None = None,
    read_only: bool = False,
    tell: Callable[[str], None] | None = None,
) -> HostSite:
    """Return this host's vmm; `read_only` for commands that any user may give. `tell` is told what the user should."""
    config = load_config(data_dir=data_dir, config_file=config_file)
    if not read_only:
        from vmm.host import files
        from vmm.network.ownership import refuse_copy

        refuse_copy(config.paths.data_dir)
        if os.geteuid() == 0 and not config.paths.database.exists():
            # In one that is in use machines can be stopped and deleted; what a create and a start make asks again.
            files.refuse_unsafe(config.paths.data_dir)
    return HostSite(config, read_only=read_only, tell=tell)


class HostSite:
    """The `Site` of this host."""

    def __init__(self, config: Config, *, read_only: bool = False, tell: Callable[[str], None] | None = None) -> None:
        self.config = config
        self.read_only = read_only
        self._tell = tell

    @property
    def subnet(self) -> Subnet:
        return self.config.subnet

    @property
    def defaults(self) -> Defaults:
        return self.config.defaults

    @property
    def jails(self) -> Path:
        return self.config.paths.jails

    @property
    def socket_group(self) -> int | None:
        if not self.config.socket_group:
            return None
        from vmm.host.identity import group_id

        return group_id(self.config.socket_group)

    def uid_of(self, machine: Machine) -> int:
        if not machine.spec.jail:
            return 0
        from vmm.host import accounts

        first, last = self.config.uids
        accounts.refuse_taken(self.config.uids)
        uid = first + place_in(self.config.subnet, machine.lease.address)
        if uid > last:
            raise ConflictError(
                f"The range of user ids has no place for the machine {machine.name!r}.",
                details=f"Its address {machine.lease.address} makes it {uid}; uid_range is {first}-{last}.",
                resolution=f"Widen it: sudo vmm config set uid_range {first}-{first + 65535}",
            )
        return uid

    def strays(self, *, quick: bool = False) -> Sequence[Stray]:
        from vmm.app import strays

        return strays.strays(self) if not quick or strays.may_be_there(self) else []

    def traces(self) -> Traces:
        from vmm.app.sweep import traces

        return traces(self)

    def sweep(self) -> Sequence[tuple[str, str]]:
        from vmm.app.sweep import sweep

        return sweep(self)

    def ensure_supervisor(self) -> None:
        from vmm.host import files

        # What starts one is imported where none is there.
        if not files.is_locked(self.config.paths.supervisor):
            from vmm.app.supervisor import ensure

            ensure(self)

    def revive_supervisor(self) -> None:
        """Bring the supervisor back when machines run without one: for every command of root's, at little cost."""
        if os.geteuid() != 0 or not self.config.paths.database.exists():
            return
        with contextlib.suppress(VmmError, OSError):
            from vmm.host import files

            if not files.is_locked(self.config.paths.supervisor) and self.store.any_live():
                # To look into what others have written is no wish to have root act on it.
                files.refuse_unsafe(self.config.paths.data_dir)
                self.ensure_supervisor()

    def memory_mib(self) -> int:
        from vmm.host.memory import total_mib

        return total_mib()

    @property
    def units(self) -> MachineUnits | None:
        from vmm.host import systemd

        return self.machine_units() if systemd.is_running() and systemd.looks_after_us() else None

    def machine_units(self) -> MachineUnits:
        """Return the units of this host's systemd, for what is sure to have one."""
        from vmm.app.supervisor import own_command
        from vmm.host import systemd

        paths = self.config.paths
        return systemd.MachineUnits(
            command=tuple(own_command(self.config)), notes=paths.state / "units", data_dir=paths.data_dir
        )

    @property
    def store(self) -> SqliteStore:
        from vmm.storage.store import SqliteStore

        paths = self.config.paths
        return SqliteStore(
            path=paths.database,
            locks=paths.locks,
            read_only=self.read_only,
            disks=paths.machines,
            tell=self._tell,
        )

    @property
    def processes(self) -> HostProcesses:
        from vmm.app.processes import HostProcesses

        return HostProcesses(self.recognition)

    def recognition(self) -> Recognition:
        """Return what an engine of this data directory is known by."""
        from vmm.engines.choice import qemu_program
        from vmm.host.recognition import Recognition

        paths, firecracker = self.config.paths, self.firecracker
        programs = (firecracker, firecracker.with_name("jailer"), qemu_program(self.config.qemu))
        return Recognition(uids=self.config.uids, programs=programs, jails=paths.jails, machines=paths.machines)

    @property
    def network(self) -> HostNetwork:
        from vmm.network.host_network import HostNetwork

        config = self.config
        return HostNetwork(
            bridge_name=config.bridge_name,
            subnet=config.subnet,
            host_interface=config.host_interface,
            running=self.running_leases,
            data_dir=config.paths.data_dir,
            allowed=config.allowed_networks,
            resolvers=self._all_resolvers,
            connections=config.max_connections,
        )

    def running_leases(self) -> Sequence[tuple[Lease, Sequence[PortForward]]]:
        """Return lease and forwards of every machine that has an engine: what the whole firewall is rendered from."""
        from vmm.model.lifecycle import LIVE, is_waiting
        from vmm.operations.observe import observed

        machines = [record for record in self.store.machines(live=True) if not isinstance(record, UnreadableRecord)]
        seen = [observed(self, machine) for machine in machines]
        # What waits for its restart gets its tap and rules with it.
        live = [machine for machine in seen if machine.state in LIVE and not is_waiting(machine)]
        leases = [(machine.lease, self.store.forwards(machine.name)) for machine in live]
        # What runs keeps its network, whatever the database has forgotten.
        known = self.strays(quick=True)
        return leases + [(stray.lease, stray.forwards) for stray in known if stray.lease is not None]

    @property
    def facts(self) -> HostFacts:
        from vmm.app.facts import HostFacts

        return HostFacts(self)

    @property
    def images(self) -> ImageLibrary:
        from vmm.images.library import ImageLibrary

        return ImageLibrary(root=self.config.paths.images, staging=self.config.paths.staging)

    @property
    def kernels(self) -> KernelLibrary:
        from vmm.images.kernels import KernelLibrary

        paths = self.config.paths
        return KernelLibrary(root=paths.kernels, staging=paths.staging, build_stage1=_build_stage1)

    @property
    def files(self) -> MachineDirectories:
        from vmm.storage.machine_files import MachineDirectories

        return MachineDirectories(
            paths=self.config.paths,
            write_initrd=self._write_initrd,
            make_host_key=_make_host_key,
            make_seed=_make_seed,
            socket_group=lambda: self.socket_group,
        )

    @property
    def guest(self) -> SshGuest:
        from vmm.guest.keys import ManagedKey
        from vmm.guest.ssh import SshGuest

        return SshGuest(paths=self.config.paths, key=ManagedKey(directory=self.config.paths.ssh))

    def engine(self, name: EngineName) -> Engine:
        match name:
            case EngineName.FIRECRACKER:
                from vmm.engines.firecracker.engine import FirecrackerEngine

                return FirecrackerEngine(binary=self.firecracker)
            case EngineName.QEMU:
                from vmm.engines.choice import kvm_report, qemu_program
                from vmm.engines.qemu.engine import QemuEngine

                return QemuEngine(binary=qemu_program(self.config.qemu), kvm=kvm_report().can_run_guests)

    def pick_engine(self, wish: str) -> EngineName:
        from vmm.engines.choice import pick, qemu_program

        return pick(wish, firecracker=self.firecracker, qemu=qemu_program(self.config.qemu))

    @property
    def firecracker(self) -> Path:
        """Where Firecracker is, or would be put by `setup`."""
        return Path(self.config.firecracker) if self.config.firecracker else self.config.paths.engines / "firecracker"

    def resolvers(self) -> Sequence[str]:
        from vmm.network.dns import host_resolution

        return host_resolution().servers

    def _all_resolvers(self) -> Sequence[str]:
        """Return what any machine may be told to ask for names."""
        records = [record for record in self.store.machines() if isinstance(record, Machine)]
        named = {server for record in records for server in record.spec.dns}
        return sorted({*self.defaults.dns, *self.resolvers(), *named})

    def _write_initrd(
        self, out: Path, *, machine: Machine, stage1: Path, host_key: Path, resolvers: Sequence[str], grow: bool
    ) -> None:
        from vmm.guest.facts import Facts, write_initrd
        from vmm.guest.stage1 import build_grow_archive
        from vmm.host.reading import read_text
        from vmm.network.dns import host_resolution

        tool = stage1.with_name("grow.cpio.gz")
        if grow and not tool.exists():
            build_grow_archive(tool)
        resolution = host_resolution()
        facts = Facts(
            hostname=machine.name,
            machine_id=machine.id,
            mac=machine.lease.mac,
            address=machine.lease.address,
            prefix_length=self.subnet.prefix_length,
            gateway=self.subnet.gateway,
            resolvers=tuple(resolvers),
            search=resolution.search,
            options=resolution.options,
            authorized_keys=(self.guest.key.public_key(), *machine.spec.ssh_keys),
            host_key=read_text(host_key),
            host_key_pub=read_text(host_key.with_suffix(".pub")),
            grow=grow,
        )
        write_initrd(out, archives=[stage1, *([tool] if grow else [])], facts=facts)


def _build_stage1(modules: Sequence[tuple[str, bytes]], out: Path) -> None:
    from vmm.guest.stage1 import Module, build_stage1

    build_stage1([Module(name=name, content=content) for name, content in modules], out)


def _make_host_key(path: Path) -> None:
    from vmm.guest.keys import make_key

    make_key(path)


def _make_seed(machine: Machine, user_data: Path, out: Path) -> None:
    from vmm.guest.cidata import make_seed

    make_seed(out, hostname=machine.name, instance_id=machine.id, user_data=user_data)
