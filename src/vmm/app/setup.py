"""`vmm setup`: makes a host ready, step by step; each step that was done before is found done."""

import time

from vmm.app import HostSite
from vmm.app.configure import make_directories, make_file
from vmm.errors import ConflictError, HostError, NotFoundError, StateError, VmmError
from vmm.host import accounts, cgroups, files, packages
from vmm.model.lifecycle import LIVE
from vmm.model.machine import Machine
from vmm.model.progress import Progress
from vmm.model.readiness import SetupRequest, SetupStep

# It looks twice a second whether there is anything left to supervise, and may be at one repair.
_SUPERVISOR_S, _POLL_S = 5.0, 0.05
_MOST_NAMED = 5


def setup(site: HostSite, request: SetupRequest, *, progress: Progress) -> tuple[SetupStep, ...]:
    """Make the host ready and say what was done. Interrupted, it goes on where it was when it is run again.

    Raises:
        HostError: programs are missing and may not be installed.
        ConflictError: the range of user ids for machines holds someone's.
        EngineError, ImageError, NetworkError: a step failed; those before it stay done.
    """
    steps = [_programs(request, progress), _directories(site), _firecracker(site, request, progress)]
    if not request.skip_network:
        steps.append(_bridge(site))
    if not request.skip_kernel:
        steps.append(_kernel(site, request, progress))
    if not request.skip_image:
        steps.append(_image(site, request, progress))
    return tuple(steps)


def teardown(site: HostSite, *, force: bool = False) -> list[str]:
    """Take what is vmm's off the host's network, and its cgroup where no machine is in it; return what was left.

    Raises:
        ConflictError: machines run, and `force` was not given: they would run on without any network.
    """
    if not force:
        _refuse_running(site)
    _await_supervisor(site)
    left = site.network.remove_all()
    cgroups.dissolve()
    return left


def _refuse_running(site: HostSite) -> None:
    from vmm.operations.observe import observed

    try:
        machines = [record for record in site.store.machines(live=True) if isinstance(record, Machine)]
        seen = [observed(site, machine) for machine in machines]
        running = [machine.name for machine in seen if machine.state in LIVE]
        running += [f"{stray.name} (pid {stray.pid}, of no record)" for stray in site.strays()]
    except StateError:
        # A database that cannot be read keeps nobody from clearing the host.
        return
    if running:
        more = f" and {len(running) - _MOST_NAMED} more" if len(running) > _MOST_NAMED else ""
        raise ConflictError(
            "The network was left as it is, for machines run on it.",
            details=f"Running: {', '.join(running[:_MOST_NAMED])}{more}. Without it they would be cut off.",
            resolution="Stop them first: sudo vmm stop --all; or cut them off all the same: sudo vmm teardown --force",
        )


def _await_supervisor(site: HostSite) -> None:
    """Wait for the supervisor to have gone with the last machine: it might just be putting back what is taken away."""
    try:
        machines = [record for record in site.store.machines() if isinstance(record, Machine)]
    except VmmError:
        # A database that cannot be read keeps nobody from clearing the host.
        return
    lock, deadline = site.config.paths.supervisor, time.monotonic() + _SUPERVISOR_S
    while not any(machine.state in LIVE for machine in machines) and time.monotonic() < deadline:
        if not lock.exists() or not files.is_locked(lock):
            return
        time.sleep(_POLL_S)


def _programs(request: SetupRequest, progress: Progress) -> SetupStep:
    missing = packages.missing()
    if not missing:
        return SetupStep(name="programs", outcome="present", detail="all that vmm needs")
    wanted = tuple(sorted(set(missing.values())))
    if not request.install_packages:
        raise HostError(
            "Programs that vmm needs are missing.",
            details=", ".join(f"{program} (package {package})" for program, package in missing.items()),
            resolution=f"sudo vmm setup --install-packages, or: sudo apt-get install {' '.join(wanted)}",
        )
    packages.install(wanted, progress=progress)
    return SetupStep(name="programs", outcome="done", detail=f"installed {', '.join(wanted)}")


def _directories(site: HostSite) -> SetupStep:
    accounts.refuse_taken(site.config.uids, everyone=True)
    make_directories(site.config.paths)
    made = make_file(site.config.file)
    directory = str(site.config.paths.data_dir)
    return SetupStep(name="directories", outcome="done" if made else "present", detail=directory)


def _firecracker(site: HostSite, request: SetupRequest, progress: Progress) -> SetupStep:
    from vmm.engines.firecracker.acquire import Wish, acquire

    config = site.config
    if request.skip_firecracker:
        return SetupStep(name="firecracker", outcome="skipped", detail="left out; machines run on qemu")
    if config.firecracker and request.firecracker is None:
        return SetupStep(name="firecracker", outcome="present", detail=f"{config.firecracker}, as configured")
    wish = Wish(
        given=request.firecracker,
        sha256=request.firecracker_sha256,
        url=config.firecracker_url,
        mirror=request.mirror,
        force=request.force,
    )
    acquired = acquire(config.paths.engines, wish, staging=config.paths.staging, progress=progress)
    outcome = "done" if acquired.fresh else "present"
    return SetupStep(name="firecracker", outcome=outcome, detail=f"{acquired.version}, {acquired.source}")


def _bridge(site: HostSite) -> SetupStep:
    site.network.tell_managers()
    site.network.reconcile(site.running_leases())
    return SetupStep(name="network", outcome="done", detail=f"{site.config.bridge_name}, {site.subnet.cidr}")


def _kernel(site: HostSite, request: SetupRequest, progress: Progress) -> SetupStep:
    name = site.defaults.kernel
    try:
        kernel = site.kernels.get(name)
        if not request.force:
            return SetupStep(name="kernel", outcome="present", detail=f"{kernel.name}: {kernel.version}")
    except NotFoundError:
        pass
    kernel = site.kernels.pull(name, force=request.force, progress=progress)
    return SetupStep(name="kernel", outcome="done", detail=f"{kernel.name}: {kernel.version}")


def _image(site: HostSite, request: SetupRequest, progress: Progress) -> SetupStep:
    name = site.defaults.image
    try:
        image = site.images.get(name)
        if not request.force:
            return SetupStep(name="image", outcome="present", detail=f"{image.name}: {image.source}")
    except NotFoundError:
        pass
    image = site.images.pull(name, force=request.force, progress=progress)
    return SetupStep(name="image", outcome="done", detail=f"{image.name}: {image.source}")
