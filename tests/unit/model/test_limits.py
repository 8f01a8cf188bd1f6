"""The bounds of limits, and how long a restart is put off."""

import pytest
from machines import a_machine

from vmm.errors import UsageError
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.model.limits import RESTARTS_MOST, checked_limits, restart_delay_s
from vmm.model.machine import Limits, MachineState, ProcessIdentity
from vmm.model.value import replace

BOUNDS = {
    "cpus": (0.05, 32.0, 0.049, 32.1, "--cpu-limit"),
    "memory_mib": (16, 65536, 15, 65537, "--memory-limit"),
    "pids": (8, 65536, 7, 65537, "--pids-limit"),
    "io_read_bps": (2**20, 2**40, 2**20 - 1, 2**40 + 1, "--io-read-bps"),
    "io_write_bps": (2**20, 2**40, 2**20 - 1, 2**40 + 1, "--io-write-bps"),
    "io_read_iops": (100, 2**40, 99, 2**40 + 1, "--io-read-iops"),
    "io_write_iops": (100, 2**40, 99, 2**40 + 1, "--io-write-iops"),
}


def test_every_limit_has_its_bounds() -> None:
    assert BOUNDS.keys() == Limits().__dict__.keys()


@pytest.mark.parametrize("field", BOUNDS)
def test_bounds_are_allowed_and_what_is_beyond_is_refused_by_its_options_name(field: str) -> None:
    least, most, less, more, option = BOUNDS[field]
    for value in (least, most):
        limits = Limits(**{field: value})
        assert checked_limits(limits) == limits
    for value in (less, more, -1):
        with pytest.raises(UsageError) as caught:
            checked_limits(Limits(**{field: value}))
        assert option in caught.value.brief
        assert f"{least:g}" in caught.value.details if field == "cpus" else str(least) in caught.value.details
        assert caught.value.resolution


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_of_cpus_is_refused(value: float) -> None:
    """A NaN compares as neither less nor more, and would be written into the cgroup as such."""
    with pytest.raises(UsageError, match="--cpu-limit"):
        checked_limits(Limits(cpus=value))


@pytest.mark.parametrize("field", ["io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops"])
def test_a_recorded_machine_may_have_a_rate_that_an_older_release_took(field: str) -> None:
    assert checked_limits(Limits(**{field: 1}), recorded=True) == Limits(**{field: 1})
    with pytest.raises(UsageError, match=field.replace("_", "-")):
        checked_limits(Limits(**{field: 0}), recorded=True)


def test_no_limit_is_within_every_bound() -> None:
    assert checked_limits(Limits()) == Limits()


def test_all_limits_at_once() -> None:
    limits = Limits(**{field: least for field, (least, *_) in BOUNDS.items()})
    assert checked_limits(limits) == limits
    with pytest.raises(UsageError, match="--io-write-iops"):
        checked_limits(replace(limits, io_write_iops=0))


def test_the_delay_doubles_to_a_minute() -> None:
    assert [restart_delay_s(count) for count in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert restart_delay_s(RESTARTS_MOST) == restart_delay_s(10**6) == 60


@pytest.mark.parametrize("state", list(MachineState))
def test_only_what_is_starting_without_anyone_at_it_waits(state: MachineState) -> None:
    process = ProcessIdentity(boot_id="b", pid=1, start_ticks=1, marker="")
    machine = replace(a_machine("m"), state=state)
    assert is_waiting(machine) is (state is MachineState.STARTING)
    assert not is_waiting(replace(machine, process=process))
    # What waits counts among those that are looked after.
    assert MachineState.STARTING in LIVE
