"""How guests end, and how they do not: kernels of every age, boots that fail, reboots without end, and silence.

Tiny kernels say what Linux and stage-1 would say, and do what those would do, on the real engines. Whole guests with
Debian's kernels are in test_nested_kernels.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_kernel
from hosts import SMALL, Host, wait_for
from tiny_kernel import Then, build

from conftest import add_kernel, add_tiny

pytestmark = pytest.mark.system

NO_POWER_OFF = b"[    9.000000] reboot: Power off not available: System halted instead\n"
STAGE_1 = b"vmm: stage-1 FAILED: no disk /dev/vda\n" + tiny_kernel.REBOOTED
PANIC_STANDS = b"[    9.1] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\n"
QEMU = tuple("qemu" if word == "firecracker" else word for word in SMALL)
# A boot that says nothing and does nothing is reset after a minute.
_RESET_S = 150


@pytest.fixture(scope="module")
def stocked(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Host:
    directory = tmp_path_factory.mktemp("kernels")
    add_tiny(shared_host, directory)
    for name, content in (
        ("new", build(Then.HALT, NO_POWER_OFF)),
        ("old", build(Then.HALT, tiny_kernel.POWERED_OFF)),
        ("hook", build(Then.RESET, b"vmm: the guest halts\n" + tiny_kernel.REBOOTED)),
        ("unbootable", build(Then.RESET, STAGE_1)),
        ("rebooting", build(Then.RESET, tiny_kernel.REBOOTED)),
        ("stands", build(Then.HALT, b"[    9.0] Kernel panic - not syncing: Attempted to kill init!\n" + PANIC_STANDS)),
    ):
        add_kernel(shared_host, directory, name, content)
    # One that boots through stage-1, and so owes a word, and hangs before that.
    mute = directory / "mute.elf"
    mute.write_bytes(build(Then.HALT, b""))
    shared_host.vmm("kernel", "import", str(mute), "--name", "mute")
    return shared_host


@pytest.fixture(scope="module")
def mute(stocked: Host) -> Host:
    """The host with a machine that hangs as it boots, since before any other test here."""
    stocked.vmm("create", "mute", *SMALL, "--kernel", "mute")
    stocked.start("mute")
    return stocked


@pytest.fixture
def lab(mute: Host) -> Iterator[Host]:
    yield mute
    for row in mute.json("list", "--all"):
        if row["name"] != "mute":
            mute.vmm("delete", row["name"], "--force")


@pytest.mark.fault(46)
@pytest.mark.parametrize("engine", [SMALL, QEMU], ids=["firecracker", "qemu"])
@pytest.mark.parametrize(("kernel", "reason"), [("new", "the guest powered off"), ("old", "the guest powered off"),
                                                ("hook", "the guest halted")])  # fmt: skip
def test_an_end_is_told_in_the_words_of_every_age_on_every_engine(
    lab: Host, engine: tuple[str, ...], kernel: str, reason: str
) -> None:
    lab.vmm("create", "m", *engine, "--kernel", kernel)
    # One that ends as soon as it runs is not waited for.
    lab.vmm("start", "m", "--wait", "none")
    wait_for(lambda: lab.events("m")[-1] == ("ended", reason), what=str(lab.events("m")))
    shown = lab.machine("m")
    assert (shown["state"], shown["reason"], shown["pid"], shown["wanted"]) == ("stopped", reason, None, False)
    assert not any("sockets/m.sock" in line or shown["id"] in line for line in lab.processes())


@pytest.mark.fault(46)
def test_a_panic_that_does_not_reboot_is_a_failure_and_not_a_machine_that_runs(lab: Host) -> None:
    """As with an image whose sysctl says kernel.panic=0."""
    lab.vmm("create", "m", *SMALL, "--kernel", "stands")
    lab.vmm("start", "m", "--wait", "none")
    wait_for(lambda: lab.machine("m")["state"] == "failed", what=str(lab.events("m")))
    assert "Kernel panic - not syncing: Attempted to kill init!" in lab.machine("m")["reason"]


@pytest.mark.fault(46)
@pytest.mark.fault(47)
@pytest.mark.parametrize("policy", ["no", "on-failure"])
def test_a_boot_that_fails_in_stage_1_is_a_failure_with_its_reason_and_counted(lab: Host, policy: str) -> None:
    lab.vmm("create", "m", *SMALL, "--kernel", "unbootable", "--restart", policy)
    lab.vmm("start", "m", "--wait", "none")
    why = "its boot failed in stage-1: no disk /dev/vda"
    if policy == "no":
        wait_for(lambda: lab.events("m")[-1] == ("failed", why))
        shown = lab.machine("m")
        assert (shown["state"], shown["reason"], shown["restarts"]) == ("failed", why, 0)
        return
    wait_for(lambda: lab.machine("m")["restarts"] >= 2, timeout=60)
    assert ("restarting", f"{why}; restart 1 of 10") in lab.events("m")
    assert ("restarting", f"{why}; restart 2 of 10") in lab.events("m")
    lab.vmm("stop", "m", "--force")


@pytest.mark.fault(46)
def test_a_guest_that_does_nothing_but_reboot_is_counted_and_slowed_down(lab: Host) -> None:
    lab.vmm("create", "m", *SMALL, "--kernel", "rebooting")
    lab.vmm("start", "m", "--wait", "none")
    wait_for(lambda: lab.machine("m")["restarts"] >= 2, timeout=60)
    told = [detail for kind, detail in lab.events("m") if kind == "rebooted"]
    assert told[:3] == [
        "the guest rebooted",
        "the guest rebooted; restart 1 of 10",
        "the guest rebooted; restart 2 of 10",
    ]
    lab.vmm("stop", "m", "--force")


@pytest.mark.fault(46)
def test_a_kernel_that_does_not_say_its_end_is_named_when_it_is_imported(lab: Host, tmp_path: Path) -> None:
    kernel = tmp_path / "k.elf"
    kernel.write_bytes(build())
    said = lab.vmm("kernel", "import", str(kernel), "--name", "k", "--no-stage1").stderr
    assert "Warning: of its machines' ends the kernel k does not say all" in said
    assert "it never says that it has powered off or halted" in said
    (row,) = [row for row in lab.json("kernel", "list") if row["name"] == "k"]
    assert len(row["lacking"]) == 3
    # Debian's says all.
    (default,) = [row for row in lab.json("kernel", "list") if row["name"] == "default"]
    assert default["lacking"] == []
    lab.vmm("kernel", "delete", "k")


@pytest.mark.fault(46)
def test_a_guest_that_hangs_as_it_boots_is_reset_once_and_that_is_said(lab: Host) -> None:
    wait_for(lambda: "reset" in [kind for kind, _ in lab.events("mute")], timeout=_RESET_S, what="its reset")
    (why,) = [detail for kind, detail in lab.events("mute") if kind == "reset"]
    assert why.startswith("its guest was reset: nothing was heard of its guest since it was started")
    wait_for(lambda: lab.machine("mute")["state"] == "running" and lab.machine("mute")["restarts"] == 1)
    assert "is reset: nothing was heard" in lab.vmm("console", "mute").stdout
