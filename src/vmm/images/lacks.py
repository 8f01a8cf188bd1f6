"""What a machine made from an image will lack, or wait for: told when the image is imported."""

import platform
import re
import struct
from pathlib import Path

from vmm.images.ext4 import superblock_troubles
from vmm.images.inside import FileSystem, UnreadableError

INITS = ("/sbin/init", "/etc/init", "/bin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_SSHDS = ("/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd", "/usr/local/sbin/sshd")
_FOREIGN_TYPES = ("9p", "virtiofs", "vboxsf", "prl_fs")
_UNITS = "/etc/systemd/system"
_CRYPT_GENERATORS = tuple(
    f"{lib}/systemd/system-generators/systemd-cryptsetup-generator" for lib in ("/usr/lib", "/lib")
)
_SSH_UNIT = re.compile(r"(open)?sshd?(-server)?(@.*)?\.(service|socket)")
# ELF's e_machine (elf.h), and those that run on a host's own kernel.
_CPUS = {
    3: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    62: "x86-64",
    183: "aarch64",
    243: "riscv",
}
_OURS = {"x86_64": (62, 3), "aarch64": (183,)}
_WHAT = re.compile(rb"^[ \t]*What[ \t]*=[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_MOST_NAMED, _MOST_UNITS, _MOST_UNIT_BYTES = 10, 50, 64 * 1024


def shortcomings(path: Path) -> list[str]:
    """Return what a machine made from this image will lack, as sentences."""
    found: list[str] = []
    try:
        with path.open("rb") as stream:
            found += superblock_troubles(stream.read(2048))
            found += _shortcomings(FileSystem(stream))
    except (UnreadableError, struct.error, OSError, OverflowError, ValueError) as error:
        why = str(error) if isinstance(error, UnreadableError) else "it is damaged"
        found.append(f"What is in it was not looked at: {why}.")
    return found


def _shortcomings(root: FileSystem) -> list[str]:
    if set(root.names("/")) <= {"lost+found"}:
        return ["The image is empty: no machine can boot from it."]
    found: list[str] = []
    if root.exists("/debootstrap/debootstrap"):
        found.append(
            "The second stage of debootstrap was never run in it, and most packages are not set up. Run it, and import"
            " the tree again: chroot TREE /debootstrap/debootstrap --second-stage"
        )
    if not any(root.is_program(init) for init in INITS):
        found.append(
            "The image has no init (/sbin/init): no machine can boot from it. Images of containers have none;"
            " install one in it (Debian: systemd-sysv), with udev and an ssh server, and import it again."
        )
    elif cpu := _foreign_cpu(root):
        found.append(f"Its programs are for another kind of CPU ({cpu}): no machine of this host can boot from it.")
    elif not any(root.is_program(sshd) for sshd in _SSHDS):
        found.append(
            "The image has no ssh server: `vmm ssh`, `exec` and a stop by the guest will not work. Install one in it"
            " (Debian: openssh-server), and import it again."
        )
    elif not _starts_sshd(root):
        found.append(
            "No unit starts its ssh server: unless something else does, `vmm ssh`, `exec` and a stop by the guest will"
            " not work. Enable it in the tree (systemctl --root TREE enable ssh), and import it again."
        )
    if absent := _absent(root):
        found.append(f"Its /etc/fstab names what no machine has: {', '.join(absent)}. Machines boot without it.")
    return found + _waits(root)


def _foreign_cpu(root: FileSystem) -> str:
    """Return the kind of CPU that init and shell are for, where it is not this host's; else nothing."""
    ours = _OURS.get(platform.machine(), ())
    for path in (*INITS, "/bin/sh"):
        head = root.read(path, most=20) or b""
        if len(head) == 20 and head.startswith(b"\x7fELF") and head[5] in (1, 2):
            number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
            if ours and number not in ours:
                return _CPUS.get(number, f"number {number} of ELF")
    return ""


def _starts_sshd(root: FileSystem) -> bool:
    """Whether systemd is told to start it; whatever other inits are told is not judged."""
    if not any(root.is_program(systemd) for systemd in INITS[-2:]):
        return True
    for top in (_UNITS, "/usr/lib/systemd/system", "/lib/systemd/system"):
        for each in root.names(top):
            if each.endswith((".wants", ".requires")) and any(map(_SSH_UNIT.fullmatch, root.names(f"{top}/{each}"))):
                return True
    return False


def _waits(root: FileSystem) -> list[str]:
    """Return what systemd will wait for, besides what stands in /etc/fstab: that is mended at each boot."""
    found: list[str] = []
    if any(root.exists(generator) for generator in _CRYPT_GENERATORS) and (disks := _encrypted(root)):
        found.append(
            f"Its /etc/crypttab names what no machine has: {', '.join(disks)}. systemd waits up to 90 s for each at"
            " every boot; take the lines out, or give them the option noauto."
        )
    if units := _mount_units(root):
        found.append(
            f"Its units wait for what no machine has: {', '.join(units)}. systemd waits up to 90 s for each at every"
            " boot; disable them (systemctl disable UNIT)."
        )
    return found


def _rows(root: FileSystem, path: str) -> list[list[str]]:
    """Return the words of each line in a table of /etc, without its comments."""
    lines = (root.read(path) or b"").decode(errors="replace").splitlines()
    return [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _word(text: str, most: int) -> str:
    """Return a guest's word as a terminal may show it."""
    return repr(text)[1:-1][:most]


def _is_optional(options: list[str]) -> bool:
    return bool({"nofail", "noauto"} & set(",".join(options).split(",")))


def _absent(root: FileSystem) -> list[str]:
    """Return what of /etc/fstab will not be there: a machine's only disk is this file system, as /dev/vda."""
    return [
        f"{_word(row[0], 60)} ({row[1][:40]!r})"
        for row in _rows(root, "/etc/fstab")
        if len(row) >= 3 and not _is_optional(row[3:4]) and _is_absent(root, row[0], row[2])
    ][:_MOST_NAMED]


def _encrypted(root: FileSystem) -> list[str]:
    return [
        f"{_word(row[1], 60)} ({row[0][:40]!r})"
        for row in _rows(root, "/etc/crypttab")
        if len(row) >= 2 and not _is_optional(row[3:4]) and _is_absent(root, row[1], "")
    ][:_MOST_NAMED]


def _mount_units(root: FileSystem) -> list[str]:
    """Return the enabled units of mounts and swap areas, of the image's own, whose devices are not there."""
    names = root.names(_UNITS)
    wanted = {
        unit for each in names if each.endswith((".wants", ".requires")) for unit in root.names(f"{_UNITS}/{each}")
    }
    found: list[str] = []
    for unit in sorted(name for name in wanted if name.endswith((".mount", ".swap")))[:_MOST_UNITS]:
        said = _WHAT.findall(root.read(f"{_UNITS}/{unit}", most=_MOST_UNIT_BYTES) or b"")
        what = said[-1].decode(errors="replace") if said else ""
        if _is_absent(root, what, ""):
            found.append(f"{_word(unit, 60)} ({_word(what, 60)})")
    return found[:_MOST_NAMED]


def _is_absent(root: FileSystem, spec: str, kind: str) -> bool:
    # mount(8) and fstab(5): a space or a tab in a name is written in octal; quotes are taken away.
    spec = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), spec.replace('"', ""))
    key, equals, value = spec.partition("=")
    if spec.startswith("/dev/disk/by-"):
        key, value = spec.removeprefix("/dev/disk/by-").split("/", 1) if spec.count("/") > 3 else ("", "")
        # udev writes them as \x20.
        value = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), value)
        key, equals = key.upper(), "="
    if equals and key == "UUID":
        return value.replace("-", "").lower() != root.uuid
    if equals and key == "LABEL":
        return value != root.label
    if equals and key in ("PARTUUID", "PARTLABEL", "ID", "PATH"):
        return True
    if spec.startswith("/dev/"):
        return spec not in ("/dev/vda", "/dev/root")
    return kind in _FOREIGN_TYPES
