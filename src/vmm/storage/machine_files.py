"""A machine's own directory, `vms/NAME`: its disk, its host key, its initrd; and its console and log beside it."""

from __future__ import annotations

import contextlib
import os

from vmm import TYPE_CHECKING
from vmm.errors import HostError, UsageError
from vmm.host import files, process
from vmm.host.reading import read_text
from vmm.model.text import harmless
from vmm.model.value import Value
from vmm.storage import description

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from vmm.config import Paths
    from vmm.model.image import Image, Kernel
    from vmm.model.machine import Machine
    from vmm.model.machine_files import WriteInitrd
    from vmm.model.network import PortForward

# A console is turned over at this size: what was written is kept as NAME.console.1, so 16 MiB a machine at most.
CONSOLE_BYTES = 8 * 1024 * 1024
# An engine's log is for what went wrong; one that grows without end is cut to its newest part.
LOG_BYTES = 1024 * 1024
_WORDS_BYTES = 4096
_LOG_WORDS_BYTES = 2048
_FIRST_WORDS_BYTES = 16 * 1024
_BOOT_MARK = "\n=== vmm: {name} boots at {at} ===\n"


def _no_group() -> None:
    return None


class MachineDirectories(Value):
    """Every machine's own files.

    `make_host_key` writes a private key to the path it is given and the public one beside it (`.pub`).
    `make_seed` writes a NoCloud disk from (machine, user data, path). `socket_group` returns the group that may
    reach the engines' API.
    """

    paths: Paths
    write_initrd: WriteInitrd
    make_host_key: Callable[[Path], None]
    make_seed: Callable[[Machine, Path, Path], None]
    socket_group: Callable[[], int | None] = _no_group

    def make(self, machine: Machine, image: Image) -> None:
        """Make the directory with its disk and host key. The disk is made last: its name says that all is there."""
        name = machine.name
        files.refuse_unsafe(self.paths.data_dir)
        # Every user may list machines and read their known_hosts; the disk and the keys in it are root's.
        files.make_dir(self.paths.machines)
        directory = files.make_dir(self._directory(name))
        if machine.spec.user_data is not None:
            user_data = directory / "user-data"
            files.write_atomic(user_data, machine.spec.user_data, mode=0o600)
            self.make_seed(machine, user_data, directory / "cidata.iso")
        self._describe(machine, ())
        self._publish_keys(machine)
        if machine.spec.disk_mib > image.size_mib:
            (directory / "grow").touch(mode=0o600)
        temporary = directory / ".disk.ext4.new"
        key = _Errand(lambda: self._host_key(machine))
        try:
            key.begin()
            files.copy_disk(image.path, temporary, size_mib=machine.spec.disk_mib)
            key.done()
            temporary.replace(self.disk(name))
        finally:
            # Whoever takes this back must not meet a key that is still being made.
            key.wait()
            temporary.unlink(missing_ok=True)

    def is_made(self, name: str) -> bool:
        return self.disk(name).exists()

    def strangers(self, name: str) -> list[str]:
        return description.strangers(self._directory(name))

    def disk_mib(self, name: str) -> int:
        """Return the size of the disk's file in MiB, rounded up. Raises OSError where it cannot be seen."""
        return -(-self.disk(name).stat().st_size // (1024 * 1024))

    def grow(self, name: str, disk_mib: int) -> None:
        """Make the disk larger; what grows the file system in it is the guest, at its next boot.

        A database that was put back may know it as smaller than it is: what counts is the file.
        """
        try:
            there_mib = self.disk_mib(name)
            if there_mib > disk_mib:
                raise UsageError(
                    f"The disk of {name!r} cannot shrink to {disk_mib} MiB.",
                    details=f"It is recorded as smaller, and has {there_mib} MiB; a disk can only grow.",
                    resolution=f"Give --disk {there_mib} or more.",
                )
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
        files.refuse_unsafe(self.paths.data_dir)
        group = self.socket_group()
        files.make_dir(self.paths.sockets, mode=0o700 if group is None else 0o710)
        if group is not None:
            os.chown(self.paths.sockets, 0, group)
        files.make_dir(self.paths.logs)
        if kernel.stage1 is None:
            return None
        directory = self._directory(machine.name)
        # Made with the machine; one that was lost is no reason not to boot.
        self._host_key(machine)
        self._publish_keys(machine)
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
        """Mark the boot in the console log."""
        console = self.console(name)
        try:
            self.trim(name)
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

    def trim(self, name: str) -> None:
        """Keep console and log within their bounds, the newest of them; the engine goes on writing meanwhile."""
        console = self.console(name)
        if _size(console) > CONSOLE_BYTES:
            turn_over(console, self.older_console(name))
        trim_log(self.log(name))

    def seed_disk(self, machine: Machine) -> Path | None:
        seed = self._directory(machine.name) / "cidata.iso"
        return seed if seed.exists() else None

    def last_words(self, name: str) -> str:
        words = _tail_or_nothing(self.console(name), _WORDS_BYTES)
        mark = _BOOT_MARK.partition("{at}")[0].format(name=name)
        if mark not in words and len(words) < _WORDS_BYTES:
            words = _tail_or_nothing(self.older_console(name), _WORDS_BYTES) + words
        return words.rpartition(mark)[2]

    def first_words(self, name: str) -> str:
        mark = _BOOT_MARK.partition("{at}")[0].format(name=name).encode()
        for path in (self.console(name), self.older_console(name)):
            with contextlib.suppress(OSError):
                _, found, words = _tail(path, CONSOLE_BYTES).rpartition(mark)
                if found:
                    return _text(words[:_FIRST_WORDS_BYTES])
        return ""

    def is_unmounted(self, name: str) -> bool:
        try:
            with self.disk(name).open("rb") as stream:
                stream.seek(1024)
                return not _is_in_use(stream.read(1024))
        except OSError:
            return True

    def engine_words(self, name: str) -> str:
        return _tail_or_nothing(self.log(name), _LOG_WORDS_BYTES)

    def disk(self, name: str) -> Path:
        return self._directory(name) / "disk.ext4"

    def console(self, name: str) -> Path:
        return files.confined(self.paths.logs, f"{name}.console")

    def older_console(self, name: str) -> Path:
        return files.confined(self.paths.logs, f"{name}.console.1")

    def log(self, name: str) -> Path:
        return files.confined(self.paths.logs, f"{name}.log")

    def socket(self, name: str) -> Path:
        return files.confined(self.paths.sockets, f"{name}.sock")

    def config(self, name: str) -> Path:
        return self._directory(name) / "engine.json"

    def known_hosts(self, name: str) -> Path:
        return self._directory(name) / "known_hosts"

    def unlink_socket(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self.socket(name).unlink(missing_ok=True)

    def describe(self, machine: Machine, forwards: Sequence[PortForward]) -> None:
        if self.is_its_own(machine):
            self._describe(machine, forwards)

    def _describe(self, machine: Machine, forwards: Sequence[PortForward]) -> None:
        # It can be made again from the database, as long as there is one: a full disk is no reason to fail for it.
        with contextlib.suppress(HostError):
            text = description.text_of(machine, forwards)
            files.write_atomic(self._directory(machine.name) / description.FILE, text, mode=0o600, durable=False)

    def is_described(self, name: str) -> bool:
        return (self._directory(name) / description.FILE).exists()

    def is_its_own(self, machine: Machine) -> bool:
        described = description.identity(self._directory(machine.name))
        return described in (None, machine.id)

    def check_removable(self, name: str) -> None:
        """Raise HostError where a machine's files cannot be removed."""
        for directory in (self._directory(name), self.paths.machines, self.paths.logs, self.paths.sockets):
            if directory.exists() and not os.access(directory, os.W_OK):
                raise HostError(
                    f"The files of {name!r} cannot be removed.",
                    details=f"{directory} is on a file system that is read-only. The machine was left as it is.",
                    resolution="Mount the file system writable again, then delete the machine.",
                )

    def remove(self, name: str) -> None:
        # The disk goes last but one: as long as it is there, the machine counts as made.
        logs = (self.log(name), self.console(name), self.older_console(name))
        for path in (self.socket(name), *logs, self._directory(name)):
            files.remove_tree(path)

    def _directory(self, name: str) -> Path:
        return files.confined(self.paths.machines, name)

    def _publish_keys(self, machine: Machine) -> None:
        """Write each public key that the machine was given to a file, which `vmm ssh` offers to a user's agent."""
        for number, line in enumerate(machine.spec.ssh_keys):
            path = self._directory(machine.name) / "keys" / f"{number}.pub"
            # They never change.
            if not path.exists():
                files.make_dir(path.parent)
                files.write_atomic(path, f"{line}\n", mode=0o644, durable=False)

    def _host_key(self, machine: Machine) -> None:
        directory = self._directory(machine.name)
        key = directory / "ssh_host_ed25519_key"
        if key.exists() and key.with_suffix(".pub").exists() and self.known_hosts(machine.name).exists():
            return
        self.make_host_key(key)
        public = read_text(key.with_suffix(".pub")).split()
        # Named after the machine, not the address: another machine may have the address one day.
        line = f"{machine.id} {public[0]} {public[1]}\n"
        files.write_atomic(self.known_hosts(machine.name), line, mode=0o644, durable=False)


class _Errand:
    """A piece of work done beside another; what it raises, `done` raises."""

    def __init__(self, work: Callable[[], None]) -> None:
        import threading

        self._error: Exception | None = None
        self._work = work
        self._begun = False
        # Not Thread.join: one that was interrupted takes its thread for ended (CPython issue 90882).
        self._ended = threading.Event()

    def begin(self) -> None:
        import threading

        try:
            with process.undisturbed():
                threading.Thread(target=self._run, daemon=True).start()
                self._begun = True
        except RuntimeError:
            # There is no room for a thread: then one after the other.
            self._run()

    def wait(self) -> None:
        if self._begun:
            self._ended.wait()

    def done(self) -> None:
        self.wait()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        except OSError as error:
            self._error = HostError(
                "A machine's host key cannot be written.", details=str(error), resolution="Check the disk: df -h"
            )
        except Exception as error:  # noqa: BLE001  # it is raised again, where `done` is called
            self._error = error
        finally:
            self._ended.set()


def trim_log(path: Path) -> None:
    """Cut a log that someone appends to to its newest part once it is larger than LOG_BYTES."""
    if _size(path) > LOG_BYTES:
        turn_over(path, None)


def turn_over(path: Path, older: Path | None) -> None:
    """Empty a file that someone appends to; what it held is in `older` then, or with None its newer half stays.

    What is written between the copy and the emptying is lost: a few bytes of a flood.
    """
    with path.open("r+b") as stream:
        if older is None:
            kept = _tail(path, LOG_BYTES // 2)
            stream.truncate(0)
            stream.write(kept)
            return
        try:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - CONSOLE_BYTES))
            _keep(stream, older)
        finally:
            stream.truncate(0)


def _keep(stream: BinaryIO, older: Path) -> None:
    """Copy the rest of a stream; on a full disk, which this is against, nothing of it is kept, and nothing is wrong."""
    with contextlib.suppress(OSError):
        fd = os.open(older, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb", closefd=False) as kept:
                while part := stream.read(1024 * 1024):
                    kept.write(part)
        except OSError:
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)


def _is_in_use(superblock: bytes) -> bool:
    """Whether a file system is mounted, or was not unmounted, says its superblock (struct ext4_super_block).

    With a journal (4 of the compatible features at 0x5C) it needs recovery then (4 of the incompatible ones at 0x60);
    without one the first bit of its state (at 0x3A) is not set.
    """
    if superblock[0x38:0x3A] != b"\x53\xef":
        return False
    return bool(superblock[0x60] & 4) if superblock[0x5C] & 4 else not superblock[0x3A] & 1


def _size(path: Path) -> int:
    """Return what a file takes on disk, 0 for none: one that was cut under a writer has a hole before its end."""
    try:
        there = path.stat()
    except OSError:
        return 0
    return min(there.st_size, there.st_blocks * 512)


def _tail(path: Path, count: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - count))
        return stream.read(count)


def _tail_or_nothing(path: Path, count: int) -> str:
    try:
        return _text(_tail(path, count))
    except OSError:
        return ""


def _text(words: bytes) -> str:
    """Return a guest's or an engine's own words: what is made of them is shown, and kept."""
    return harmless(words.decode(errors="replace"), keep="\n\r\t")
