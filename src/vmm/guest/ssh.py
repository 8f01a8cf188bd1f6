"""ssh into a machine, with the system's own ssh and the machine's host key checked strictly."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from vmm import TYPE_CHECKING
from vmm.errors import GuestError, HostError, UsageError
from vmm.host import files, process, reading
from vmm.model.session import remote_line
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmm.config import Paths
    from vmm.guest.keys import ManagedKey
    from vmm.model.machine import Machine
    from vmm.model.session import Session

_PORT = 22
# ssh puts variables of its environment into paths, and has no way to write `${` but another variable, whose value it
# takes as it is (misc.c, vdollar_percent_expand).
_IN_PLACE = "${VMM_DOLLAR}"
_DOLLAR = ("env", "VMM_DOLLAR=$")
_ASK_S = 8.0
_ASKED = "vmm: asked"
# Polled tightly: a sleep of a second between tries was measured to hide seconds of every boot.
_POLL_S = 0.02
_CONNECT_S = 0.5
# A server may take its time between accepting and greeting: under TCG a fork and exec of sshd take long.
_GREETING_S = 5.0
# What a server may say before its greeting (RFC 4253, 4.2) is read up to here.
_GREETING_BYTES = 8 * 1024
# What an answer to our own question may have; a guest that says more is not listened to.
_ANSWER_BYTES = 64 * 1024


class SshGuest(Value):
    """The way into a running machine, with keys that it was given: vmm's own where it can be read, else the user's."""

    paths: Paths
    key: ManagedKey

    def await_ssh(self, machine: Machine, *, timeout_s: float, alive: Callable[[], bool]) -> float:
        """Return the seconds until the server sent its banner: ready means that, not that the port accepts."""
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            remaining = timeout_s - (time.monotonic() - began)
            if _greets(machine.lease.address, remaining):
                self._note_answer(machine)
                return time.monotonic() - began
            if not alive():
                raise GuestError(
                    f"The machine {machine.name!r} ended before its ssh answered.",
                    details="Its engine's process is gone.",
                    resolution=f"See why: vmm show {machine.name}; vmm console {machine.name}",
                )
            time.sleep(_POLL_S)
        raise GuestError(
            f"ssh in the machine {machine.name!r} did not answer within {timeout_s:.0f} s.",
            details=f"No banner came from {machine.lease.address}:{_PORT}; the machine goes on running.",
            resolution=f"See what it does: vmm console {machine.name}; wait longer:"
            f" vmm start {machine.name} --wait ssh --timeout 600",
        )

    def has_answered(self, machine: Machine) -> bool:
        # Looked up and not asked again: a server takes a visitor who does not log in for a scanner, and after some of
        # them refuses all (sshd_config(5), PerSourcePenalties).
        try:
            return reading.read_text(self._answer(machine)) == _boot_of(machine)
        except OSError:
            return False

    def _note_answer(self, machine: Machine) -> None:
        with contextlib.suppress(HostError):
            files.write_atomic(self._answer(machine), _boot_of(machine), durable=False)

    def _answer(self, machine: Machine) -> Path:
        return files.confined(self.paths.machines, machine.name) / "ssh-answered"

    def ask_shutdown(self, machine: Machine, *, reboot: bool, timeout_s: float) -> bool:
        """Ask the guest over ssh to go down; False when ssh never got in, so that asking again may help."""
        if not self._can_read_key():
            return False
        verb = "reboot" if reboot else "poweroff"
        # An init other than systemd has the plain commands. The word proves that we were in, whatever becomes of the
        # connection when the guest goes down under it.
        command = f"echo {_ASKED}; systemctl --no-block {verb} 2>/dev/null || {verb}"
        argv = [
            *self._base(machine, user="root", seconds=3), *_offering([self.key.private]),
            "-o", "BatchMode=yes", "-n", "-T", "--", machine.id, command,
        ]  # fmt: skip
        if any(_IN_PLACE in word for word in argv):
            argv = [*_DOLLAR, *argv]
        try:
            timeout_s = min(_ASK_S, timeout_s)
            return _ASKED in process.run(argv, timeout_s=timeout_s, check=False, most_bytes=_ANSWER_BYTES).stdout
        except HostError:
            return False

    def ssh_command(self, machine: Machine, session: Session) -> list[str]:
        self._check_known_hosts(machine)
        argv = [*self._base(machine, user=session.user, seconds=10)]
        argv += self._keys(machine, user=session.user, identity=session.identity)
        if not session.has_input:
            argv.append("-n")
        if session.terminal is not None:
            # Twice: also where our own input is none.
            argv.append("-tt" if session.terminal else "-T")
        # Behind `--` ssh looks for no options any more, neither before the host's name nor behind it.
        command = [*argv, "--", machine.id, *([remote_line(session.words)] if session.words else [])]
        return [*_DOLLAR, *command] if any(_IN_PLACE in word for word in argv) else command

    def _check_known_hosts(self, machine: Machine) -> None:
        """Raise HostError where ssh would wait for ever for what it is to know the machine by."""
        path = self._known_hosts(machine)
        try:
            reading.refuse_unplain(path)
        except (FileNotFoundError, PermissionError):
            pass  # ssh says so itself, and ends
        except OSError as error:
            raise HostError(
                f"What the machine {machine.name!r} is known by cannot be read.",
                details=str(error),
                resolution=f"Put it back, made anew by the next start: rm {path}; vmm restart {machine.name}",
            ) from error

    def _base(self, machine: Machine, *, user: str, seconds: int) -> list[str]:
        options = {
            "HostName": machine.lease.address,
            "HostKeyAlias": machine.id,
            "UserKnownHostsFile": str(self._known_hosts(machine)),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            # A guest adds no key to what the host knows of it.
            "UpdateHostKeys": "no",
            "HostKeyAlgorithms": "ssh-ed25519",
            "ConnectTimeout": str(seconds),
            "ServerAliveInterval": "15",
            "LogLevel": "ERROR",
            "Port": str(_PORT),
        }
        # -F none: neither the host's nor the user's configuration may redirect what is vmm's.
        argv = ["ssh", "-F", "none", "-l", user]
        for name, value in options.items():
            argv += ["-o", f"{name}={quoted(value)}"]
        return argv

    def _keys(self, machine: Machine, *, user: str, identity: Path | None) -> list[str]:
        """Return the options that offer keys: a server hangs up on who offers more than a few that it does not know."""
        if identity is not None:
            if not os.access(identity, os.R_OK):
                raise UsageError(
                    f"The key {identity} cannot be read.",
                    details="It was given with --identity.",
                    resolution="Give the file of a private key of yours, such as ~/.ssh/id_ed25519.",
                )
            return _offering([identity])
        managed = self.key.private if self._can_read_key() else None
        if managed is not None and user == "root":
            return _offering([managed])
        # Without any, ssh offers those of the user's home by its own names: the image may have brought one of them.
        return _offering([*([managed] if managed is not None else []), *self._own_keys(machine)])

    def has_key(self, machine: Machine, session: Session) -> bool:
        """Whether whoever asks has a key that the machine was given, or names one."""
        return session.identity is not None or self._can_read_key() or bool(self._own_keys(machine))

    def _own_keys(self, machine: Machine) -> list[Path]:
        """Return a file for each key that the machine was given and the user has: the private one of their home's.

        Of one that their agent has it is the public one, by which ssh finds it there.
        """
        from vmm.guest.keys import in_line, private_keys

        if not machine.spec.ssh_keys:
            return []
        own = private_keys(files.confined(self.paths.machines, machine.name) / "keys")
        wanted = [in_line(line) for line in machine.spec.ssh_keys]
        return [own[key] for key in wanted if key in own]

    def _known_hosts(self, machine: Machine) -> Path:
        return files.confined(self.paths.machines, machine.name) / "known_hosts"

    def _can_read_key(self) -> bool:
        return os.access(self.key.private, os.R_OK)


def _boot_of(machine: Machine) -> str:
    pid = machine.process.pid if machine.process is not None else 0
    return f"{machine.started_at} {pid}\n"


def _offering(keys: Sequence[Path]) -> list[str]:
    """Return the options that offer these keys and no other, whatever the user's agent and home hold."""
    argv = ["-o", "IdentitiesOnly=yes"]
    for key in keys:
        argv += ["-o", f"IdentityFile={quoted(str(key))}"]
    return argv


def quoted(value: str) -> str:
    """Return a value of an ssh option as ssh reads it: in quotes, and with no token of its own (ssh_config(5)).

    What is to be `${` is a variable of ssh's environment, which `_DOLLAR` sets.
    """
    plain = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("${", f"{_IN_PLACE}{{")
    return f'"{plain}"'


def _greets(address: str, remaining_s: float) -> bool:
    """Whether an ssh server at `address` greets as one does; bounded by `remaining_s`, however slowly it speaks."""
    deadline = time.monotonic() + max(0.01, remaining_s)
    try:
        with socket.create_connection((address, _PORT), timeout=min(_CONNECT_S, max(0.01, remaining_s))) as connection:
            deadline = min(deadline, time.monotonic() + _GREETING_S)
            said = b"\n"
            while len(said) < _GREETING_BYTES and (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                part = connection.recv(1024)
                said += part
                if b"\nSSH-" in said:
                    return True
                if not part:
                    return False
    except OSError:
        pass
    return False
