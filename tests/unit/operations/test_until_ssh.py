"""Waiting for a guest's ssh while the guest reboots, is reset, ends, or says why it does not come."""

import pytest
from sites import FakeSite, end_engine, running

from vmm.errors import GuestError
from vmm.model.last_words import SILENT_MARK
from vmm.model.machine import RestartPolicy
from vmm.operations.settle import restart_waiting, settle
from vmm.operations.until_ssh import await_ssh

REBOOT = "[ 9.1] reboot: Restarting system\n"
RESET = SILENT_MARK.format(name="m", why="nothing was heard")


@pytest.mark.fault(46)
@pytest.mark.parametrize(("console", "goes_on"), [(REBOOT, True), (RESET, True), ("login: ", False)])
def test_a_wait_goes_on_through_a_reboot_and_ends_with_a_crash(site: FakeSite, console: str, goes_on: bool) -> None:
    machine = running(site, restart=RestartPolicy.ON_FAILURE)
    looks = []

    def wait(_, *, timeout_s, alive) -> float:
        looks.append(alive())
        end_engine(site, "m", console=console)
        looks.append(alive())
        settle(site, "m")
        looks.append(alive())
        restart_waiting(site, "m", owner=None)
        looks.append(alive())
        return 1.0

    site.guest.await_ssh = wait
    await_ssh(site, machine, timeout_s=1)
    assert looks == [True, goes_on, goes_on, True]


@pytest.mark.fault(46)
@pytest.mark.fault(49)
def test_what_did_not_answer_has_the_last_words_of_its_console_in_the_error(site: FakeSite) -> None:
    machine = running(site)
    site.files.consoles["m"] = "early\n\x1b]0;PWNED\x07\nvmm: no network device\n" + "x" * 9000 + "\n"

    def wait(_, *, timeout_s, alive) -> float:
        raise GuestError("No ssh.", details="No banner came.", resolution="vmm console m")

    site.guest.await_ssh = wait
    with pytest.raises(GuestError) as caught:
        await_ssh(site, machine, timeout_s=1)
    details = caught.value.details
    assert details.startswith("No banner came.")
    assert "vmm: no network device" in details
    assert details.isprintable()
    assert len(details) < 1200
