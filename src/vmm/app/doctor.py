"""`vmm doctor`: what is right and wrong with this host, each with the command that mends it."""

import sys
from collections.abc import Callable
from pathlib import Path

from vmm.app import HostSite
from vmm.engines.choice import KvmReport, kvm_report, qemu_program
from vmm.engines.firecracker import releases
from vmm.engines.firecracker.jail import refuse_unsafe
from vmm.errors import ConflictError, HostError, NotFoundError, VmmError
from vmm.host import accounts, cgroups, files, packages, probes, systemd
from vmm.model.facts import Answer, Moment, Standing
from vmm.model.lifecycle import LIVE
from vmm.model.machine import EngineName, Machine
from vmm.model.readiness import Check, CheckStatus
from vmm.model.sizes import human_bytes
from vmm.network import links

_LOW_BYTES = 5 * 1024**3
_LEAST_BYTES = 1024**3


def examine(site: HostSite) -> tuple[Check, ...]:
    """Return every check of this host. One that cannot be made says so; it never keeps the others from being made."""
    report = kvm_report()
    checks: tuple[Callable[[], Check], ...] = (
        lambda: _kvm(report),
        lambda: _engine(site),
        *_engines_programs(site, report),
        lambda: _jails(site),
        _cgroups,
        _programs,
        _tun,
        _nftables,
        _tap_filters,
        lambda: _room(site),
        lambda: _file_system(site),
        lambda: _database(site),
        lambda: _strays(site),
        lambda: _kernel(site),
        lambda: _image(site),
        _clock,
        _systemd,
    )
    needed = tuple(_as_check(answer) for answer in site.facts.ask(Moment.LOOK))
    return (*(_safely(check) for check in checks), *needed)


def _engines_programs(site: HostSite, report: KvmReport) -> tuple[Callable[[], Check], ...]:
    """Return the checks that run the engines' programs; none for root where others may have chosen which these are."""
    error = _untrusted(site)
    if error is not None:
        found = _bad("firecracker", f"it is not run to be asked, nor qemu: {error.details}", error.resolution)
        return (lambda: found,)
    return (lambda: _firecracker(site), lambda: _jailer(site), lambda: _qemu(site, report))


def _untrusted(site: HostSite) -> HostError | None:
    try:
        files.refuse_unsafe(site.config.paths.data_dir)
    except HostError as error:
        return error
    return None


def engine_versions(site: HostSite) -> dict[str, str | None]:
    """Return the version of each engine's program, None for one that is not there, or that others may have chosen."""
    found: dict[str, str | None] = {"firecracker": None, "qemu": None}
    if _untrusted(site) is not None:
        return found
    if site.firecracker.is_file():
        found["firecracker"] = releases.version_of(site.firecracker)
    qemu = qemu_program(site.config.qemu)
    if qemu.is_file():
        from vmm.host import process

        words = process.run([str(qemu), "--version"], check=False).stdout
        found["qemu"] = ".".join(map(str, releases.parse(words)))
    return found


def _as_check(answer: Answer) -> Check:
    match answer.standing:
        case Standing.OK:
            return _ok(answer.name, answer.proof)
        case Standing.NOT_OK if answer.fatal:
            return _bad(answer.name, answer.proof, answer.fix)
        case _:
            return _warn(answer.name, answer.proof, answer.fix)


def _safely(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except VmmError as error:
        # One that is read here has asked doctor already.
        fix = "; ".join(part for part in error.resolution.split("; ") if "vmm doctor" not in part)
        return _bad("check", f"{error.brief} {error.details}", fix or "mend what it names, then ask again")


def _kvm(report: KvmReport) -> Check:
    if report.can_run_guests:
        return _ok("kvm", report.why)
    if not report.device_opens and Path("/dev/kvm").exists():
        return _warn("kvm", report.why, "sudo usermod -aG kvm $USER (then log in again), or run vmm as root")
    fix = "enable virtualization in the firmware, or nested virtualization in the host's own hypervisor"
    return _warn("kvm", f"{report.why}; machines run on qemu, without acceleration", fix)


def _engine(site: HostSite) -> Check:
    name = site.pick_engine("auto")
    return _ok("engine", f"auto chooses {name}: {kvm_report().why}")


def _firecracker(site: HostSite) -> Check:
    if not site.firecracker.is_file():
        return _warn("firecracker", f"{site.firecracker} is not there", "sudo vmm setup")
    version = releases.version_of(site.firecracker)
    holes = [hole for hole in releases.known_holes(version) if hole.where != "jailer"]
    if holes:
        named = "; ".join(f"{hole.name}: {hole.what}" for hole in holes)
        return _warn("firecracker", f"{version} has a known hole ({named})", "sudo vmm setup --force")
    if releases.is_older(version, releases.FLOOR):
        detail = f"{version}: fit for a lab; real use wants {releases.FLOOR} or newer"
        return _warn("firecracker", detail, "sudo vmm setup --force (with the releases in reach)")
    return _ok("firecracker", f"{version} ({site.firecracker})")


def _jailer(site: HostSite) -> Check:
    jailer = site.firecracker.with_name("jailer")
    if not jailer.is_file():
        return _warn("jailer", f"{jailer} is not there: Firecracker will not start", "sudo vmm setup --force")
    version = releases.version_of(jailer)
    holes = [hole for hole in releases.known_holes(version) if hole.where == "jailer"]
    if holes:
        named = "; ".join(f"{hole.name}: {hole.what}" for hole in holes)
        detail = f"{version} has a known hole ({named}); vmm makes and checks every jail itself"
        return _warn("jailer", detail, "sudo vmm setup --force")
    return _ok("jailer", version)


def _jails(site: HostSite) -> Check:
    """Whether machines can be confined, and whether every one is."""
    machines = [record for record in site.store.machines() if isinstance(record, Machine)]
    loose = [machine.name for machine in machines if not machine.spec.jail]
    # One that a vmm without jails started runs on as it was.
    old = [m.name for m in machines if m.state in LIVE and m.spec.jail and _is_unjailed(m)]
    if links.is_root() and site.jails.exists():
        refuse_unsafe(site.jails)
    first, last = site.config.uids
    try:
        accounts.refuse_taken((first, last), everyone=True)
    except ConflictError as error:
        return _bad("jails", f"{error.brief} {error.details}", error.resolution)
    if loose:
        named = ", ".join(loose[:5]) + (" ..." if len(loose) > 5 else "")
        return _warn(
            "jails", f"{named}: run as root, without a jail", f"vmm stop {loose[0]}; vmm set {loose[0]} --jail"
        )
    if old:
        return _warn("jails", f"{', '.join(old[:5])}: started before there were jails", f"vmm restart {old[0]}")
    return _ok("jails", f"every machine has one of its own, and a user id from {first} to {last}")


def _is_unjailed(machine: Machine) -> bool:
    """Whether a running Firecracker is out of its jail: it then goes by its socket's path on the host."""
    firecracker = machine.spec.engine is EngineName.FIRECRACKER
    return firecracker and machine.process is not None and machine.process.marker.endswith(f"/{machine.name}.sock")


def _cgroups() -> Check:
    version = cgroups.version()
    if version == 0:
        return _warn("cgroups", "none that vmm may use: limits are refused", "mount /sys/fs/cgroup, writable")
    return _ok("cgroups", f"version {version}")


def _qemu(site: HostSite, report: KvmReport) -> Check:
    binary = qemu_program(site.config.qemu)
    if not binary.is_file():
        if report.can_run_guests:
            return _ok("qemu", "not there, and not needed: Firecracker runs here")
        detail = f"{binary} is not there, and Firecracker cannot run guests here"
        return _bad("qemu", detail, "sudo vmm setup --install-packages")
    return _ok("qemu", f"{engine_versions(site)['qemu']} ({binary}), {'KVM' if report.can_run_guests else 'TCG'}")


def _programs() -> Check:
    missing = packages.missing()
    if missing:
        named = ", ".join(f"{program} ({package})" for program, package in missing.items())
        return _bad("programs", f"missing: {named}", "sudo vmm setup --install-packages")
    return _ok("programs", "all that vmm needs is there")


def _tun() -> Check:
    path = Path("/dev/net/tun")
    if not path.exists():
        return _bad("tun", f"{path} does not exist", "sudo modprobe tun")
    return _ok("tun", str(path))


def _nftables() -> Check:
    if not links.is_root():
        return _warn("nftables", "only root can ask the kernel", "sudo vmm doctor")
    works, words = probes.nftables_works()
    if not works:
        return _bad(
            "nftables", words, "sudo modprobe nf_tables; sudo modprobe nf_tables_bridge; a kernel that has them"
        )
    return _ok("nftables", "the ip and bridge families work")


def _tap_filters() -> Check:
    if not links.is_root():
        return _warn("tap filters", "only root can ask the kernel", "sudo vmm doctor")
    works, words = probes.tap_filters_work()
    if works:
        return _ok("tap filters", "each tap has one of its own, beside the firewall")
    detail = f"taps have none, and the firewall alone closes what machines may not send: {words}"
    return _warn("tap filters", detail, "sudo modprobe -a sch_ingress cls_bpf; or a kernel that has them")


def _room(site: HostSite) -> Check:
    path = site.config.paths.data_dir
    free = probes.free_bytes(path)
    if free < _LEAST_BYTES:
        return _bad(
            "disk", f"{human_bytes(free)} free under {path}", "make room: vmm delete NAME, vmm image delete NAME"
        )
    if free < _LOW_BYTES:
        return _warn("disk", f"{human_bytes(free)} free under {path}", "make room: df -h; vmm list; vmm image list")
    return _ok("disk", f"{human_bytes(free)} free under {path}")


def _file_system(site: HostSite) -> Check:
    path = site.config.paths.data_dir
    network = files.network_file_system(path)
    if network:
        return _bad(
            "file system", f"{path} lies on {network}, where locks cannot be trusted", "choose another --data-dir"
        )
    match probes.reflinks(path):
        case True:
            return _ok("file system", "shares blocks: a machine's disk costs nothing until it is written")
        case False:
            return _ok("file system", "cannot share blocks: a machine's disk is a sparse copy (XFS and btrfs can)")
        case None:
            return _warn("file system", f"{path} cannot be written by this user", "sudo vmm doctor")


def _database(site: HostSite) -> Check:
    count = len(site.store.machines())
    return _ok("database", f"{count} machine(s) known, {site.config.paths.database}")


def _strays(site: HostSite) -> Check:
    if not links.is_root():
        return _warn("engines", "only root can see whose each is", "sudo vmm doctor")
    found = site.strays()
    if found:
        named = [f"{stray.name} (pid {stray.pid})" for stray in found]
        detail = f"running, and not in the database: {', '.join(named[:5])}"
        return _warn("engines", detail, found[0].advice.rpartition(": ")[2])
    return _ok("engines", "every one that runs is in the database")


def _kernel(site: HostSite) -> Check:
    try:
        kernel = site.kernels.get(site.defaults.kernel)
    except NotFoundError as error:
        return _warn("kernel", error.brief, "sudo vmm kernel pull")
    return _ok("kernel", f"{kernel.name}: {kernel.version}")


def _image(site: HostSite) -> Check:
    try:
        image = site.images.get(site.defaults.image)
    except NotFoundError as error:
        return _warn("image", error.brief, "sudo vmm image pull")
    return _ok("image", f"{image.name}: {image.source}")


def _clock() -> Check:
    if probes.clock_is_synchronised():
        return _ok("clock", "synchronised")
    return _warn("clock", "not synchronised; guests take their time from it", "sudo apt-get install systemd-timesyncd")


def _systemd() -> Check:
    if not systemd.is_running():
        return _warn("systemd", "not this host's init: machines do not come back by themselves", "call: vmm autostart")
    state = systemd.unit_state()
    if not state:
        detail = f"{systemd.UNIT} is not there: machines do not come back after a reboot of the host"
        return _warn("systemd", detail, "sudo scripts/install")
    if not state.startswith("enabled"):
        detail = f"{systemd.UNIT} is {state}: machines do not come back after a reboot of the host"
        unmask = "sudo systemctl unmask vmm; " if state.startswith("masked") else ""
        return _warn("systemd", detail, f"{unmask}sudo systemctl enable --now vmm")
    return _ok("systemd", f"{systemd.UNIT} is {state} (python {sys.version_info.major}.{sys.version_info.minor})")


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, status=CheckStatus.OK, detail=detail)


def _warn(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, status=CheckStatus.WARNING, detail=detail, fix=fix)


def _bad(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, status=CheckStatus.FAILURE, detail=detail, fix=fix)
