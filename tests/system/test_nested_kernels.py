"""Debian's kernels of every age as guests on real Firecracker: how each powers off, halts, reboots and panics.

The root is busybox alone, which does at once what its machine's name says: so no hook of vmm's speaks for the kernel, and
a boot costs seconds. All machines of a kernel run at the same time.
"""

import shutil
from pathlib import Path

import pytest
from debian_kernels import KERNELS, DebianKernel, fetched
from hosts import sh, wait_for
from nested import Nested, whole

pytestmark = [pytest.mark.system, whole]

# A machine that has rebooted once powers off.
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
case $($b hostname) in
halt*) $b halt -f ;;
panic*) echo c >/proc/sysrq-trigger ;;
reboot*) [ -e /done ] && $b poweroff -f; : >/done; $b sync; $b reboot -f ;;
esac
while :; do $b sleep 60; done
"""


@pytest.fixture(scope="module")
def stocked(nested: Nested, tmp_path_factory: pytest.TempPathFactory) -> Nested:
    """The host with an image `busybox`."""
    directory = tmp_path_factory.mktemp("busybox")
    tree = directory / "tree"
    for name in ("bin", "sbin", "proc", "sys", "dev", "run", "etc", "root", "tmp"):
        (tree / name).mkdir(parents=True)
    shutil.copy2("/usr/bin/busybox" if Path("/usr/bin/busybox").exists() else "/bin/busybox", tree / "bin/busybox")
    (tree / "sbin/init").write_text(INIT)
    (tree / "sbin/init").chmod(0o755)
    (tree / "bin/sh").symlink_to("busybox")
    sh("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(directory / "busybox.ext4"), "16M")
    nested.push({"/root/busybox.ext4": directory / "busybox.ext4"})
    nested.vmm("image", "import", "/root/busybox.ext4", "--name", "busybox")
    return nested


@pytest.mark.fault(46)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_powers_off_halts_reboots_and_panics_and_each_is_told(stocked: Nested, kernel: DebianKernel) -> None:
    parts = fetched(kernel)
    stocked.push({"/root/vmlinuz": parts / "vmlinuz", "/root/modules": next(parts.glob("lib/modules/*"))})
    said = stocked.vmm("kernel", "import", "/root/vmlinuz", "--modules", "/root/modules", "--name", kernel.name)
    assert "Warning" not in said.stderr
    names = ("halt", "panic", "reboot")
    for name in names:
        stocked.vmm("create", name, "--image", "busybox", "--kernel", kernel.name, "--memory", "256", "--disk", "256")
    try:
        for name in names:
            # What ends as soon as it is there is not waited for.
            stocked.vmm("start", name, "--wait", "none", check=False)
        stocked.wait_state("halt", "stopped")
        stocked.wait_state("panic", "failed")
        wait_for(lambda: "ended" in [kind for kind, _ in stocked.events("reboot")], timeout=300, interval=2)
        assert stocked.machine("halt")["reason"].startswith("the guest powered off")
        assert "sysrq triggered crash" in stocked.machine("panic")["reason"]
        kinds = [kind for kind, _ in stocked.events("reboot")]
        assert kinds == ["created", "started", "rebooted", "started", "ended"]
    finally:
        stocked.vmm("delete", "--force", *names, check=False)
        stocked.vmm("kernel", "delete", kernel.name, check=False)
        stocked.shell("rm -rf /root/vmlinuz /root/modules")
