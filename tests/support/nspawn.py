"""A host with systemd as its PID 1: this host's own programs, on a root of its own that is thrown away."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hosts import sh, wait_for


@dataclass
class Container:
    root: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    init: int = 0

    def boot(self) -> None:
        """Boot it, and wait until systemd says that all is up."""
        argv = ["systemd-nspawn", "-q", "-D", str(self.root), "--register=no", "--keep-unit", "--private-network",
                "--resolv-conf=off", "--timezone=off", "--console=pipe",
                "--bind=/dev/net/tun", "--bind=/dev/kvm", "-b", "systemd.unit=multi-user.target"]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._is_up, timeout=60, what="the container's boot")

    def _is_up(self) -> bool:
        # Its first child is not its init yet, for a moment that is long on a busy host.
        self.init = int(self._child() or 0)
        up = ("running", "degraded")
        return self.init != 0 and self.run("systemctl", "is-system-running", check=False).stdout.strip() in up

    def _child(self) -> str:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-2000:]
        pid = self.process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip().partition(" ")[0]

    def run(self, *argv: str, check: bool = True, timeout: float = 180, **kwargs) -> subprocess.CompletedProcess[str]:
        """Run a program inside, as a user who has logged in."""
        inside = ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", "env", "-C", "/", "-i"]
        environment = [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "LANG=C.UTF-8",
        ]
        return sh(*inside, *environment, *argv, check=check, timeout=timeout, **kwargs)

    def reboot(self) -> None:
        """Reboot it in good order: systemd stops every unit, and the next boot is another nspawn."""
        self.run("systemctl", "--no-block", "reboot")
        self.ended(timeout=150)
        self.boot()

    def crash(self) -> None:
        """Pull the plug."""
        assert self.process is not None
        os.kill(self.init, 9)
        self.ended(timeout=30)

    def ended(self, *, timeout: float) -> None:
        assert self.process is not None
        self.process.wait(timeout=timeout)
        self.process = None


@contextlib.contextmanager
def a_container(directory: Path) -> Iterator[Container]:
    """Give a container that has booted; nothing of it stays."""
    upper, root = directory / "upper", directory / "root"
    for path in (upper, root):
        path.mkdir()
    # The upper layer must not lie on the file system of the lower one, which is the host's root.
    sh("mount", "-t", "tmpfs", "-o", "mode=755", "vmmtest", str(upper))
    try:
        for name in ("top", "work"):
            (upper / name).mkdir()
        layers = f"lowerdir=/,upperdir={upper}/top,workdir={upper}/work"
        sh("mount", "-t", "overlay", "-o", layers, "vmmtest", str(root))
        container = Container(root, directory / "container.log")
        try:
            _furnish(root)
            container.boot()
            yield container
        finally:
            if container.process is not None:
                container.crash()
            # The kernel takes a moment to give the last mount back.
            wait_for(lambda: sh("umount", str(root), check=False).returncode == 0, what="umount")
            _remove_groups()
    finally:
        sh("umount", str(upper))
    print(container.log.read_text(errors="replace")[-3000:])


# nspawn divides the cgroup that it was started in, and leaves it so.
_NSPAWN = ("supervisor", "payload")


def groups() -> list[Path]:
    """Return the cgroups of vmm and of containers of ours, those within one before it."""
    own = {line.split(":")[1]: line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    found: list[Path] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, root, kind, options, *_ = line.split(" ")
        for controllers, path in own.items():
            if kind == ("cgroup" if controllers else "cgroup2") and set(controllers.split(",")) - {""} <= set(
                options.split(",")
            ):
                tops = (Path(root, "vmm"), *(Path(f"{root}{path}", name) for name in _NSPAWN))
                found += [group for top in tops if top.is_dir() for group in (top, *top.rglob("*/"))]
    return sorted(set(found), reverse=True)


def _remove_groups() -> None:
    for group in groups():
        if set(_NSPAWN) & set(group.parts):
            wait_for(lambda group=group: _is_removed(group), what=f"the end of the cgroup {group}")


def _is_removed(group: Path) -> bool:
    """Remove a cgroup; the kernel takes a moment to let go of its processes."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _furnish(root: Path) -> None:
    """Take off what this host's own installation would start, and what it is known by."""
    for entry in (root / "etc/systemd/system").iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (root / "etc/fstab").write_text("")
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").write_text("vmmtest\n")
    for unit in ("networking.service", "apt-daily.timer", "apt-daily-upgrade.timer", "ssh.service"):
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
