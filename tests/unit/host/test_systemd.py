"""Units as text and as properties; what systemd makes of them is shown by the system tests."""

import json
import os
import shlex
import stat
from pathlib import Path

import pytest
from machines import a_machine

from vmm.errors import ConflictError, EngineError
from vmm.host import process, systemd
from vmm.host.systemd import MachineUnits, limits_as_properties, unit_of
from vmm.model.machine import Limits, RestartPolicy


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run; systemd-run does what the list's attribute has it do."""
    ran: list[list[str]] = []

    def run(argv, **how):
        ran.append(list(argv))
        return process.Completed(argv=tuple(argv), code=0, stdout="", stderr="")

    monkeypatch.setattr(systemd.process, "run", run)
    return ran


def units(tmp_path: Path, *command: str) -> MachineUnits:
    return MachineUnits(
        command=command or ("/usr/bin/python3", "-I", "-m", "vmm"), notes=tmp_path / "units", data_dir=tmp_path
    )


def properties(argv: list[str]) -> dict[str, str]:
    lines = [word.removeprefix("--property=") for word in argv if word.startswith("--property=")]
    found = dict(line.split("=", 1) for line in lines)
    assert len(found) == len(lines), "a property stands there twice"
    return found


def test_the_unit_names_the_program_and_escapes_its_specifiers() -> None:
    text = systemd.unit_text(executable=Path("/opt/100%/vmm"), data_dir=Path("/var/lib/vmm"))
    assert "ExecStart=/opt/100%%/vmm autostart" in text
    # The configuration says where the data are: a variable would outrank it.
    assert "VMM_DATA_DIR" not in text
    assert 'RequiresMountsFor="/var/lib/vmm" "/opt/100%%/vmm"' in text
    assert "KillMode=process" in text


def test_a_machine_is_a_unit_with_its_policy(tmp_path: Path, said: list[list[str]]) -> None:
    for policy in RestartPolicy:
        units(tmp_path).start(a_machine("m", restart=policy), overcommit=False)
        argv = said[-1]
        assert argv[:2] == ["systemd-run", "-q"]
        assert "--unit=vmm-m-m0000000.service" in argv
        assert "--slice=vmm.slice" in argv
        has = properties(argv)
        assert has["Restart"] == policy.value
        assert has["Type"] == "forking"
        assert has["PIDFile"] == str(tmp_path / "units" / "m.pid")
        # Guests are asked before their engines are killed, when the host goes down.
        assert has["Before"] == "vmm.service"
        assert "network.target" in has["After"].split()
        # Stopped by systemd, its guest is asked and has its time; systemd waits for longer than that.
        assert has["ExecStop"].split()[-4:] == ['"stop"', '"--owner"', '"unit"', '"m"']
        assert int(has["TimeoutStopSec"]) > systemd.UNIT_STOP_S
        # How a machine ended is told by its own settling, not by the engine's exit code.
        assert {"SIGKILL", "SIGSEGV", "1", "148"} <= set(has["SuccessExitStatus"].split())
        assert argv[argv.index("--") + 1 :] == [
            "/usr/bin/python3", "-I", "-m", "vmm", "start", "--owner", "unit",
            "--error-file", str(tmp_path / "units" / "m.error"), "m",
        ]  # fmt: skip


def test_a_start_takes_down_what_was_left_first(tmp_path: Path, said: list[list[str]]) -> None:
    units(tmp_path).start(a_machine("m"), overcommit=True)
    assert [argv[:2] for argv in said] == [["systemctl", "stop"], ["systemd-run", "-q"]]
    assert said[0][2] == "vmm-m-m0000000.service"
    assert said[1][-2:] == ["--overcommit", "m"]


def test_a_unit_is_of_one_machine_of_one_data_directory() -> None:
    assert unit_of(a_machine("m")) == "vmm-m-m0000000.service"
    assert unit_of(a_machine("dev.web_1-a")) == "vmm-dev.web_1-a-dev.web_.service"


@pytest.mark.parametrize(
    "awkward",
    ["plain", "with space", "100%n", "a$HOME", "a${HOME}", 'a"quote', "a'quote", "back\\slash", "semi;colon", "ü"],
)
def test_words_of_a_command_come_through_systemds_own_parser(
    tmp_path: Path, said: list[list[str]], awkward: str
) -> None:
    """In ExecStop and ExecStopPost: systemd takes off the quotes, and makes one of each doubled dollar.

    A percent sign is one: what comes over the bus has no specifiers (seen with systemd 252, in test_installation).
    """
    units(tmp_path, "/opt/vmm", "--data-dir", f"/data/{awkward}").start(a_machine("m"), overcommit=False)
    for name, verb in (("ExecStop", "stop"), ("ExecStopPost", "settle")):
        line = properties(said[-1])[name]
        assert "$HOME" not in line.replace("$$", "")
        # A shell reads quotes and backslashes within double quotes as systemd does.
        words = [word.replace("$$", "$") for word in shlex.split(line)]
        assert words == ["/opt/vmm", "--data-dir", f"/data/{awkward}", verb, "--owner", "unit", "m"]
    start = said[-1][said[-1].index("--") + 1 :]
    assert start[:4] == ["/opt/vmm", "--data-dir", f"/data/{awkward}".replace("$", "$$"), "start"]


def test_the_device_of_a_directory_with_a_blank_is_named_by_one_without(tmp_path: Path) -> None:
    below = tmp_path / "a b" / "c"
    below.mkdir(parents=True)
    assert limits_as_properties(Limits(io_read_bps=10), 512, below) == [f"IOReadBandwidthMax={tmp_path} 10"]


LIMITS = [
    (Limits(), []),
    (Limits(cpus=1.5), ["CPUQuota=150%"]),
    (Limits(cpus=0.05), ["CPUQuota=5%"]),
    (Limits(cpus=0.333), ["CPUQuota=33%"]),
    (Limits(memory_mib=64), ["MemoryMax=576M", "MemorySwapMax=0"]),
    (Limits(pids=64), ["TasksMax=64"]),
    (
        Limits(io_read_bps=10, io_write_bps=20, io_read_iops=30, io_write_iops=40),
        ["IOReadBandwidthMax=/d 10", "IOWriteBandwidthMax=/d 20", "IOReadIOPSMax=/d 30", "IOWriteIOPSMax=/d 40"],
    ),
]


@pytest.mark.parametrize(("limits", "expected"), LIMITS)
def test_limits_in_systemds_words(limits: Limits, expected: list[str]) -> None:
    assert limits_as_properties(limits, 512, Path("/d")) == expected


def test_a_units_limits_are_the_machines(tmp_path: Path, said: list[list[str]]) -> None:
    machine = a_machine("m", memory_mib=256, limits=Limits(cpus=2, memory_mib=32, pids=16))
    units(tmp_path).start(machine, overcommit=False)
    has = properties(said[-1])
    assert (has["CPUQuota"], has["MemoryMax"], has["MemorySwapMax"], has["TasksMax"]) == ("200%", "288M", "0", "16")


def test_what_kept_a_unit_from_starting_is_what_is_raised(
    tmp_path: Path, said: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where systemd calls it a success: the unit's own command has written down its error."""
    machine, of = a_machine("m"), units(tmp_path)
    run = systemd.process.run

    def fail(argv, **how):
        if argv[0] == "systemd-run":
            note = Path(argv[argv.index("--error-file") + 1])
            error = ConflictError("No memory.", details="It wants 1 MiB.", resolution="Stop another.")
            systemd.write_error(note, error)
            assert note.stat().st_mode & 0o777 == 0o600
        return run(argv, **how)

    monkeypatch.setattr(systemd.process, "run", fail)
    with pytest.raises(EngineError) as caught:
        of.start(machine, overcommit=False)
    error = caught.value
    assert (error.brief, error.details, error.resolution) == ("No memory.", "It wants 1 MiB.", "Stop another.")
    # The unit is taken down, and the note with it: the next start is told of no error of this one.
    assert [argv[:2] for argv in said][-1] == ["systemctl", "stop"]
    assert not (tmp_path / "units" / "m.error").exists()


@pytest.mark.parametrize("gone_again", [False, True])
def test_a_unit_that_systemd_starts_itself_at_that_moment_is_the_one_that_was_asked_for(
    tmp_path: Path, said: list[list[str]], monkeypatch: pytest.MonkeyPatch, gone_again: bool
) -> None:
    """Its guest has just rebooted, or its policy has it started again: `vmm start` comes to the same."""
    run = systemd.process.run
    there = "Failed to start transient service unit: Unit x.service was already loaded or has a fragment file."

    def busy(argv, **how):
        first = argv[0] == "systemd-run" and not any(line[0] == "systemd-run" for line in said)
        run(argv, **how)
        code = 1 if first or (gone_again and argv[:2] == ["systemctl", "start"]) else 0
        return process.Completed(argv=tuple(argv), code=code, stdout="", stderr=there if first else "")

    monkeypatch.setattr(systemd.process, "run", busy)
    units(tmp_path).start(a_machine("m"), overcommit=False)
    last = [["systemd-run", "-q"]] if gone_again else []
    assert [argv[:2] for argv in said] == [["systemctl", "stop"], ["systemd-run", "-q"], ["systemctl", "start"], *last]


@pytest.mark.parametrize("note", [None, "", "no JSON", '{"brief": "x"}'])
def test_a_unit_that_did_not_start_and_left_no_words_is_told_in_systemds(
    tmp_path: Path, said: list[list[str]], monkeypatch: pytest.MonkeyPatch, note: str | None
) -> None:
    def fail(argv, **how):
        if argv[0] == "systemd-run" and note is not None:
            Path(argv[argv.index("--error-file") + 1]).write_text(note)
        return process.Completed(argv=tuple(argv), code=1, stdout="", stderr="Job for it failed.")

    monkeypatch.setattr(systemd.process, "run", fail)
    with pytest.raises(EngineError, match="The unit of the machine 'm' did not start") as caught:
        units(tmp_path).start(a_machine("m"), overcommit=False)
    assert caught.value.details == "Job for it failed."
    assert "journalctl" in caught.value.resolution


def test_a_start_is_asked_for_once(tmp_path: Path, said: list[list[str]]) -> None:
    """What systemd starts after that, it starts by the machine's policy."""
    of = units(tmp_path)
    assert not of.is_asked_for("m")
    of.start(a_machine("m"), overcommit=False)
    assert not of.is_asked_for("n")
    assert of.is_asked_for("m")
    assert not of.is_asked_for("m")


def test_notes_are_roots_alone_and_confined(tmp_path: Path, said: list[list[str]]) -> None:
    of = units(tmp_path)
    old = os.umask(0)
    try:
        of.start(a_machine("m"), overcommit=False)
        of.write_pid("m", 4711)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "units").stat().st_mode) == 0o700
    assert (tmp_path / "units" / "m.pid").read_text() == "4711\n"
    with pytest.raises(ValueError, match="leads out"):
        of.is_asked_for("../m")


def test_a_reboot_of_the_guest_restarts_the_unit_without_waiting_for_itself(
    tmp_path: Path, said: list[list[str]]
) -> None:
    machine, of = a_machine("m"), units(tmp_path)
    of.again(machine)
    of.give_up(machine)
    assert [argv[1:] for argv in said] == [
        ["reset-failed", "vmm-m-m0000000.service"],
        ["--no-block", "restart", "vmm-m-m0000000.service"],
        ["--no-block", "stop", "vmm-m-m0000000.service"],
    ]


def test_a_host_that_goes_down_is_not_waited_for(tmp_path: Path, said: list[list[str]]) -> None:
    """It stops the unit itself, maybe only when the command that asks for it has ended."""
    units(tmp_path).stop(a_machine("m"), wait=False)
    assert said == [["systemctl", "--no-block", "stop", "vmm-m-m0000000.service"]]


@pytest.mark.parametrize(("job", "again"), [("restart", True), ("stop", False), ("start", False)])
def test_a_stop_that_is_half_of_a_restart_asks_for_the_other_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, again: bool
) -> None:
    machine, of = a_machine("m"), units(tmp_path)
    of.notes.mkdir()
    jobs = f"7 other.service restart waiting\n12 {unit_of(machine)} {job} running\n\n"
    answer = process.Completed(argv=(), code=0, stdout=jobs, stderr="")
    monkeypatch.setattr(systemd.process, "run", lambda argv, **how: answer)
    of.ask_again(machine)
    assert of.is_asked_for("m") is again


@pytest.mark.parametrize(
    ("said", "state"), [("enabled", "enabled"), ("disabled", "disabled"), ("not-found", ""), ("", "")]
)
def test_what_becomes_of_vmms_unit_at_a_boot(monkeypatch: pytest.MonkeyPatch, said: str, state: str) -> None:
    answer = process.Completed(argv=(), code=0, stdout=f"{said}\n", stderr="")
    monkeypatch.setattr(systemd.process, "run", lambda argv, **how: answer)
    assert systemd.unit_state() == state


@pytest.mark.fault(38)
def test_an_error_on_its_way_holds_three_parts_and_nothing_else(tmp_path: Path) -> None:
    try:
        secret = "canary"
        raise ConflictError("brief", details="details", resolution="resolution") from ValueError(secret)
    except ConflictError as error:
        systemd.write_error(tmp_path / "note", error)
    text = (tmp_path / "note").read_text()
    assert json.loads(text) == {"brief": "brief", "details": "details", "resolution": "resolution"}
