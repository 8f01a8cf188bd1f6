"""Debian's kernels of every age as guests on real Firecracker: how each powers off, halts, reboots and panics.

As test_kernels does on qemu. All machines of a kernel run at the same time.
"""

import busybox_root
import pytest
from busybox_root import NAMES
from debian_kernels import KERNELS, DebianKernel, fetched
from hosts import wait_for
from nested import Nested, whole

pytestmark = [pytest.mark.system, whole]


@pytest.fixture(scope="module")
def stocked(nested: Nested, tmp_path_factory: pytest.TempPathFactory) -> Nested:
    """The host with an image `busybox`."""
    nested.push({"/root/busybox.ext4": busybox_root.build(tmp_path_factory.mktemp("busybox"))})
    nested.vmm("image", "import", "/root/busybox.ext4", "--name", "busybox")
    return nested


@pytest.mark.fault(46)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_powers_off_halts_reboots_and_panics_and_each_is_told(stocked: Nested, kernel: DebianKernel) -> None:
    parts = fetched(kernel)
    stocked.push({"/root/vmlinuz": parts / "vmlinuz", "/root/modules": next(parts.glob("lib/modules/*"))})
    said = stocked.vmm("kernel", "import", "/root/vmlinuz", "--modules", "/root/modules", "--name", kernel.name)
    assert "Warning" not in said.stderr
    for name in NAMES:
        stocked.vmm("create", name, "--image", "busybox", "--kernel", kernel.name, "--memory", "256", "--disk", "256")
    try:
        for name in NAMES:
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
        stocked.vmm("delete", "--force", *NAMES, check=False)
        stocked.vmm("kernel", "delete", kernel.name, check=False)
        stocked.shell("rm -rf /root/vmlinuz /root/modules")
