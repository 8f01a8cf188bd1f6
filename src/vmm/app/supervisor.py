"""How the supervisor comes to be there: apart from what it does (`supervise`), which no start needs to import."""

from __future__ import annotations

import os
import sys
from zlib import crc32

from vmm import TYPE_CHECKING
from vmm.host import files, process, systemd

if TYPE_CHECKING:
    from vmm.app import HostSite
    from vmm.config import Config

LOG = "supervisor.log"


def own_command(config: Config) -> list[str]:
    """Return the argument list that runs this very vmm on this data directory, whatever the environment."""
    command = [sys.executable, "-I", "-m", "vmm", "--data-dir", str(config.paths.data_dir)]
    return [*command, "--config", str(config.file)] if config.file.exists() else command


def ensure(site: HostSite) -> None:
    """Start the supervisor unless one is there."""
    paths = site.config.paths
    if files.is_locked(paths.supervisor):
        return
    command = [*own_command(site.config), "supervise"]
    if site.units is not None:
        name = f"vmm-supervisor-{crc32(str(paths.data_dir).encode()):08x}"
        systemd.run_supervisor(command, name=name)
        return
    files.make_dir(paths.logs)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(paths.logs / LOG, flags, 0o600), "wb") as log:
        process.spawn(command, marker="supervise", streams=process.Streams(output=log, errors=log, is_ours=True))
