"""`vmm create`: a lease, a row, a disk; whole or not at all."""

from __future__ import annotations

import contextlib
import os
from types import MappingProxyType

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, NotFoundError, UsageError
from vmm.model import names, sizes
from vmm.model.clock import now
from vmm.model.limits import checked_limits
from vmm.model.machine import NO_LIMITS, Limits, Machine, MachineSpec, MachineState, RestartPolicy
from vmm.model.network import checked_resolver
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.model.image import Image
    from vmm.model.site import Site

# sun_path of unix(7) has 108 bytes, the last of them for the NUL.
SOCKET_PATH_BYTES = 107


class CreateRequest(Value):
    """What the user asked for; None leaves it to the configuration. Sizes in MiB.

    `ssh_keys` are the texts of public keys; `engine` is auto, firecracker or qemu.
    """

    name: str
    cpus: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    image: str | None = None
    kernel: str | None = None
    engine: str | None = None
    auto_start: bool = True
    labels: Mapping[str, str] = MappingProxyType({})
    ssh_keys: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    user_data: str | None = None
    jail: bool = True
    limits: Limits = NO_LIMITS
    restart: RestartPolicy = RestartPolicy.NO


def create(site: Site, request: CreateRequest) -> Machine:
    """Make a machine. It holds its address from now until it is deleted.

    Raises:
        UsageError: a name, a size or an address that can never be right, or a disk smaller than the image.
        ConflictError: a machine of that name exists, or every address is taken.
        NotFoundError: there is no such image or kernel.
    """
    names.valid_name(request.name)
    spec = _spec(site, request)
    image = site.images.get(spec.image)
    site.kernels.get(spec.kernel)
    _check_disk(spec, image)
    _check_socket(site, spec.name)
    with site.store.lock(spec.name):
        _make_way(site, spec.name)
        machine = site.store.add(
            spec, subnet=site.subnet, id=os.urandom(16).hex(), created_at=now(), reserved=_reserved(site)
        )
        try:
            # Before anything is made: a machine that the range of user ids has no place for is refused.
            site.uid_of(machine)
            site.files.make(machine, image)
        except BaseException:
            undo(site, spec.name)
            raise
    return machine


def undo(site: Site, name: str) -> None:
    """Take back a machine that was never started: first its files, then its row, so that nothing is left unknown."""
    site.files.remove(name)
    with contextlib.suppress(NotFoundError):
        site.store.remove(name)


def _spec(site: Site, request: CreateRequest) -> MachineSpec:
    defaults = site.defaults
    cpus = request.cpus if request.cpus is not None else defaults.cpus
    memory = request.memory_mib if request.memory_mib is not None else defaults.memory_mib
    image = names.valid_name(defaults.image if request.image is None else request.image, what="image")
    return MachineSpec(
        name=request.name,
        cpus=sizes.within(cpus, sizes.CPUS, what="--cpus"),
        memory_mib=sizes.within(memory, sizes.MEMORY_MIB, what="--memory", unit=" MiB"),
        disk_mib=sizes.within(_disk_mib(site, request, image), sizes.DISK_MIB, what="--disk", unit=" MiB"),
        image=image,
        kernel=names.valid_name(defaults.kernel if request.kernel is None else request.kernel, what="kernel"),
        engine=site.pick_engine(request.engine or defaults.engine),
        auto_start=request.auto_start,
        labels=dict(request.labels),
        ssh_keys=tuple(dict.fromkeys(request.ssh_keys)),
        dns=tuple(checked_resolver(server) for server in (request.dns or defaults.dns)),
        user_data=request.user_data,
        jail=request.jail,
        limits=checked_limits(request.limits),
        restart=request.restart,
    )


def _disk_mib(site: Site, request: CreateRequest, image: str) -> int:
    """A size that was asked for is taken as it is; the default one makes room for a larger image."""
    if request.disk_mib is not None:
        return request.disk_mib
    return max(site.defaults.disk_mib, site.images.get(image).size_mib)


def _check_disk(spec: MachineSpec, image: Image) -> None:
    if spec.disk_mib < image.size_mib:
        raise UsageError(
            f"A disk of {spec.disk_mib} MiB is too small for the image {image.name!r}.",
            details=f"The image's file system has {image.size_mib} MiB; a disk can only be larger.",
            resolution=f"Give --disk {image.size_mib} or more, or leave --disk out.",
        )


def _check_socket(site: Site, name: str) -> None:
    path = str(site.files.socket(name))
    if len(path.encode()) > SOCKET_PATH_BYTES:
        raise UsageError(
            f"The path of the socket of {name!r} would be too long.",
            details=f"{path} has {len(path.encode())} bytes; unix sockets take {SOCKET_PATH_BYTES}.",
            resolution="Choose a shorter name, or a data directory with a shorter path (--data-dir).",
        )


def _reserved(site: Site) -> list[str]:
    """Return the addresses of machines that run though the database does not know them."""
    return [stray.lease.address for stray in site.strays(quick=True) if stray.lease is not None]


def _refuse_unknown(site: Site, name: str) -> None:
    """Refuse a name whose disk lies there though the database knows no such machine.

    It is of no `create` that was killed: that records its machine first, and takes the files away first.
    """
    stray = next((stray for stray in site.strays(quick=True) if stray.name == name), None)
    if stray is None and not site.files.is_made(name):
        _refuse_strangers(site, name)
        return
    what = (
        stray.problem if stray is not None else f"{site.files.disk(name)} is there, and the database does not know it"
    )
    raise ConflictError(
        f"There is a machine {name!r} already, which the database does not know.",
        details=f"{what}: was a copy of the database put back? Nothing was changed.",
        resolution=f"Take it in again: sudo vmm db restore --rebuild -f; or choose another name than {name}",
    )


def _refuse_strangers(site: Site, name: str) -> None:
    """Refuse a name in whose directory files lie that no machine of vmm's has: they would go with the machine."""
    found = site.files.strangers(name)
    if found:
        raise ConflictError(
            f"The directory of a machine {name!r} holds files already, which are not vmm's.",
            details=f"In {site.files.disk(name).parent}: {', '.join(map(repr, found[:5]))}. Nothing was changed.",
            resolution="Move them elsewhere, or choose another name. What takes in another manager's disk:"
            " sudo vmm image import PATH --name NAME",
        )


def _make_way(site: Site, name: str) -> None:
    """Refuse a name that is taken; take back what a `create` that was killed left half-made."""
    try:
        existing = site.store.machine(name)
    except NotFoundError:
        _refuse_unknown(site, name)
        return
    if existing.state is MachineState.CREATED and not site.files.is_made(name):
        undo(site, name)
        return
    raise ConflictError(
        f"There is a machine {name!r} already.",
        details=f"It is {existing.state}, made at {existing.created_at}.",
        resolution=f"Open a shell in it: vmm ssh --start {name}; choose another name; or delete it: vmm delete {name}",
    )
