"""ssh into a machine, with the system's own ssh and the machine's host key checked strictly."""

from __future__ import annotations

import os
import socket
import time

from vmm import TYPE_CHECKING
from vmm.errors import GuestError, HostError
from vmm.host import files, process
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.config import Paths
    from vmm.guest.keys import ManagedKey
    from vmm.model.machine import Machine

_PORT = 22
_ASK_S = 8.0
_ASKED = "vmm: asked"
# Polled tightly: a sleep of a second between tries was measured to hide seconds of every boot.
_POLL_S = 0.02
_CONNECT_S = 0.5
# A server may take its time between accepting and greeting: under TCG a fork and exec of sshd take long.
_GREETING_S = 5.0


class SshGuest(Value):
    """The way into a running machine. The managed key is offered where it can be read, the user's own keys else."""

    paths: Paths
    key: ManagedKey

    def await_ssh(self, machine: Machine, *, timeout_s: float, alive: Callable[[], bool]) -> float:
        """Return the seconds until the server sent its banner: ready means that, not that the port accepts."""
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            remaining = timeout_s - (time.monotonic() - began)
            if _greets(machine.lease.address, remaining):
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
            resolution=f"See what it does: vmm console {machine.name}; give it longer with --timeout.",
        )

    def ask_shutdown(self, machine: Machine, *, reboot: bool, timeout_s: float) -> bool:
        """Ask the guest over ssh to go down; False when ssh never got in, so that asking again may help."""
        if not self._can_read_key():
            return False
        verb = "reboot" if reboot else "poweroff"
        # An init other than systemd has the plain commands. The word proves that we were in, whatever becomes of the
        # connection when the guest goes down under it.
        command = f"echo {_ASKED}; systemctl --no-block {verb} 2>/dev/null || {verb}"
        argv = [*self._base(machine, user="root", seconds=3), "-o", "BatchMode=yes", "-n", machine.id, command]
        try:
            return _ASKED in process.run(argv, timeout_s=min(_ASK_S, timeout_s), check=False).stdout
        except HostError:
            return False

    def ssh_command(self, machine: Machine, *, user: str, arguments: Sequence[str]) -> list[str]:
        return [*self._base(machine, user=user, seconds=10), machine.id, *arguments]

    def _base(self, machine: Machine, *, user: str, seconds: int) -> list[str]:
        options = {
            "HostName": machine.lease.address,
            "HostKeyAlias": machine.id,
            "UserKnownHostsFile": str(files.confined(self.paths.machines, machine.name) / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlgorithms": "ssh-ed25519",
            "ConnectTimeout": str(seconds),
            "ServerAliveInterval": "15",
            "LogLevel": "ERROR",
            "Port": str(_PORT),
        }
        if self._can_read_key():
            options["IdentityFile"] = str(self.key.private)
            options["IdentitiesOnly"] = "yes"
        # -F none: neither the host's nor the user's configuration may redirect what is vmm's.
        argv = ["ssh", "-F", "none", "-l", user]
        for name, value in options.items():
            argv += ["-o", f"{name}={_quoted(value)}"]
        return argv

    def _can_read_key(self) -> bool:
        return os.access(self.key.private, os.R_OK)


def _quoted(value: str) -> str:
    """Quote a value of an ssh option: white space separates several known_hosts files."""
    return f'"{value}"' if any(letter.isspace() for letter in value) else value


def _greets(address: str, remaining_s: float) -> bool:
    """Whether an ssh server at `address` sends its banner; bounded by `remaining_s`."""
    try:
        with socket.create_connection((address, _PORT), timeout=min(_CONNECT_S, max(0.01, remaining_s))) as connection:
            connection.settimeout(min(_GREETING_S, max(0.01, remaining_s)))
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
