"""Other firewalls as their packages have them, run in a test's network without being installed: real ufw, real firewalld."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hosts import LIBRARY, Host, sh, wait_for

ROOT = LIBRARY.with_name(f"{LIBRARY.name}-firewalls")
_PYTHON = "/usr/bin/python3"
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={}</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy></busconfig>
"""


def fetch() -> Path:
    """Unpack both, with what they need and this system lacks, as the registry has them; once."""
    if not ROOT.exists():
        new = ROOT.with_name(f"{ROOT.name}.{os.getpid()}")
        (new / "debs/partial").mkdir(parents=True)
        options = ("--yes", "--quiet", "--reinstall", "--no-install-recommends", "--download-only")
        archives = ("-o", f"Dir::Cache::archives={new}/debs", "-o", "APT::Sandbox::User=root")
        sh("apt-get", "install", *options, *archives, "ufw", "firewalld", timeout=600)
        for package in sorted((new / "debs").glob("*.deb")):
            sh("dpkg", "-x", str(package), str(new))
        shutil.rmtree(new / "debs")
        new.rename(ROOT)
    return ROOT


@dataclass(frozen=True)
class Program:
    """A program out of the packages, run in a host's network."""

    host: Host
    words: tuple[str, ...]
    environment: dict[str, str]

    def __call__(self, *arguments: str) -> str:
        return self.host.run(*self.words, *arguments, env={**os.environ, **self.environment}).stdout


def ufw(host: Host, directory: Path) -> Program:
    """Give ufw with a configuration of its own, as its package leaves it, and not enabled yet."""
    for part in ("etc/ufw", "etc/default", "lib/ufw", "usr/share/ufw"):
        # Merged or not: newer packages have what is in /lib in /usr/lib.
        source = next(path for path in (ROOT / part, ROOT / "usr" / part) if path.exists())
        shutil.copytree(source, directory / part)
    templates = directory / "usr/share/ufw"
    for name in (
        "after.init",
        "after.rules",
        "after6.rules",
        "before.init",
        "before.rules",
        "before6.rules",
        "ufw.conf",
    ):
        shutil.copy(templates / name, directory / "etc/ufw")
    for name in ("user.rules", "user6.rules"):
        shutil.copy(templates / "iptables" / name, directory / "etc/ufw")
    words = (_PYTHON, str(ROOT / "usr/sbin/ufw"), f"--rootdir={directory}", f"--datadir={directory}")
    return Program(host, words, _environment())


@contextlib.contextmanager
def firewalld(host: Host, directory: Path) -> Iterator[Program]:
    """Run firewalld as its package configures it, on a bus of its own; give `firewall-cmd`."""
    shutil.copytree(ROOT / "etc/firewalld", directory / "firewalld")
    (directory / "bus.conf").write_text(_BUS.format(directory / "bus"))
    environment = {**_environment(), "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={directory}/bus"}
    configured = ("--system-config", f"{directory}/firewalld", "--default-config", f"{ROOT}/usr/lib/firewalld")
    daemon = (
        _PYTHON,
        f"{ROOT}/usr/sbin/firewalld",
        "--nofork",
        "--nopid",
        "--log-file",
        f"{directory}/log",
        *configured,
    )
    client = Program(host, (_PYTHON, f"{ROOT}/usr/bin/firewall-cmd"), environment)
    with contextlib.ExitStack() as stack:
        for argv in (("dbus-daemon", f"--config-file={directory}/bus.conf", "--nofork"), daemon):
            process = stack.enter_context(
                subprocess.Popen(
                    [*host.prefix, *argv],
                    env={**os.environ, **environment},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            stack.callback(process.terminate)
            wait_for((directory / "bus").exists, what="the bus")
        words = [*client.words, "--state"]
        ask = {**os.environ, **environment}
        wait_for(lambda: host.run(*words, check=False, env=ask).returncode == 0, timeout=60, what="firewalld")
        yield client


def _environment() -> dict[str, str]:
    libraries = [str(path) for path in (ROOT / "usr/lib").glob("*-linux-gnu")]
    return {
        "PYTHONPATH": str(ROOT / "usr/lib/python3/dist-packages"),
        "LD_LIBRARY_PATH": ":".join(libraries),
        "GI_TYPELIB_PATH": ":".join(f"{path}/girepository-1.0" for path in libraries),
    }


if __name__ == "__main__":
    print(f"    {fetch()}")
