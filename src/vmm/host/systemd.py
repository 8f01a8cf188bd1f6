"""systemd: the unit that brings machines back after a reboot, and a transient unit for each machine that runs."""

from __future__ import annotations

import json
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import EngineError
from vmm.host import files, process, reading
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.model.machine import Limits, Machine

UNIT = "vmm.service"
_SLICE = "vmm.slice"
# Longer than any start takes; what hangs is ended by the start's own bounds.
_START_S = 180.0
# What systemd-run says of a name that a unit has.
_THERE = "was already loaded or has a fragment file"
# What a guest has to shut down when systemd stops its machine, and what systemd waits for that.
UNIT_STOP_S = 60.0
_STOP_S = 90
# Before a machine's way out is taken down, its guest has been asked.
_NETWORK = "network.target nftables.service docker.service firewalld.service ufw.service"

# KillMode=process: stopping or restarting the unit ends no machine; the machines run in units of their own. Only when
# the host goes down does `vmm autostop` ask each guest to shut down.
_UNIT = """[Unit]
Description=vmm: virtual machines that come back after a reboot
Documentation=man:vmm(1)
After=network.target network-online.target nss-lookup.target
After=nftables.service docker.service firewalld.service ufw.service
Wants=network.target network-online.target
RequiresMountsFor="{data_dir}" "{executable}"

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={executable} autostart
ExecStop={executable} autostop --if-host-goes-down --timeout 60
KillMode=process
TimeoutStartSec=infinity
TimeoutStopSec=120

[Install]
WantedBy=multi-user.target
"""
# Which ends of an engine are none of systemd's business: how a machine ended is on its console, and `vmm settle` (the
# unit's ExecStopPost) tells by its own exit code whether that was a failure.
_ENDS = "1 148 149 150 151 152 153 SIGKILL SIGTERM SIGINT SIGSEGV SIGABRT SIGBUS SIGSYS SIGXFSZ SIGILL"


def unit_text(*, executable: Path, data_dir: Path) -> str:
    """Return the unit for a vmm that lies at `executable`. Which directory is its own the configuration says."""
    return _UNIT.format(executable=_escaped(executable), data_dir=_escaped(data_dir))


def is_running() -> bool:
    """Whether systemd is this host's init (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def looks_after_us() -> bool:
    """Whether what systemd starts has the same network as this process: in a namespace of its own it has not."""
    try:
        return Path("/proc/self/ns/net").readlink() == Path("/proc/1/ns/net").readlink()
    except OSError:
        return False


def host_goes_down() -> bool:
    """Whether systemd is about to halt, power off or reboot this host."""
    return process.run(["systemctl", "is-system-running"], check=False).stdout.strip() == "stopping"


def unit_state() -> str:
    """Return what systemd says of vmm's unit at a boot: "enabled", "disabled", "masked"; "" where there is none."""
    said = process.run(["systemctl", "is-enabled", UNIT], check=False).stdout.strip()
    return "" if said == "not-found" else said


def run_supervisor(command: Sequence[str], *, name: str) -> None:
    """Run vmm's supervisor as a unit of its own, which comes back when it is killed."""
    argv = ["systemd-run", "-q", "--collect", f"--unit={name}", f"--slice={_SLICE}"]
    properties = ["Restart=on-failure", "RestartSec=1", "StartLimitIntervalSec=0", "Description=vmm: supervisor"]
    # One that is there already has the name.
    process.run([*argv, *(f"--property={line}" for line in properties), "--", *map(_plain, command)], check=False)


class MachineUnits(Value):
    """Machines as transient units. `command` runs this vmm with this data directory; `notes` holds errors of starts."""

    command: tuple[str, ...]
    notes: Path
    data_dir: Path

    def start(self, machine: Machine, *, overcommit: bool) -> None:
        """Start the machine in a unit of its own, and return when it runs; raise what kept it from it."""
        files.make_dir(self.notes, mode=0o700)
        note = self._note(machine.name, "error")
        note.unlink(missing_ok=True)
        # What a start that was killed left; a unit that waits for its restart.
        self.stop(machine)
        self._note(machine.name, "wish").touch(mode=0o600)
        start = [*self.command, "start", "--owner", "unit", "--error-file", str(note)]
        argv = [
            "systemd-run", "-q", "--collect", f"--unit={unit_of(machine)}", f"--slice={_SLICE}",
            *(f"--property={line}" for line in self._properties(machine)),
            "--", *map(_plain, (*start, *(["--overcommit"] if overcommit else []), machine.name)),
        ]  # fmt: skip
        done = process.run(argv, timeout_s=_START_S, check=False)
        if _THERE in done.words:
            # Meanwhile systemd starts it by itself (its guest has rebooted, its policy says so): this is that start.
            done = process.run(["systemctl", "start", unit_of(machine)], timeout_s=_START_S, check=False)
            if done.code != 0 and not note.exists():
                # Gone again, as one that nobody had asked for.
                done = process.run(argv, timeout_s=_START_S, check=False)
        if done.code != 0 or note.exists():
            self.stop(machine)
            raise _told(note, machine.name, done.words)

    def stop(self, machine: Machine, *, wait: bool = True) -> None:
        """End the machine's unit; none is no error. Without `wait` systemd is told and not waited for."""
        process.run(["systemctl", *([] if wait else ["--no-block"]), "stop", unit_of(machine)], check=False)

    def ask_again(self, machine: Machine) -> None:
        """Ask for the unit's next start where `systemctl restart` is what stops it. For the unit's own ExecStop."""
        jobs = process.run(["systemctl", "list-jobs", "--plain", "--no-legend"], check=False).stdout
        if any(line.split()[1:3] == [unit_of(machine), "restart"] for line in jobs.splitlines()):
            self._note(machine.name, "wish").touch(mode=0o600)

    def again(self, machine: Machine) -> None:
        """Let systemd start the machine's unit once more: its guest has rebooted. For the unit's own ExecStopPost."""
        process.run(["systemctl", "reset-failed", unit_of(machine)], check=False)
        process.run(["systemctl", "--no-block", "restart", unit_of(machine)])

    def is_asked_for(self, name: str) -> bool:
        """Whether `vmm start` asks for this start, which it does once; else systemd does, by its own policy."""
        try:
            self._note(name, "wish").unlink()
        except FileNotFoundError:
            return False
        return True

    def give_up(self, machine: Machine) -> None:
        """End the unit from within: the machine is not wanted any more."""
        process.run(["systemctl", "--no-block", "stop", unit_of(machine)], check=False)

    def write_pid(self, name: str, pid: int) -> None:
        """Tell systemd which process is the machine's."""
        files.write_atomic(self._note(name, "pid"), f"{pid}\n", durable=False)

    def _note(self, name: str, kind: str) -> Path:
        return files.confined(self.notes, f"{name}.{kind}")

    def _properties(self, machine: Machine) -> list[str]:
        inside = {
            verb: " ".join(_word(word) for word in (*self.command, verb, "--owner", "unit", machine.name))
            for verb in ("stop", "settle")
        }
        return [
            f"Description=vmm: the machine {machine.name}",
            # The reverse order holds when the host goes down: guests are asked (vmm.service) before this is killed.
            f"Before={UNIT}",
            f"After={_NETWORK}",
            "Type=forking",
            f"PIDFile={self._note(machine.name, 'pid')}",
            f"ExecStop={inside['stop']}",
            f"ExecStopPost={inside['settle']}",
            f"Restart={machine.spec.restart.value}",
            "RestartSec=1",
            f"SuccessExitStatus={_ENDS}",
            "StartLimitIntervalSec=0",
            "TimeoutStartSec=infinity",
            f"TimeoutStopSec={_STOP_S}",
            "KillSignal=SIGKILL",
            "LimitCORE=0",
            *limits_as_properties(machine.spec.limits, machine.spec.memory_mib, self.data_dir),
        ]


def unit_of(machine: Machine) -> str:
    """Return the name of a machine's unit; with a part of its id: another data directory may have the name too."""
    return f"vmm-{machine.name}-{machine.id[:8]}.service"


def limits_as_properties(limits: Limits, guest_memory_mib: int, data_dir: Path) -> list[str]:
    """Return the limits in systemd's words (systemd.resource-control(5))."""
    found: list[str] = []
    if limits.cpus is not None:
        found.append(f"CPUQuota={limits.cpus * 100:.0f}%")
    if limits.memory_mib is not None:
        found += [f"MemoryMax={guest_memory_mib + limits.memory_mib}M", "MemorySwapMax=0"]
    if limits.pids is not None:
        found.append(f"TasksMax={limits.pids}")
    rates = {
        "IOReadBandwidthMax": limits.io_read_bps,
        "IOWriteBandwidthMax": limits.io_write_bps,
        "IOReadIOPSMax": limits.io_read_iops,
        "IOWriteIOPSMax": limits.io_write_iops,
    }
    given = {name: rate for name, rate in rates.items() if rate is not None}
    return [*found, *(f"{name}={_on_same_device(data_dir)} {rate}" for name, rate in given.items())] if given else found


def write_error(path: Path, error: Exception) -> None:
    """Note what kept a start from it, for the command that waits outside of the unit."""
    parts = {name: str(getattr(error, name, "")) for name in ("brief", "details", "resolution")}
    files.write_atomic(path, json.dumps(parts), mode=0o600, durable=False)


def _told(note: Path, name: str, words: str) -> EngineError:
    try:
        parts = reading.read_object(note)
        note.unlink()
        brief, details, resolution = (str(parts[name]) for name in ("brief", "details", "resolution"))
        return EngineError(brief, details=details, resolution=resolution)
    except (OSError, ValueError, KeyError, TypeError):
        return EngineError(
            f"The unit of the machine {name!r} did not start.",
            details=words,
            resolution=f"See what systemd says: journalctl -e -u 'vmm-{name}-*'",
        )


def _on_same_device(path: Path) -> Path:
    """Return a path by which systemd finds the device that `path` lies on: it takes none with a blank in it."""
    if " " not in str(path):
        return path
    device = path.stat().st_dev
    above = [parent for parent in path.parents if " " not in str(parent) and parent.stat().st_dev == device]
    return above[0] if above else path


def _plain(word: str) -> str:
    """Return a word that systemd-run passes on, in which systemd puts variables (systemd.service(5))."""
    return word.replace("$", "$$")


def _word(word: str) -> str:
    """Quote a word of a command line that is a property of systemd-run's: no specifier is looked for in it."""
    quoted = _plain(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def _escaped(path: Path) -> str:
    # systemd reads '%' as the start of a specifier.
    return str(path).replace("%", "%%")
