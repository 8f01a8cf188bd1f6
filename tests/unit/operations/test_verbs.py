"""What the verbs decide and in what order they act: the order is what makes a crash repairable."""

from pathlib import Path

import pytest
from sites import Clock, FakeSite, end_engine, made, running, state

from vmm.errors import ConflictError, EngineError, GuestError, HostError, NetworkError, NotFoundError, UsageError
from vmm.model.machine import MachineState
from vmm.model.network import PortForward, Protocol
from vmm.model.session import Session
from vmm.model.value import replace
from vmm.operations.change import Changes, change
from vmm.operations.forwards import add_forward, list_forwards, remove_forward
from vmm.operations.host_boot import autostart, autostop
from vmm.operations.libraries import delete_image, delete_kernel
from vmm.operations.observe import view, view_all
from vmm.operations.ssh import ssh_command
from vmm.operations.start import Mode, Wait, start
from vmm.operations.stop import StopMethod, delete, stop
from vmm.operations.together import each

# What is taken back of a machine that ran.
CLEARED = ["detach vmm-ac100002", "unlink socket", "clean up", "remove group"]


# create


def test_a_machine_gets_what_was_asked_for_and_the_defaults_for_the_rest(site: FakeSite) -> None:
    machine = made(site, cpus=2, labels={"a": "b"}, ssh_keys=("k", "k", "j"), dns=("1.1.1.1",))
    assert (machine.spec.cpus, machine.spec.memory_mib, machine.spec.disk_mib) == (2, 512, 1024)
    assert machine.spec.ssh_keys == ("k", "j")
    assert machine.state is MachineState.CREATED
    assert machine.spec.auto_start
    assert not machine.wanted
    assert machine.lease.address == "172.16.0.2"


def test_the_default_disk_makes_room_for_a_larger_image(site: FakeSite) -> None:
    site.images.items["default"] = replace(site.images.items["default"], size_mib=3000)
    assert made(site).spec.disk_mib == 3000
    with pytest.raises(UsageError, match="too small") as caught:
        made(site, "n", disk_mib=2999)
    assert "3000 MiB" in caught.value.details
    assert "2999" in caught.value.brief


@pytest.mark.parametrize(
    "wrong",
    [{"image": "nosuch"}, {"kernel": "nosuch"}, {"engine": "nosuch"}, {"cpus": 0}, {"memory_mib": 1}, {"dns": ("x",)}],
)
def test_a_wish_that_cannot_be_leaves_nothing(site: FakeSite, wrong: dict[str, object]) -> None:
    with pytest.raises((NotFoundError, EngineError, UsageError)):
        made(site, **wrong)
    assert site.store.machines() == []
    assert site.log == []


def test_a_socket_path_that_no_engine_could_bind_is_refused(tmp_path: Path) -> None:
    site = FakeSite(tmp_path / ("d" * 100), Clock())
    with pytest.raises(UsageError, match="too long"):
        made(site)
    assert site.store.machines() == []


@pytest.mark.parametrize("error", [HostError("full", details="-", resolution="-"), KeyboardInterrupt()])
def test_a_create_that_fails_is_taken_back(site: FakeSite, error: BaseException) -> None:
    site.files.fails = error
    with pytest.raises(type(error)):
        made(site)
    assert site.store.machines() == []
    assert site.log == ["make m", "remove m"]


def test_a_name_that_is_taken_is_refused_unless_its_create_was_killed(site: FakeSite) -> None:
    made(site)
    with pytest.raises(ConflictError, match="already"):
        made(site)
    # A create that was killed: the row is there, the disk is not.
    site.files.made.clear()
    first = site.store.machine("m").id
    assert made(site).id != first


# start


def test_a_start_records_before_it_makes(site: FakeSite) -> None:
    made(site)
    site.log.clear()
    started = start(site, "m")
    prepared = ["attach vmm-ac100002", "prepare m 9.9.9.9", "mark", "tap vmm-ac100002"]
    assert site.log == [*prepared, "spawn", "await", "supervisor"]
    assert started.machine.state is MachineState.RUNNING
    assert started.machine.wanted
    assert not started.already
    assert start(site, "m").already


def test_a_start_waits_for_what_it_was_asked_to(site: FakeSite) -> None:
    made(site)
    start(site, "m", Mode(wait=Wait.NONE))
    assert "await" not in site.log
    stop(site, "m", force=True)
    start(site, "m", Mode(wait=Wait.SSH))
    assert site.log[-1] == "await ssh"
    site.guest.fails = GuestError("silent", details="-", resolution="-")
    with pytest.raises(GuestError):
        start(site, "m", Mode(wait=Wait.SSH))
    assert state(site) is MachineState.RUNNING


@pytest.mark.parametrize(
    ("error", "state_after"),
    [
        (EngineError("no guest", details="because", resolution="-"), MachineState.FAILED),
        (KeyboardInterrupt(), MachineState.STOPPED),
        (ValueError("a bug"), MachineState.STOPPED),
    ],
)
def test_a_start_that_fails_leaves_nothing(site: FakeSite, error: BaseException, state_after: MachineState) -> None:
    made(site)
    site.the_engine.fails = error
    with pytest.raises(type(error)):
        start(site, "m")
    assert site.log[-5:] == ["kill 42", *CLEARED]
    assert site.network.taps == {}
    machine = site.store.machine("m")
    assert machine.state is state_after
    assert machine.process is None
    assert not machine.wanted
    assert machine.reason


def test_a_network_that_fails_starts_no_engine(site: FakeSite) -> None:
    made(site)
    site.network.fails = NetworkError("no bridge", details="-", resolution="-")
    with pytest.raises(NetworkError):
        start(site, "m")
    assert "spawn" not in site.log
    assert state(site) is MachineState.FAILED


def test_a_lost_disk_is_never_made_anew_under_a_machine_that_ran(site: FakeSite) -> None:
    made(site)
    site.files.made.clear()
    start(site, "m")  # it never ran: its create was killed, and is finished now
    assert site.log.count("make m") == 2
    stop(site, "m", force=True)
    site.files.made.clear()
    with pytest.raises(EngineError, match="lost its disk"):
        start(site, "m")
    assert site.log.count("make m") == 2


@pytest.mark.parametrize("jailed", [True, False])
def test_an_engine_whose_start_was_killed_is_adopted(site: FakeSite, jailed: bool) -> None:
    machine = made(site, jail=jailed)
    site.store.record("m", MachineState.STARTING, process=site.processes.this_process(), wanted=True)
    site.processes.command += 1
    assert state(site) is MachineState.FAILED
    stray = site.processes.exec(f"/{machine.id}.sock" if jailed else str(site.files.socket("m")))
    assert state(site) is MachineState.RUNNING
    assert start(site, "m").already
    assert site.store.machine("m").process == stray


def test_a_machine_with_an_engine_runs_whether_or_not_its_starter_lived_to_say_so(site: FakeSite) -> None:
    running(site)
    process = site.store.machine("m").process
    site.store.record("m", MachineState.STARTING, process=process)
    assert state(site) is MachineState.RUNNING
    assert start(site, "m").already
    assert site.store.machine("m").state is MachineState.RUNNING


# stop and delete


def test_a_guest_that_honours_the_power_button(site: FakeSite) -> None:
    running(site)
    site.the_engine.honours_button = True
    assert stop(site, "m").method is StopMethod.GUEST
    assert site.log == ["button", "grown m", *CLEARED]
    assert not site.store.machine("m").wanted


@pytest.mark.parametrize(("ends", "asked"), [(True, "ask poweroff"), (False, "ask reboot")])
def test_a_guest_that_must_be_asked_over_ssh(site: FakeSite, ends: bool, asked: str) -> None:
    running(site)
    site.the_engine.power_off_ends = ends
    site.guest.obeys = True
    assert stop(site, "m").method is StopMethod.GUEST
    assert site.log[:2] == ["button", asked]


def test_a_guest_that_is_still_booting_is_asked_again(site: FakeSite) -> None:
    running(site)
    site.guest.deaf = 1
    site.guest.obeys = True
    assert stop(site, "m", timeout_s=5).method is StopMethod.GUEST
    assert site.log.count("ask poweroff") == 2


def test_a_guest_that_does_not_listen_is_killed_in_time(site: FakeSite) -> None:
    running(site)
    stopped = stop(site, "m", timeout_s=0.4)
    assert stopped.method is StopMethod.KILLED
    assert stopped.seconds == pytest.approx(0.4)
    assert "kill 42" in site.log


def test_an_engine_that_someone_else_ended_meanwhile_is_not_called_a_shutdown(site: FakeSite) -> None:
    """A supervisor that ends a whole cgroup: what the guest had not written is lost."""
    running(site)
    site.guest.ends_meanwhile = True
    stopped = stop(site, "m")
    assert stopped.method is StopMethod.GONE
    assert stopped.machine.state is MachineState.STOPPED
    assert "grown m" not in site.log


def test_force_asks_nobody(site: FakeSite) -> None:
    running(site)
    assert stop(site, "m", force=True).method is StopMethod.KILLED
    assert site.log == ["kill 42", *CLEARED]


def test_a_firecracker_that_outlives_its_guests_power_off_is_ended(site: FakeSite) -> None:
    running(site)
    site.files.consoles["m"] = "[ 1.0] reboot: Power down\n"
    assert stop(site, "m").method is StopMethod.GUEST
    assert "kill 42" in site.log


def test_an_engine_that_cannot_be_killed_is_said_so(site: FakeSite) -> None:
    running(site)
    site.processes.immortal = True
    with pytest.raises(EngineError, match="does not end"):
        stop(site, "m", force=True)


def test_stopping_what_stands_takes_back_what_may_be_left(site: FakeSite) -> None:
    running(site)
    end_engine(site)
    assert stop(site, "m").method is StopMethod.ALREADY
    assert "detach vmm-ac100002" in site.log
    machine = site.store.machine("m")
    assert machine.state is MachineState.FAILED
    assert not machine.wanted


def test_delete_frees_the_files_before_the_row(site: FakeSite) -> None:
    running(site)
    with pytest.raises(ConflictError, match="not deleted"):
        delete(site, "m")
    delete(site, "m", force=True)
    assert site.log == ["kill 42", *CLEARED, "remove m"]
    assert site.store.machines() == []


# What a machine that ended is


@pytest.mark.parametrize(
    ("words", "expected", "reason"),
    [
        ("reboot: Power down", MachineState.STOPPED, "powered off"),
        ("reboot: System halted", MachineState.STOPPED, "powered off"),
        ("reboot: Restarting system", MachineState.STOPPED, "rebooted"),
        ("Kernel panic - not syncing: no init\nreboot: Restarting system", MachineState.FAILED, "Kernel panic"),
        ("login:", MachineState.FAILED, "last of the engine"),
    ],
)
def test_why_a_machine_ended_is_read_from_its_console(
    site: FakeSite, words: str, expected: MachineState, reason: str
) -> None:
    running(site)
    end_engine(site, console=words)
    machine = view(site, "m").machine
    assert machine.state is expected
    assert reason in str(machine.reason)
    # Looking writes nothing.
    assert site.store.machine("m").state is MachineState.RUNNING


def test_filters(site: FakeSite) -> None:
    made(site, "a", labels={"project": "web"})
    made(site, "b", labels={"project": "db", "old": ""})
    running(site, "c")

    def names(**wanted: object) -> list[str]:
        return [record.machine.name for record in view_all(site, **wanted)]  # type: ignore[arg-type,union-attr]

    assert names() == ["a", "b", "c"]
    assert names(labels={"project": "web"}) == ["a"]
    assert names(labels={"project": None}) == ["a", "b"]
    assert names(labels={"project": "db", "old": None}) == ["b"]
    assert names(states=[MachineState.RUNNING]) == ["c"]
    assert names(states=[MachineState.CREATED], labels={"old": None}) == ["b"]


# set


def test_set_changes_a_machine_that_stands(site: FakeSite) -> None:
    made(site, labels={"a": "1", "b": "2"})
    changed = change(site, "m", Changes(cpus=4, disk_mib=2048, labels={"a": None, "c": "3"}, dns=("1.1.1.1",)))
    assert (changed.spec.cpus, changed.spec.disk_mib, changed.spec.memory_mib) == (4, 2048, 512)
    assert changed.spec.labels == {"b": "2", "c": "3"}
    assert "grow m 2048" in site.log
    for wrong in (Changes(disk_mib=2047), Changes(cpus=99), Changes(memory_mib=1), Changes(dns=("x",))):
        with pytest.raises(UsageError):
            change(site, "m", wrong)
    with pytest.raises(NotFoundError):
        change(site, "m", Changes(kernel="nosuch"))
    assert site.store.machine("m") == changed


def test_set_on_a_running_machine_changes_only_what_harms_nothing(site: FakeSite) -> None:
    running(site)
    assert change(site, "m", Changes(auto_start=False, labels={"x": "y"})).spec.auto_start is False
    with pytest.raises(ConflictError, match="cannot be changed"):
        change(site, "m", Changes(cpus=2))


# Forwards


def forward(port: int = 8080) -> PortForward:
    return PortForward(machine="m", protocol=Protocol.TCP, host_port=port, guest_port=80)


def test_a_forward_is_remembered_and_in_force_only_while_the_machine_runs(site: FakeSite) -> None:
    made(site)
    site.log.clear()
    add_forward(site, forward())
    assert site.log == []
    start(site, "m")
    add_forward(site, forward(8081))
    assert site.log[-1] == "open 8081"
    remove_forward(site, forward(8081))
    assert site.log[-1] == "close 8081"
    assert list_forwards(site, "m") == (forward(),)
    # Beside the disk as well, for the day the database is lost.
    assert site.files.described["m"] == [forward()]
    with pytest.raises(NotFoundError, match="no forward"):
        remove_forward(site, forward(9))


def test_a_forward_that_is_removed_is_out_of_force_whatever_has_become_of_the_machine(site: FakeSite) -> None:
    """Its engine has ended, and nobody has noticed: once it is forgotten, nobody would close it any more."""
    running(site)
    add_forward(site, forward())
    end_engine(site)
    remove_forward(site, forward())
    assert site.network.ports == set()


@pytest.mark.fault(31)
def test_a_forward_of_a_machine_whose_stop_was_interrupted_is_closed_too(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands, and its rules are there still."""
    running(site)
    add_forward(site, forward())

    def interrupted(lease, forwards):
        raise KeyboardInterrupt

    monkeypatch.setattr(site.network, "detach", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stop(site, "m", force=True)
    assert state(site) is MachineState.STOPPED
    remove_forward(site, forward())
    assert site.network.ports == set()


@pytest.mark.fault(1)
def test_a_forward_whose_command_was_killed_is_put_in_force_by_the_next(site: FakeSite) -> None:
    """It is recorded already, which the second is told; and from then on it is so."""
    machine = running(site)
    site.store.add_forward(forward())
    with pytest.raises(ConflictError, match="forwarded already"):
        add_forward(site, forward())
    assert site.network.ports == {(machine.lease.address, forward())}
    # Another machine's is its own matter.
    made(site, "n")
    start(site, "n")
    with pytest.raises(ConflictError, match="forwarded already"):
        add_forward(site, replace(forward(), machine="n"))
    assert len(site.network.ports) == 1


def test_a_forward_that_cannot_be_opened_is_not_remembered(site: FakeSite) -> None:
    running(site)
    site.network.fails = NetworkError("refused", details="-", resolution="-")
    with pytest.raises(NetworkError):
        add_forward(site, forward())
    assert list_forwards(site, "m") == ()
    site.network.bound = True
    with pytest.raises(ConflictError, match="in use"):
        add_forward(site, forward())


# The host's boot


def test_what_ran_comes_back_unless_it_was_stopped_by_hand(site: FakeSite) -> None:
    for name, auto in (("ran", True), ("stopped", True), ("manual", False), ("never", True)):
        made(site, name, auto_start=auto)
    for name in ("ran", "stopped", "manual"):
        start(site, name)
        if name == "stopped":
            stop(site, name, force=True)
    site.processes.reboot()
    assert [outcome.name for outcome in autostart(site)] == ["ran"]
    assert autostart(site) == ()


def test_a_host_that_goes_down_keeps_the_wish(site: FakeSite) -> None:
    running(site)
    site.guest.obeys = True
    assert [outcome.name for outcome in autostop(site)] == ["m"]
    assert site.store.machine("m").state is MachineState.STOPPED
    assert site.store.machine("m").wanted
    assert [outcome.name for outcome in autostart(site)] == ["m"]


def test_an_error_of_one_does_not_keep_it_from_the_others() -> None:
    def act(name: str) -> str:
        if name == "b":
            raise HostError("no", details="-", resolution="-")
        return name.upper()

    outcomes = each(("a", "b", "c"), act)
    assert [(o.name, o.result, o.error is None) for o in outcomes] == [
        ("a", "A", True),
        ("b", None, False),
        ("c", "C", True),
    ]


# Libraries and ssh


def test_what_is_used_is_not_deleted(site: FakeSite) -> None:
    made(site)
    for verb in (delete_image, delete_kernel):
        with pytest.raises(ConflictError, match="in use") as caught:
            verb(site, "default")
        assert "m" in caught.value.details
    delete(site, "m")
    assert delete_image(site, "default") == "default"
    with pytest.raises(NotFoundError):
        delete_image(site, "default")


def test_ssh_reaches_only_what_runs(site: FakeSite) -> None:
    made(site)
    with pytest.raises(ConflictError, match="cannot be reached"):
        ssh_command(site, "m")
    start(site, "m")
    argv = ssh_command(site, "m", Session(user="dev", words=("ls", "-l")))
    assert argv[:3] == ["ssh", "-l", "dev"]
    assert argv[-2:] == ["ls", "-l"]
    with pytest.raises(UsageError):
        ssh_command(site, "m", Session(user="-oProxyCommand=id"))


def test_a_guest_that_left_its_disk_mounted_is_told(site: FakeSite) -> None:
    running(site)
    site.guest.obeys = True
    site.files.left_mounted.add("m")
    stopped = stop(site, "m")
    assert stopped.method is StopMethod.UNCLEAN
    assert "may be lost" in site.store.events("m")[-1].detail
    start(site, "m")
    end_engine(site, console="reboot: Power down")
    assert view(site, "m").machine.reason == (
        "the guest powered off, and did not unmount its disk: what it wrote last may be lost"
    )


def test_what_stage_1_said_is_shown_and_told_when_ssh_does_not_answer(site: FakeSite) -> None:
    running(site)
    lines = [
        "vmm: the image has no sshd\x1b]0;x\x07",
        "[1.0] other",
        "vmm: stage-1 FAILED: x",
        "vmm: the guest reboots",
    ]
    site.files.consoles["m"] = "\r\n".join(lines)
    assert view(site, "m").boot_notes == ("the image has no sshd ]0;x",)
    site.guest.fails = GuestError("ssh did not answer.", details="No banner came.", resolution="-")
    with pytest.raises(GuestError, match="ssh did not answer") as caught:
        start(site, "m", Mode(wait=Wait.SSH))
    assert caught.value.details.startswith("No banner came. At its boot stage-1 said: the image has no sshd ]0;x.")
    assert "[1.0] other" in caught.value.details


# another machine of the same name


def test_a_record_whose_disk_is_another_machine_s_touches_nothing_of_it(site: FakeSite) -> None:
    made(site)
    site.files.others.add("m")
    site.log.clear()
    for verb in (start, stop, delete, lambda site, name: change(site, name, Changes(disk_mib=4096))):
        with pytest.raises(ConflictError, match="is another machine's of that name") as caught:
            verb(site, "m")
        assert "sudo vmm db restore --rebuild -f" in caught.value.resolution
        assert "sudo vmm delete m --force" in caught.value.resolution
    assert site.log == []
    delete(site, "m", force=True)
    assert site.log == []
    assert site.files.made == {"m"}
    assert site.store.machines() == []
