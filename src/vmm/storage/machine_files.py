"""A machine's own directory, `vms/NAME`: its disk, its host key, its initrd; and its console and log beside it."""

from __future__ import annotations

import contextlib
import os

from vmm import TYPE_CHECKING
from vmm.errors import HostError, VmmError
from vmm.host import files
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmm.config import Paths
    from vmm.model.image import Image, Kernel
    from vmm.model.machine import Machine
    from vmm.model.site import WriteInitrd

# The console of a machine is trimmed to this at each start; the newest is kept.
CONSOLE_BYTES = 16 * 1024 * 1024
_WORDS_BYTES = 4096
_LOG_WORDS_BYTES = 2048
_BOOT_MARK = "\n=== vmm: {name} boots at {at} ===\n"


class MachineDirectories(Value):
    """Every machine's own files.

    `make_host_key` writes a private key to the path it is given and the public one beside it (`.pub`).
    `make_seed` writes a NoCloud disk from (machine, user data, path).
    """

    paths: Paths
    write_initrd: WriteInitrd
    make_host_key: Callable[[Path], None]
    make_seed: Callable[[Machine, Path, Path], None]

    def make(self, machine: Machine, image: Image) -> None:
        """Make the directory with its disk and host key. The disk is made last: its name says that all is there."""
        name = machine.name
        # Every user may list machines and read their known_hosts; the disk and the keys in it are root's.
        files.make_dir(self.paths.machines)
        directory = files.make_dir(self._directory(name))
        if machine.spec.user_data is not None:
            user_data = directory / "user-data"
            files.write_atomic(user_data, machine.spec.user_data, mode=0o600)
            self.make_seed(machine, user_data, directory / "cidata.iso")
        key = _Errand(lambda: self._host_key(machine))
        if machine.spec.disk_mib > image.size_mib:
            (directory / "grow").touch(mode=0o600)
        temporary = directory / ".disk.ext4.new"
        try:
            files.copy_disk(image.path, temporary, size_mib=machine.spec.disk_mib)
            key.done()
            temporary.replace(self.disk(name))
        finally:
            # Whoever takes this back must not meet a key that is still being made.
            key.wait()
            temporary.unlink(missing_ok=True)

    def is_made(self, name: str) -> bool:
        return self.disk(name).exists()

    def grow(self, name: str, disk_mib: int) -> None:
        """Make the disk larger; what grows the file system in it is the guest, at its next boot."""
        try:
            (self._directory(name) / "grow").touch(mode=0o600)
            os.truncate(self.disk(name), disk_mib * 1024 * 1024)
        except OSError as error:
            raise HostError(
                f"The disk of {name!r} cannot grow to {disk_mib} MiB.",
                details=str(error),
                resolution="Check the disk and the room beside it (df -h); nothing was changed.",
            ) from error

    def grown(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._directory(name) / "grow").unlink(missing_ok=True)

    def prepare_boot(self, machine: Machine, kernel: Kernel, resolvers: Sequence[str]) -> Path | None:
        """Make what an engine needs to find: the directories of sockets and logs, and the initrd."""
        files.make_dir(self.paths.sockets, mode=0o700)
        files.make_dir(self.paths.logs)
        if kernel.stage1 is None:
            return None
        directory = self._directory(machine.name)
        # Made with the machine; one that was lost is no reason not to boot.
        self._host_key(machine)
        out = directory / "initrd"
        self.write_initrd(
            out,
            machine=machine,
            stage1=kernel.stage1,
            host_key=directory / "ssh_host_ed25519_key",
            resolvers=resolvers,
            grow=(directory / "grow").exists(),
        )
        return out

    def mark_boot(self, name: str, *, at: str) -> None:
        """Mark the boot in the console log, and trim the log to its newest CONSOLE_BYTES."""
        console = self.console(name)
        try:
            with contextlib.suppress(FileNotFoundError):
                if console.stat().st_size > CONSOLE_BYTES:
                    files.write_atomic(console, _tail(console, CONSOLE_BYTES // 2), mode=0o600, durable=False)
            fd = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, _BOOT_MARK.format(name=name, at=at).encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(
                f"The console log {console} cannot be written.",
                details=str(error),
                resolution="Check the file system it lies on: df -h",
            ) from error

    def seed_disk(self, machine: Machine) -> Path | None:
        seed = self._directory(machine.name) / "cidata.iso"
        return seed if seed.exists() else None

    def last_words(self, name: str) -> str:
        words = _tail_or_nothing(self.console(name), _WORDS_BYTES)
        mark = _BOOT_MARK.partition("{at}")[0].format(name=name)
        return words.rpartition(mark)[2]

    def engine_words(self, name: str) -> str:
        return _tail_or_nothing(self.log(name), _LOG_WORDS_BYTES)

    def disk(self, name: str) -> Path:
        return self._directory(name) / "disk.ext4"

    def console(self, name: str) -> Path:
        return files.confined(self.paths.logs, f"{name}.console")

    def log(self, name: str) -> Path:
        return files.confined(self.paths.logs, f"{name}.log")

    def socket(self, name: str) -> Path:
        return files.confined(self.paths.sockets, f"{name}.sock")

    def config(self, name: str) -> Path:
        return self._directory(name) / "engine.json"

    def known_hosts(self, name: str) -> Path:
        return self._directory(name) / "known_hosts"

    def remove(self, name: str) -> None:
        # The disk goes last but one: as long as it is there, the machine counts as made.
        for path in (self.socket(name), self.log(name), self.console(name), self._directory(name)):
            files.remove_tree(path)

    def _directory(self, name: str) -> Path:
        return files.confined(self.paths.machines, name)

    def _host_key(self, machine: Machine) -> None:
        directory = self._directory(machine.name)
        key = directory / "ssh_host_ed25519_key"
        if key.exists() and key.with_suffix(".pub").exists() and self.known_hosts(machine.name).exists():
            return
        self.make_host_key(key)
        public = key.with_suffix(".pub").read_text(encoding="ascii").split()
        # Named after the machine, not the address: another machine may have the address one day.
        line = f"{machine.id} {public[0]} {public[1]}\n"
        files.write_atomic(self.known_hosts(machine.name), line, mode=0o644, durable=False)


class _Errand:
    """A piece of work done beside another; what it raises, `done` raises."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: VmmError | None = None
        self._work = work
        import threading

        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    def done(self) -> None:
        self.wait()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        except VmmError as error:
            self._error = error
        except OSError as error:
            self._error = HostError(
                "A machine's host key cannot be written.", details=str(error), resolution="Check the disk: df -h"
            )


def _tail(path: Path, count: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - count))
        return stream.read(count)


def _tail_or_nothing(path: Path, count: int) -> str:
    try:
        return _tail(path, count).decode(errors="replace")
    except OSError:
        return ""
