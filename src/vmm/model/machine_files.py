"""What lies on disk of a machine: the Protocols of its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vmm.model.image import Image, Kernel
from vmm.model.machine import Machine
from vmm.model.network import PortForward


class MachineFiles(Protocol):
    """A machine's own directory: its disk, its initrd, its console."""

    def make(self, machine: Machine, image: Image) -> None:
        """Make directory, disk (a copy of the image, grown to the spec's size) and host key; whole or not at all."""
        ...

    def strangers(self, name: str) -> list[str]:
        """Return the names of what lies in a machine's directory and is not vmm's."""
        ...

    def is_made(self, name: str) -> bool:
        """Whether the machine's disk is there."""
        ...

    def grow(self, name: str, disk_mib: int) -> None:
        """Make the disk larger; the guest's file system follows at its next boot. UsageError where it has more."""
        ...

    def grown(self, name: str) -> None:
        """Note that a guest booted with its larger disk, so that the next boot need not grow it again."""
        ...

    def last_words(self, name: str) -> str:
        """Return the end of the console since the last boot, at most 4 KiB; empty where there is none."""
        ...

    def first_words(self, name: str) -> str:
        """Return the beginning of the console since the last boot, at most 16 KiB; empty where there is none."""
        ...

    def is_unmounted(self, name: str) -> bool:
        """Whether the disk's file system was left in good order, as far as it says so itself."""
        ...

    def engine_words(self, name: str) -> str:
        """Return the end of the engine's log, at most 2 KiB."""
        ...

    def disk(self, name: str) -> Path: ...
    def prepare_boot(self, machine: Machine, kernel: Kernel, resolvers: Sequence[str]) -> Path | None:
        """Write the initrd (stage-1 and the machine's facts), return its path; None for a kernel without stage-1."""
        ...

    def mark_boot(self, name: str, *, at: str) -> None:
        """Write the line that marks a boot into the console log, and keep the log bounded."""
        ...

    def seed_disk(self, machine: Machine) -> Path | None:
        """Return the NoCloud seed disk when the machine has user data."""
        ...

    def console(self, name: str) -> Path: ...
    def log(self, name: str) -> Path: ...
    def socket(self, name: str) -> Path: ...
    def config(self, name: str) -> Path: ...
    def unlink_socket(self, name: str) -> None:
        """Remove the socket that an engine which has ended left; none is no error."""
        ...

    def describe(self, machine: Machine, forwards: Sequence[PortForward]) -> None:
        """Write down beside the disk what the database knows of the machine, for the day the database is lost.

        A description of another machine of that name stays.
        """
        ...

    def is_described(self, name: str) -> bool:
        """Whether what `describe` writes is there."""
        ...

    def is_its_own(self, machine: Machine) -> bool:
        """Whether its directory is not described as that of another machine of its name; no description is its own."""
        ...

    def check_removable(self, name: str) -> None:
        """Raise HostError where its files cannot be removed (a read-only file system)."""
        ...

    def remove(self, name: str) -> None:
        """Remove everything that is the machine's on disk; what is gone already is no error. Works on a full disk."""
        ...


class WriteInitrd(Protocol):
    """Writes a machine's initrd: the kernel's stage-1 and the machine's own facts."""

    def __call__(
        self, out: Path, *, machine: Machine, stage1: Path, host_key: Path, resolvers: Sequence[str], grow: bool
    ) -> None: ...
