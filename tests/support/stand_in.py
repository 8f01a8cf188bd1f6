"""A real ssh server in a guest's place: on the machine's address, with its host key, while its own guest is a tiny one."""

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hosts import Host, sh, wait_for


@contextlib.contextmanager
def a_stand_in(host: Host, name: str, directory: Path, *, address: str, lines: Sequence[str] = ()) -> Iterator[None]:
    """Serve ssh for a machine, from when its host key is there on; the commands run in the host's own network.

    `lines` go into sshd_config.
    """
    machine = host.data_dir / "vms" / name
    config = directory / f"sshd-{name}-{time.monotonic_ns()}"
    keys = f"{host.data_dir}/ssh/vmm_ed25519.pub"
    config.write_text(
        "\n".join(
            [*lines, f"ListenAddress {address}", f"HostKey {machine}/ssh_host_ed25519_key", "UsePAM no",
             f"AuthorizedKeysFile {keys} {directory}/also", "PermitRootLogin prohibit-password", "StrictModes no",
             "PasswordAuthentication no", "KbdInteractiveAuthentication no",
             "PidFile none", "PrintMotd no", "PrintLastLog no", ""]
        )
    )  # fmt: skip
    # sshd wants a directory in /run, which may be of its own.
    script = (
        'until [ -f "$1" ]; do sleep 0.02; done\n'
        'mount -t tmpfs vmmtest /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f "$0"'
    )
    server = [*host.prefix, "unshare", "-m", "sh", "-c", script, str(config), f"{machine}/known_hosts"]
    host.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
    log = config.with_suffix(".log")
    try:
        with log.open("wb") as said, subprocess.Popen(server, stderr=said) as process:
            try:
                if machine.exists():
                    wait_for(lambda: b"listening" in log.read_bytes(), timeout=15, what=log.read_text())
                yield
            finally:
                process.terminate()
    finally:
        print(log.read_text(errors="replace")[-2000:])
        host.run("ip", "addr", "del", f"{address}/32", "dev", "lo")


def make_key(path: Path) -> Path:
    """Make a key pair of a user's."""
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))
    return path
