"""What guests need of the host's mounts, looked at: an answer a question, each with its proof."""

from __future__ import annotations

import os
from pathlib import Path

from vmm.errors import HostError
from vmm.host import files, mounts
from vmm.model.facts import Answer, not_ok, ok, unseen

_PROC_SYS = Path("/proc/sys/net/ipv4/ip_forward")


def data_directory(path: Path) -> Answer:
    """Whether jails can work there: they hold device nodes, and a copy of Firecracker that is run."""
    name = "data directory"
    network = files.network_file_system(path)
    if network:
        return not_ok(
            name, f"{path} lies on {network}, where locks cannot be trusted", "choose another --data-dir", fatal=True
        )
    try:
        files.refuse_unsafe(path)
    except HostError as error:
        return not_ok(name, error.details, error.resolution, fatal=True)
    where, options = mounts.options_of(path)
    wrong = sorted({"nodev", "noexec"} & options)
    if not wrong:
        return ok(name, f"{path}, on {where}: devices and programs in it work")
    what = {"nodev": "devices do not work", "noexec": "programs are not run"}
    why = " and ".join(f"{option}: {what[option]}" for option in wrong)
    fix = f"sudo mount -o remount,{','.join(each.removeprefix('no') for each in wrong)} {where} (and in /etc/fstab)"
    return not_ok(name, f"{path} lies on {where}, mounted {why} there, so that no jail does", fix, fatal=True)


def processes() -> Answer:
    """Whether this process sees those of others: without, a user cannot tell which machines run."""
    name = "processes"
    _, options = mounts.options_of(Path("/proc"))
    hidden = next((option for option in options if option.startswith("hidepid=")), "hidepid=0")
    if hidden.partition("=")[2] in ("0", "off"):
        return ok(name, "every user sees which run")
    if os.geteuid() == 0:
        return ok(name, f"{hidden} on /proc: root sees them; a user is told what was recorded of those that are there")
    return unseen(
        name, f"{hidden} on /proc hides them from this user, who is told what was recorded of them", "sudo vmm list"
    )


def settings() -> Answer:
    """Whether the kernel's settings can be set: in most containers they cannot."""
    name = "kernel settings"
    _, options = mounts.options_of(_PROC_SYS)
    if "ro" in options:
        fix = "run vmm on the host itself, or: mount -o remount,rw /proc/sys"
        return not_ok(name, "/proc/sys is mounted read-only: no bridge can be set up", fix, fatal=True)
    return ok(name, "/proc/sys can be written by root")
