"""The images of hosts with virtualization of their own: Debian 12, and Debian 13 as servers are set up today.

Each is made once and kept beside the tests' library, under a stamp of what it was made from. What it lacks is vmm's own
code: that is copied in at each start, so that no test sees another than this checkout's.

`python tests/support/nested_image.py` makes those that are missing or stale; with `--bootstrap` it does what takes
longest, and needs nothing of vmm's: scripts/test has that done while its first stages run.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmm.engines.choice import kvm_report

LIBRARY = Path(os.environ.get("VMM_TEST_LIBRARY", ""))
# Where vmm lies when scripts/install has put it there, and where a checkout and its packages are.
HOME, CHECKOUT, PACKAGES = Path("/usr/local/lib/vmm"), Path("/opt/vmm"), Path("/opt/packages")
# Not the subnet of the machine that the host itself is: vmm refuses that, rightly.
SUBNET, GATEWAY = "10.77.0.0/16", "10.77.0.1"
_SIZE = "8G"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PACKAGES = (
    # A server with ssh and a kernel.
    "systemd-sysv", "udev", "dbus", "iproute2", "iputils-ping", "openssh-server", "kmod", "procps", "curl",
    "ca-certificates", "linux-image-cloud-amd64",
    # What vmm needs: all that `vmm setup` would install, for there is no registry to install it from inside.
    "python3", "python3-venv", "nftables", "openssh-client", "e2fsprogs", "busybox-static", "mmdebstrap", "lz4", "zstd",
    "xz-utils", "bzip2", "xorriso", "qemu-system-x86",
)  # fmt: skip
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/qemu/edk2-*")


@dataclass(frozen=True)
class Recipe:
    name: str
    suite: str
    packages: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    # Links that are made in the root, what each leads to first.
    links: tuple[tuple[str, str], ...] = ()

    @property
    def directory(self) -> Path:
        return LIBRARY.parent / "vmm-nested" / self.name


# KVM is loaded by udev, by the CPU's features.
_MODULES = ("etc/modules-load.d/vmm.conf", "tun\nbridge\n")
_CONFIG = ("var/lib/vmm/config/config.toml", f'subnet = "{SUBNET}"\ngateway = "{GATEWAY}"\n')
# Of another machine each: what names this one is made at its first boot.
_OWN = (("etc/machine-id", ""), ("etc/hostname", "nested\n"), ("etc/fstab", ""))
_BASE = (_MODULES, _CONFIG, *_OWN)
# What clouds and installers write for a server's first link; the address is the one that stage-1 gave.
_NETWORKD = (
    "etc/systemd/network/10-uplink.network",
    "[Match]\nName=eth0\n\n[Network]\nAddress=172.16.0.2/16\nGateway=172.16.0.1\nDNS=192.0.2.2\nDomains=example.test\n",
)
# stage-1 writes a resolv.conf of its own; such a server's leads to resolved's stub.
_STUB_NAME = "stub-resolver.service"
_STUB = """[Unit]
Description=resolv.conf as resolved wants it
DefaultDependencies=no
After=local-fs.target
Before=systemd-resolved.service sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=-/bin/umount /etc/resolv.conf
ExecStart=/bin/ln -sfn ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
"""
_UNITS, _ETC = "/usr/lib/systemd/system", "etc/systemd/system"
DEBIAN_12 = Recipe(name="debian-12", suite="bookworm", files=_BASE)
DEBIAN_13 = Recipe(
    name="debian-13",
    suite="trixie",
    packages=("systemd-resolved",),
    files=(*_BASE, _NETWORKD, (f"{_ETC}/{_STUB_NAME}", _STUB)),
    links=(
        (f"{_UNITS}/systemd-networkd.service", f"{_ETC}/multi-user.target.wants/systemd-networkd.service"),
        (f"/{_ETC}/{_STUB_NAME}", f"{_ETC}/sysinit.target.wants/{_STUB_NAME}"),
        (
            f"{_UNITS}/systemd-networkd-wait-online.service",
            f"{_ETC}/network-online.target.wants/systemd-networkd-wait-online.service",
        ),
    ),
)
# Where this host has virtualization, hosts in it are fast, and all of their tests run; emulated they take an hour.
WHOLE = os.environ.get("VMM_TEST_NESTED") == "whole" or kvm_report().can_run_guests
RECIPES = (DEBIAN_12, DEBIAN_13) if WHOLE else (DEBIAN_12,)


@dataclass(frozen=True)
class Image:
    """A host's root, and the kernel that it boots with."""

    root: Path
    kernel: Path
    modules: Path


def image(recipe: Recipe) -> Image:
    """Return a host's image; make it when it is missing or stale (a minute and a half)."""
    bootstrap(recipe)
    directory = recipe.directory
    with _locked(directory):
        tree, stamp = directory / "tree", directory / "stamp"
        base, *kept = stamp.read_text().split()
        whole = _fingerprint(_all_of(recipe))
        if kept != [whole]:
            stamp.write_text(base)
            _furnish(recipe, tree)
            _to_ext4(tree, directory / "root.ext4")
            stamp.write_text(f"{base} {whole}")
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    (modules,) = (tree / "usr/lib/modules").iterdir()
    return Image(root=directory / "root.ext4", kernel=kernel, modules=modules)


def bootstrap(recipe: Recipe) -> None:
    """Make the tree of a host's packages when it is missing or stale."""
    directory = recipe.directory
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        stamp, base = directory / "stamp", _fingerprint(_base_of(recipe))
        if not stamp.exists() or stamp.read_text().split()[0] != base:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(directory / "tree", ignore_errors=True)
            _bootstrap(recipe, directory / "tree")
            stamp.write_text(base)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _base_of(recipe: Recipe) -> list[str]:
    # This file as well: what it once put into a tree, and no longer does, is to be gone.
    return [recipe.name, Path(__file__).read_text()]


def _all_of(recipe: Recipe) -> list[str]:
    library = [(LIBRARY / "stamp").read_text(), (LIBRARY / "packages/stamp").read_text()]
    return [*_base_of(recipe), *library]


def _fingerprint(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _run(*argv: str | Path, **kwargs) -> None:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"


def _bootstrap(recipe: Recipe, tree: Path) -> None:
    include = ",".join((*_PACKAGES, *recipe.packages))
    excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    keyring = [f"--keyring={_KEYRING}"] if _KEYRING.exists() else []
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}", *excluded, *keyring]
    _run(*argv, recipe.suite, tree, env={**os.environ, "TMPDIR": str(tree.parent)})


def _furnish(recipe: Recipe, tree: Path) -> None:
    """Put into a tree what makes it a host of vmm's: a library, vmm's environment, and its own settings."""
    data, packages = tree / "var/lib/vmm", _inside(tree, PACKAGES)
    for path in (data, packages, _inside(tree, HOME)):
        shutil.rmtree(path, ignore_errors=True)
    data.mkdir(parents=True)
    for part in ("bin", "images"):
        _run("cp", "-a", "--sparse=always", LIBRARY / part, data)
    shutil.copytree(LIBRARY / "packages", packages)
    for path, content in recipe.files:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(content)
    for target, path in recipe.links:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).unlink(missing_ok=True)
        (tree / path).symlink_to(target)
    # Not at home on a host without a console, and what would look for packages in the midst of a test.
    for unit in ("getty@.service", "serial-getty@.service", "apt-daily.timer", "apt-daily-upgrade.timer",
                 "e2scrub_all.timer", "man-db.timer"):  # fmt: skip
        (tree / "etc/systemd/system" / unit).unlink(missing_ok=True)
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    _run("chroot", tree, "python3", "-m", "venv", HOME, env=environment)
    pip = ["chroot", tree, f"{HOME}/bin/python", "-m", "pip", "install", "-q", "--no-index"]
    _run(*pip, f"--find-links={PACKAGES}", *_dependencies(), env=environment)
    entry = _inside(tree, HOME / "bin/vmm")
    entry.write_text(f"#!{HOME}/bin/python\nfrom vmm.__main__ import main\nraise SystemExit(main())\n")
    entry.chmod(0o755)
    (tree / "usr/local/bin/vmm").unlink(missing_ok=True)
    (tree / "usr/local/bin/vmm").symlink_to(HOME / "bin/vmm")


def _dependencies() -> list[str]:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    return project["project"]["dependencies"]


def _to_ext4(tree: Path, out: Path) -> None:
    out.unlink(missing_ok=True)
    _run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", tree, out, _SIZE)


def _inside(tree: Path, path: Path) -> Path:
    return tree / path.relative_to("/")


def main() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        list(pool.map(bootstrap if "--bootstrap" in sys.argv[1:] else image, RECIPES))


if __name__ == "__main__":
    main()
