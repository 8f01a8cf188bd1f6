"""A host with virtualization, as a machine of vmm's own: real Firecracker runs whole guests in it.

qemu's TCG emulates AMD's SVM with nested paging. So a machine on the qemu engine, with a Debian that has a kernel of its
own, systemd as its PID 1 and cgroup v2, is a host whose KVM enters a guest's user space. How long anything takes in it
means nothing; everything else is real. Where the outer host has virtualization itself, that is nested instead.
"""

import contextlib
import io
import json
import os
import select
import shlex
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nested_image
import pytest
from hosts import OUTSIDE_WORLD, Host, a_host, sh, the_world, wait_for
from nested_image import CHECKOUT, HOME, Recipe

TOP = Path(__file__).parents[2]
NAME = "nested"
# Emulated within emulation a guest's boot takes a minute, and now and then a kernel is lost without a word.
whole = pytest.mark.skipif(
    not nested_image.WHOLE,
    reason="this CPU has no virtualization, and an hour of emulated hosts is run when it is asked for:"
    " VMM_TEST_NESTED=whole scripts/test",
)
_BOOT_S = 300.0
# Emulation translates code by its address: what lies where it lay the last time need not be translated again.
_SAME_ADDRESSES = b"kernel.randomize_va_space = 0\n"
_WARM = "/opt/warm.py"
# The packages that scripts/install needs lie in the image.
OFFLINE = ("env", "PIP_NO_INDEX=1", f"PIP_FIND_LINKS={nested_image.PACKAGES}")


@dataclass
class Nested:
    """The host within; `host` is the one around it, and `world` the namespace of the world outside of both."""

    host: Host
    world: str
    control: Path
    machine_id: str
    _master: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _warm: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    # Its first life, and those after it.

    def boot(self) -> None:
        """Start it, and wait until its systemd says that all is up."""
        self.host.vmm("start", NAME, "--wait", "ssh", "--timeout", f"{_BOOT_S:.0f}", timeout=_BOOT_S + 60)
        self.connect()

    def connect(self) -> None:
        """Open the one connection that every command goes through, once the host is up."""
        self.disconnect()
        argv = [*self._ssh(), "-M", "-N", "-o", "ControlPersist=no", NAME]
        # Its first answer may be that nobody may log in yet: pam_nologin, while systemd starts.
        deadline = time.monotonic() + _BOOT_S
        while not self._is_connected():
            assert time.monotonic() < deadline, f"no ssh into the host: {self.console()[-3000:]}"
            if self._master is None or self._master.poll() is not None:
                self._master = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.2)
        up = ("running", "degraded")
        wait_for(lambda: self.run("systemctl", "is-system-running", check=False).stdout.strip() in up,
                 timeout=_BOOT_S, what="the host's boot")  # fmt: skip

    def disconnect(self) -> None:
        self.cool()
        if self._master is not None:
            self._master.terminate()
            self._master.wait()
            self._master = None
        self.control.unlink(missing_ok=True)

    def reboot(self, *, timeout: float = _BOOT_S) -> None:
        """Reboot it in good order: its systemd stops every unit, and vmm starts the machine that it is again."""
        before = self.boot_id()
        self.run("systemctl", "--no-block", "reboot", check=False)
        self.disconnect()
        pid = self.host.machine(NAME)["pid"]
        wait_for(lambda: self.host.machine(NAME)["pid"] not in (pid, None), timeout=timeout, what="the host's reboot")
        self.boot()
        assert self.boot_id() != before

    def pull_the_plug(self) -> None:
        """End it at once, as a power cut does, and start it again."""
        self.disconnect()
        self.host.vmm("stop", NAME, "--force")
        self.boot()

    def boot_id(self) -> str:
        return self.run("cat", "/proc/sys/kernel/random/boot_id").stdout.strip()

    def console(self) -> str:
        return self.host.console(NAME)

    # What is done in it.

    def run(
        self, *argv: str, check: bool = True, timeout: float = 400, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it as root, its words as they are given."""
        return sh(*self._ssh(), NAME, shlex.join(argv), check=check, timeout=timeout, input=stdin)

    def shell(self, script: str, **kwargs) -> str:
        """Run a line of shell in it and return what it said."""
        return self.run("sh", "-c", script, **kwargs).stdout.strip()

    def vmm(
        self, *arguments: str, check: bool = True, timeout: float = 400, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of vmm's in it, from an interpreter that is there already (tests/support/warm.py)."""
        if self._warm is None or self._warm.poll() is not None:
            argv = [*self._ssh(), NAME, f"exec {HOME}/bin/python {_WARM}"]
            self._warm = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            assert "ready" in self._read(self._warm, 120)
        assert self._warm.stdin is not None
        self._warm.stdin.write(json.dumps({"argv": arguments, "stdin": stdin}).encode() + b"\n")
        said = self._read(self._warm, timeout)
        if not said:
            self.cool()
            known = self.host.machine(NAME)
            raise AssertionError(
                f"vmm {shlex.join(arguments)} did not end within {timeout:.0f} s; "
                f"its host: {known['state']}, {known['reason']}; {self.console()[-2000:]}"
            )
        done = subprocess.CompletedProcess(["vmm", *arguments], **json.loads(said))
        assert done.returncode == 0 or not check, f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def cool(self) -> None:
        """Let go of that interpreter: another vmm lies there now."""
        if self._warm is not None:
            self._warm.kill()
            self._warm.communicate()
            self._warm = None

    @staticmethod
    def _read(process: subprocess.Popen[bytes], timeout: float) -> str:
        """Return the next line it says; empty when none comes in time."""
        assert process.stdout is not None
        said, deadline = b"", time.monotonic() + timeout
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
            more = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                return ""
            said += more
        return said.decode()

    def json(self, *arguments: str):
        return json.loads(self.vmm(*arguments, "--output", "json").stdout)

    def machine(self, name: str) -> dict:
        return self.json("show", name)

    def state(self, name: str) -> str:
        return self.machine(name)["state"]

    def start(self, *names: str, timeout: float = 400) -> None:
        """Start machines and wait for the ssh of each."""
        self.vmm("start", *names, "--wait", "ssh", "--timeout", f"{timeout:.0f}", timeout=timeout + 60)

    def guest(self, name: str, command: str, *, check: bool = True, timeout: float = 300) -> str:
        """Run a line of shell in a machine of this host's."""
        return self.vmm("exec", name, "--", "sh", "-c", command, check=check, timeout=timeout).stdout.strip()

    def events(self, name: str) -> list[tuple[str, str]]:
        """Return what happened to a machine since it was created, as (kind, detail), the oldest first."""
        found = [(event["kind"], event["detail"]) for event in self.json("events", name)]
        created = max((number for number, (kind, _) in enumerate(found) if kind == "created"), default=0)
        return found[created:]

    def guest_console(self, name: str) -> str:
        return self.run("cat", f"/var/lib/vmm/logs/{name}.console", check=False).stdout

    def unit(self, name: str) -> dict[str, str]:
        """Return what its systemd says of a machine's unit; empty where it knows of none."""
        script = f'u=$(systemctl list-units --all --plain --no-legend "vmm-{name}-*" | cut -d" " -f1); [ -z "$u" ] || systemctl show "$u"'
        return dict(line.split("=", 1) for line in self.shell(script).splitlines() if "=" in line)

    def wait(self, condition: str, *, timeout: float = 300) -> None:
        """Wait, in it, until a line of shell succeeds: polling from outside would cost it more than what it does."""
        script = f"end=$(($(date +%s) + {timeout:.0f})); until {condition}; do [ $(date +%s) -lt $end ] || exit 1; sleep 1; done"
        done = self.run("sh", "-c", script, check=False, timeout=timeout + 60)
        assert done.returncode == 0, f"within {timeout:.0f} s it did not come true: {condition}\n{done.stderr}"

    def wait_state(self, name: str, state: str, *, timeout: float = 300) -> None:
        wait_for(lambda: self.state(name) == state, timeout=timeout, interval=2, what=f"{name} to be {state}")

    def push(self, files: dict[str, Path | bytes]) -> None:
        """Copy files and directories into it: path inside -> what."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for target, source in files.items():
                if isinstance(source, bytes):
                    entry = tarfile.TarInfo(target.lstrip("/"))
                    entry.size, entry.mode, entry.mtime = len(source), 0o755, int(time.time())
                    archive.addfile(entry, io.BytesIO(source))
                else:
                    archive.add(source, target.lstrip("/"), filter=_plain)
        argv = [*self._ssh(), NAME, "tar -x -C / --no-same-owner"]
        subprocess.run(argv, input=buffer.getvalue(), capture_output=True, check=True, timeout=120)

    def _ssh(self) -> list[str]:
        files = self.host.data_dir / "vms" / NAME
        options = {
            "ControlPath": str(self.control),
            "HostName": "172.16.0.2",
            "HostKeyAlias": self.machine_id,
            "UserKnownHostsFile": str(files / "known_hosts"),
            "IdentityFile": str(self.host.data_dir / "ssh" / "vmm_ed25519"),
            "IdentitiesOnly": "yes",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "8",
            "LogLevel": "ERROR",
        }
        argv = [*self.host.prefix, "ssh", "-F", "none", "-l", "root"]
        for key, value in options.items():
            argv += ["-o", f"{key}={value}"]
        return argv

    def _is_connected(self) -> bool:
        return self.control.exists() and sh(*self._ssh(), "-O", "check", NAME, check=False).returncode == 0


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name or entry.name.endswith(".egg-info") else entry


@contextlib.contextmanager
def a_nested_host(recipe: Recipe, name: str, directory: Path, *, memory_mib: int = 6144) -> Iterator[Nested]:
    """Give a host with virtualization, vmm of this checkout in it; nothing of it stays."""
    image = nested_image.image(recipe)
    with a_host(name, directory) as host, the_world(host) as world:
        host.vmm("kernel", "import", str(image.kernel), "--modules", str(image.modules), "--name", NAME, timeout=900)
        host.vmm("image", "import", str(image.root), "--name", NAME, timeout=900)
        host.vmm("create", NAME, "--image", NAME, "--kernel", NAME, "--engine", "qemu", "--cpus", "2",
                 "--memory", str(memory_mib), "--restart", "no", "--dns", OUTSIDE_WORLD, timeout=900)  # fmt: skip
        control = Path(f"/run/{name}.ssh")  # a socket's path is short
        nested = Nested(host=host, world=world, control=control, machine_id=host.machine(NAME)["id"])
        try:
            nested.boot()
            _prepare(nested)
            yield nested
        finally:
            nested.disconnect()


def _prepare(nested: Nested) -> None:
    """Put this checkout's vmm into it."""
    python = nested.shell(f"echo {HOME}/lib/python3.*/site-packages")
    nested.push(
        {
            f"{python}/vmm": TOP / "src" / "vmm",
            "/etc/sysctl.d/vmm-tests.conf": _SAME_ADDRESSES,
            "/opt/warm.py": Path(__file__).with_name("warm.py"),
            **{
                str(CHECKOUT / part): TOP / part
                for part in ("src", "scripts", "pyproject.toml", "README.md", "LICENSE")
            },
        }
    )
    nested.shell("sysctl -q --system")
    # Compiled once, by all its CPUs, for every command of the tests.
    nested.run(f"{HOME}/bin/python", "-m", "compileall", "-q", "-j0", f"{python}/vmm")
    nested.shell("modprobe -a kvm_amd kvm_intel 2>/dev/null; test -c /dev/kvm")
