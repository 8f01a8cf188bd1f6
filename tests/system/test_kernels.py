"""Debian's kernels of every age, cloud and full flavour, as guests: how each powers off, halts, reboots and panics.

On qemu, with a root that says nothing itself; test_nested_kernels has the same on Firecracker.
"""

import busybox_root
import pytest
from busybox_root import NAMES
from debian_kernels import KERNELS, DebianKernel, fetched
from hosts import Host, wait_for

pytestmark = [pytest.mark.system, pytest.mark.fault(46)]


@pytest.fixture(scope="module")
def stocked(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The host with an image `busybox`."""
    image = busybox_root.build(tmp_path_factory.mktemp("busybox"))
    shared_host.vmm("image", "import", str(image), "--name", "busybox")
    return shared_host


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_powers_off_halts_reboots_and_panics_and_each_is_told(stocked: Host, kernel: DebianKernel) -> None:
    parts = fetched(kernel)
    modules = next(parts.glob("lib/modules/*"))
    said = stocked.vmm("kernel", "import", str(parts / "vmlinuz"), "--modules", str(modules), "--name", kernel.name)
    assert "Warning" not in said.stderr
    assert "The kernel " not in said.stderr
    size = ("--memory", "256", "--disk", "256", "--engine", "qemu")
    for name in NAMES:
        stocked.vmm("create", name, "--image", "busybox", "--kernel", kernel.name, *size)
        stocked.vmm("start", name, "--wait", "none", check=False)
    try:
        wait_for(lambda: stocked.machine("halt")["state"] == "stopped", timeout=120, what="the end of the halt")
        wait_for(lambda: stocked.machine("panic")["state"] == "failed", timeout=120, what="the end of the panic")
        wait_for(lambda: "ended" in kinds(stocked), timeout=120, what="the power-off behind the reboot")
        assert stocked.machine("halt")["reason"].startswith("the guest powered off")
        assert "sysrq triggered crash" in stocked.machine("panic")["reason"]
        assert kinds(stocked) == ["created", "started", "rebooted", "started", "ended"]
    finally:
        for name in NAMES:
            print(stocked.events(name), stocked.console(name)[-3000:])
        stocked.vmm("delete", "--force", *NAMES, check=False)
        stocked.vmm("kernel", "delete", kernel.name, check=False)


def kinds(host: Host) -> list[str]:
    return [kind for kind, _ in host.events("reboot")]
