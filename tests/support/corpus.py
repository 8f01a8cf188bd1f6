"""Whole roots that nobody tuned, made from packages: built once and kept beside the tests' library."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from hosts import LIBRARY, sh

CACHE = LIBRARY.with_name(f"{LIBRARY.name}-roots")
_SUITE = "trixie"
_ONE_AT_A_TIME = threading.Lock()
_EXCLUDED = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "locale", "doc")]
# One tree for all that boot with systemd: what a root does is decided by what is enabled in it.
_SYSTEMD = (
    "openssh-server", "systemd-sysv", "udev", "dbus", "iproute2", "iputils-ping", "procps", "ifupdown",
    "isc-dhcp-client", "network-manager", "cloud-init", "netplan.io", "busybox-static", "libpam-systemd",
)  # fmt: skip
_OPENRC = ("openssh-server", "sysvinit-core", "openrc", "ifupdown", "isc-dhcp-client", "iproute2", "udev", "procps")
_NETWORKS = ("NetworkManager.service", "networking.service")
_CLOUD = ("main", "local", "network")


def _base(packages: tuple[str, ...]) -> Path:
    """Return the archive of a tree with these packages, as the registry has them."""
    with _ONE_AT_A_TIME:
        return _made(packages)


def _made(packages: tuple[str, ...]) -> Path:
    key = hashlib.sha256(" ".join((_SUITE, *packages)).encode()).hexdigest()[:12]
    archive = CACHE / f"{key}.tar"
    if not archive.exists():
        CACHE.mkdir(exist_ok=True)
        # Its name ends in .tar, by which mmdebstrap knows what to make.
        new = CACHE / f"{key}.{os.getpid()}.tar"
        argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", *_EXCLUDED]
        sh(*argv, _SUITE, str(new), timeout=1200)
        new.replace(archive)
    return archive


def build(name: str, directory: Path) -> Path:
    """Make one of `ROOTS` as a directory; nothing is started or configured in it but what it is named after."""
    tree = directory / name
    tree.mkdir(parents=True)
    packages = _OPENRC if name == "openrc" else _SYSTEMD
    sh("tar", "-C", str(tree), "--exclude=./dev/*", "-xf", str(_base(packages)), timeout=300)
    wants = tree / "etc/systemd/system"
    if packages is _SYSTEMD:
        for unit in _NETWORKS:
            for path in wants.glob(f"*.wants/{unit}"):
                path.unlink()
        (tree / "etc/cloud/cloud-init.disabled").touch()
    # What an image of a distribution comes with: no keys, no id, and its own idea of a name.
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for file in ("etc/machine-id", "etc/resolv.conf", "etc/hostname"):
        (tree / file).unlink(missing_ok=True)
    ROOTS[name](tree)
    return tree


def _write(tree: Path, name: str, text: str, mode: int = 0o644) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _enable(tree: Path, unit: str) -> None:
    link = tree / "etc/systemd/system/multi-user.target.wants" / unit
    link.unlink(missing_ok=True)
    link.symlink_to(f"/usr/lib/systemd/system/{unit}")


def _exported(tree: Path) -> None:
    """As `docker export` writes it: the traces of its container, and files that were mounts there, now empty."""
    for name in (".dockerenv", "run/.containerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf"):
        _write(tree, name, "")
    _write(tree, "etc/fstab", "UUID=1111-2222 /boot/efi vfat defaults 0 1\nLABEL=swap none swap sw 0 0\n")


def _networkd(tree: Path) -> None:
    _write(tree, "etc/systemd/network/00-all.network", "[Match]\nName=*\n[Network]\nDHCP=yes\n")
    _enable(tree, "systemd-networkd.service")
    _write(tree, "etc/ssh/sshd_config.d/10-own.conf", "PermitRootLogin no\nAuthorizedKeysFile /etc/keys/%u\n")


def _ifupdown(tree: Path) -> None:
    text = "auto lo eth0\nallow-hotplug eth0\niface lo inet loopback\niface eth0 inet dhcp\n"
    _write(tree, "etc/network/interfaces", text)
    _enable(tree, "networking.service")


def _network_manager(tree: Path) -> None:
    _enable(tree, "NetworkManager.service")
    own = "[connection]\nid=wired\ntype=ethernet\n[ipv4]\nmethod=auto\n"
    _write(tree, "etc/NetworkManager/system-connections/wired.nmconnection", own, 0o600)


def _cloud_init(tree: Path) -> None:
    (tree / "etc/cloud/cloud-init.disabled").unlink()
    _enable(tree, "systemd-networkd.service")


def _busybox(tree: Path) -> None:
    """Without systemd: an init that starts sshd and no more, and odd things where facts belong."""
    (tree / "usr/sbin/init").unlink()
    (tree / "usr/sbin/init").symlink_to("../bin/busybox")
    for name in ("poweroff", "reboot", "halt"):
        (tree / "usr/sbin" / name).unlink()
        (tree / "usr/sbin" / name).symlink_to("../bin/busybox")
    _write(tree, "etc/inittab", "::sysinit:/etc/rc\n::respawn:/usr/sbin/sshd -D -e\n::shutdown:/bin/umount -a -r\n")
    _write(tree, "etc/rc", "#!/bin/sh\nmkdir -p /dev/pts && mount -t devpts devpts /dev/pts\n", 0o755)
    for name in ("etc/resolv.conf", "etc/hosts"):
        (tree / name).unlink(missing_ok=True)
        os.mkfifo(tree / name)


def _openrc(tree: Path) -> None:
    (tree / ".dockerenv").touch()
    _write(tree, "etc/network/interfaces", "auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n")
    _write(tree, "etc/rc.conf", 'rc_sys="docker"\n')


ROOTS: dict[str, Callable[[Path], None]] = {
    "exported": _exported,
    "busybox": _busybox,
    "networkd": _networkd,
    "ifupdown": _ifupdown,
    "networkmanager": _network_manager,
    "openrc": _openrc,
    "cloud-init": _cloud_init,
}


def remove(tree: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)


if __name__ == "__main__":
    for each in (_SYSTEMD, _OPENRC):
        print(f"    {_base(each)}")
