"""What a user can get wrong, in three parts: what happened, the detail that proves it, what to do."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a vmm process ends with; `vmm ssh` and `vmm run` give the remote command's own instead."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


class VmmError(Exception):
    """An error that a user can cause or meet; anything else is a bug and keeps its trace.

    Args:
        brief: what happened, one sentence.
        details: what proves it: a path, a size, a program's own words.
        resolution: what to do, a command where there is one.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, brief: str, *, details: str, resolution: str) -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = without_numbers(details)
        self.resolution = resolution


def without_numbers(text: str) -> str:
    """Return what the system said without Python's `[Errno 2] `: it tells a user nothing that the words do not."""
    parts = text.split("[Errno ")
    return parts[0] + "".join(rest if "] " not in rest else rest.partition("] ")[2] for rest in parts[1:])


class UsageError(VmmError):
    """What was asked for can never be right: a bad name, a size out of bounds."""

    exit_code = ExitCode.USAGE


class ConfigError(VmmError):
    """The configuration file cannot be read, or holds a value that cannot be right."""


class NotFoundError(VmmError):
    """No machine, image, kernel or forward of that name."""


class ConflictError(VmmError):
    """Something of that name, port or state exists already or stands in the way."""


class StateError(VmmError):
    """What vmm remembers cannot be read or written."""


class HostError(VmmError):
    """The host lacks a program, a device, a right or room."""


class EngineError(VmmError):
    """Firecracker or qemu did not do what it was asked."""


class NetworkError(VmmError):
    """A bridge, a tap or a firewall rule could not be made or removed."""


class ImageError(VmmError):
    """An image or a kernel could not be fetched, read, built or verified."""


class GuestError(VmmError):
    """The inside of a guest did not answer, or not as expected."""
