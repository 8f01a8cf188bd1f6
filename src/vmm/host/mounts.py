"""Bind mounts, where a hard link cannot be: a file of another file system in a jail."""

from __future__ import annotations

from pathlib import Path

from vmm.host import ceilings, process


def bind(source: Path, target: Path, *, read_only: bool) -> None:
    """Show the file `source` at `target` as well. Raises HostError when the kernel refuses."""
    target.touch(mode=0o600)
    process.run(["mount", "--bind", str(source), str(target)])
    if read_only:
        process.run(["mount", "-o", "remount,bind,ro", str(target)])


def below(path: Path) -> list[Path]:
    """Return the mounts at `path` and below it, the innermost first."""
    inside = f"{path.resolve()}/"
    found: list[Path] = []
    for line in ceilings.table_lines(Path("/proc/self/mounts")):
        target = ceilings.unescaped(line.split(" ")[1])
        if f"{target}/".startswith(inside):
            found.append(Path(target))
    return found[::-1]


def options_of(path: Path) -> tuple[str, frozenset[str]]:
    """Return where the mount that `path` lies on, or would lie on, is mounted, and its options."""
    found, best = frozenset[str](), ""
    place = str(path.absolute().resolve())
    for line in ceilings.table_lines(Path("/proc/self/mounts")):
        fields = line.split(" ")
        target = ceilings.unescaped(fields[1])
        # Of several at one place the last is the one that is seen.
        if f"{place}/".startswith(f"{target.rstrip('/')}/") and len(target) >= len(best):
            best, found = target, frozenset(fields[3].split(","))
    return best, found


def unmount_below(path: Path) -> None:
    """Take off every mount at `path` and below it. Raises HostError where one is held."""
    for target in below(path):
        process.run(["umount", str(target)])
