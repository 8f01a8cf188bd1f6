"""A root of busybox alone, which does at once what its machine's name says: no hook of vmm's speaks for the kernel."""

import shutil
from pathlib import Path

from hosts import sh

# A machine that has rebooted once powers off.
_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
case $($b hostname) in
halt*) $b halt -f ;;
panic*) echo c >/proc/sysrq-trigger ;;
reboot*) [ -e /done ] && $b poweroff -f; : >/done; $b sync; $b reboot -f ;;
esac
while :; do $b sleep 60; done
"""
NAMES = ("halt", "panic", "reboot")


def build(directory: Path) -> Path:
    """Return an ext4 image of it."""
    tree = directory / "tree"
    for name in ("bin", "sbin", "proc", "sys", "dev", "run", "etc", "root", "tmp"):
        (tree / name).mkdir(parents=True)
    shutil.copy2("/usr/bin/busybox" if Path("/usr/bin/busybox").exists() else "/bin/busybox", tree / "bin/busybox")
    (tree / "sbin/init").write_text(_INIT)
    (tree / "sbin/init").chmod(0o755)
    (tree / "bin/sh").symlink_to("busybox")
    image = directory / "busybox.ext4"
    sh("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image), "16M")
    return image
