"""Sizes as people write them: plain megabytes as the original took them, or `512M`, `2G`, `1T`."""

import re

from vmm.errors import UsageError
from vmm.model.words import quoted

# Compiled at its first use, as every pattern on the way of a short command is.
_SIZE = r"(?ai)([0-9]{1,12})(?:([MGT])(?:i?B)?)?"
# Eighteen digits are more than anything has that vmm counts, and less than the kernel's own 64 bits.
_WHOLE = r"[0-9]{1,18}"
_DECIMAL = r"[0-9]{1,12}(\.[0-9]{1,9})?"
_MIB = {"": 1, "M": 1, "G": 1024, "T": 1024 * 1024}

# Bounds of the original (`original-surface`: cpus 1-32, memory 128-65536, disk 256-1048576).
CPUS = (1, 32)
MEMORY_MIB = (128, 65536)
DISK_MIB = (256, 1048576)


def parse_mib(text: str) -> int:
    """Return MiB from `512`, `512M` or `2G`; raise UsageError when it is no size."""
    match = re.fullmatch(_SIZE, text)
    if match is None:
        raise UsageError(
            f"{quoted(text)} is not a size.",
            details="A size is a whole number of MB, or a number with M, G or T.",
            resolution="Write it such as 512, 512M or 2G.",
        )
    return int(match[1]) * _MIB[(match[2] or "").upper()]


def parse_whole(text: str) -> int | None:
    """Return the number that `text` is in plain digits; None for anything else: a sign, a blank, digits of others."""
    return int(text) if re.fullmatch(_WHOLE, text) else None


def parse_decimal(text: str) -> float | None:
    """Return the number that `text` is, such as `2` or `0.5`; None for anything else."""
    return float(text) if re.fullmatch(_DECIMAL, text) else None


def within(value: int, bounds: tuple[int, int], *, what: str, unit: str = "") -> int:
    """Return `value` when it lies in `bounds` (both ends allowed); raise UsageError naming `what` otherwise."""
    low, high = bounds
    if not low <= value <= high:
        raise UsageError(
            f"{value}{unit} is not possible for {what}.",
            details=f"The least is {low}{unit}, the most {high}{unit}.",
            resolution=f"Choose a value from {low} to {high}.",
        )
    return value


def human_bytes(count: int) -> str:
    """Return a byte count the way people read it: `412 MiB`, `1.5 GiB`."""
    if count < 1024 * 1024:
        return f"{count / 1024:.0f} KiB"
    if count < 1024**3:
        return f"{count / 1024**2:.0f} MiB"
    return f"{count / 1024**3:.1f} GiB"
