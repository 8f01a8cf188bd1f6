"""How an engine is started, with programs in its place that end, hang or are late."""

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import a_plan

from vmm.engines import launch
from vmm.errors import EngineError
from vmm.host import identity
from vmm.model.engine import BootPlan, EngineStatus
from vmm.model.machine import ProcessIdentity

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[BootPlan]:
    """A plan whose files are in a directory of its own; what has its marker is ended."""
    plan = a_plan(
        socket=tmp_path / "m.sock", console=tmp_path / "console", log=tmp_path / "log", config=tmp_path / "config"
    )
    yield plan
    for process in identity.find_all([str(plan.socket)]).values():
        identity.kill(process)
        identity.wait_gone(process, timeout_s=5)


def sleeper(plan: BootPlan) -> list[str]:
    return [sys.executable, "-c", SLEEP, str(plan.socket)]


def detour(plan: BootPlan, script: str, **changes: object) -> launch.Detour:
    pid = plan.config.with_name("pid")
    values: dict[str, object] = {
        "prepare": lambda: None,
        # As the jailer it has the engine's marker among its own arguments, and so has its child before it is the engine.
        "argv": lambda: ["sh", "-c", script, str(plan.socket)],
        "pid": lambda: int(pid.read_text()),
        "ready": lambda: True,
        **changes,
    }
    return launch.Detour(**values)  # type: ignore[arg-type]


def script_of(plan: BootPlan) -> str:
    """A program that starts the engine, writes down its pid, and ends."""
    return f"{sys.executable} -c '{SLEEP}' {plan.socket} & echo $! > {plan.config.with_name('pid')}"


def test_console_and_log_are_the_engines_own(plan: BootPlan) -> None:
    plan.console.write_text("of the boot before\n")
    plan.log.write_text("of the engine before\n")
    plan.log.chmod(0o600)
    plan.socket.write_text("left by one that was killed")
    script = f"echo said; echo complained >&2; exec {sys.executable} -c '{SLEEP}' {plan.socket}"
    process = launch.spawn(["sh", "-c", script], plan, marker=str(plan.socket))
    deadline = time.monotonic() + 5
    while plan.log.read_text() != "complained\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert plan.console.read_text() == "of the boot before\nsaid\n"
    assert plan.log.stat().st_mode & 0o777 == 0o600
    assert not plan.socket.exists()
    assert process.marker == str(plan.socket)


@pytest.mark.fault(26)
def test_a_log_that_is_a_link_is_not_followed(plan: BootPlan) -> None:
    precious = plan.log.with_name("precious")
    precious.write_text("x")
    plan.log.symlink_to(precious)
    with pytest.raises(EngineError, match="cannot be started"):
        launch.spawn(sleeper(plan), plan, marker=str(plan.socket))
    assert precious.read_text() == "x"


def test_a_directory_that_is_gone_is_told_in_three_parts(plan: BootPlan, tmp_path: Path) -> None:
    lost = a_plan(socket=tmp_path / "none" / "s", console=tmp_path / "none" / "c", log=tmp_path / "none" / "l")
    with pytest.raises(EngineError, match="'m' cannot be started") as caught:
        launch.spawn(sleeper(plan), lost, marker="x")
    assert str(tmp_path / "none") in caught.value.details
    assert "vmm doctor" in caught.value.resolution


# By way of another program


def test_the_engine_is_known_by_the_pid_that_was_written_down(plan: BootPlan) -> None:
    late = time.monotonic() + 0.1
    asked: list[float] = []

    def ready() -> bool:
        asked.append(time.monotonic())
        return asked[-1] > late

    process = launch.spawn_through(plan, detour(plan, script_of(plan), ready=ready), marker=str(plan.socket))
    assert process == identity.find(str(plan.socket))
    assert asked[-1] > late


def test_an_engine_that_is_about_to_become_itself_is_waited_for(
    plan: BootPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of exec a process has no command line at all (measured: at times for milliseconds)."""
    look = identity.is_alive
    seen: list[bool] = []

    def is_alive(process: ProcessIdentity) -> bool:
        if process.marker:
            seen.append(len(seen) > 2 and look(process))
            return seen[-1]
        return look(process)

    monkeypatch.setattr(identity, "is_alive", is_alive)
    exposed: list[int] = []

    def ready() -> bool:
        exposed.append(len(exposed))
        return len(exposed) > 5

    launch.spawn_through(plan, detour(plan, script_of(plan), ready=ready), marker=str(plan.socket))
    assert len(exposed) == 6


def test_what_the_other_program_complains_of_is_what_the_user_sees(plan: BootPlan) -> None:
    with pytest.raises(EngineError, match="ended at its start") as caught:
        launch.spawn_through(plan, detour(plan, "echo no such user >&2; exit 1"), marker=str(plan.socket))
    assert caught.value.details == "no such user"


@pytest.mark.fault(14)
def test_another_program_that_hangs_is_ended_in_time(plan: BootPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_DETOUR_S", 0.2)
    with pytest.raises(EngineError, match="did not end within"):
        launch.spawn_through(plan, detour(plan, "exec sleep 60"), marker=str(plan.socket))


def test_what_cannot_be_prepared_starts_nothing(plan: BootPlan) -> None:
    def refuse() -> None:
        raise OSError(18, "Invalid cross-device link")

    ran = plan.config.with_name("ran")
    with pytest.raises(EngineError, match="cannot be started") as caught:
        launch.spawn_through(plan, detour(plan, f"touch {ran}", prepare=refuse), marker=str(plan.socket))
    assert "cross-device" in caught.value.details
    assert not ran.exists()


@pytest.mark.parametrize("wrong", ["", "no number"])
def test_a_pid_that_was_not_written_is_told(plan: BootPlan, wrong: str) -> None:
    script = f"printf '{wrong}' > {plan.config.with_name('pid')}"
    with pytest.raises(EngineError, match="cannot be started"):
        launch.spawn_through(plan, detour(plan, script), marker=str(plan.socket))


@pytest.mark.fault(13)
def test_an_engine_that_ended_before_it_was_ready_is_not_waited_for(
    plan: BootPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it tells of its end, with its words."""
    script = f"sh -c 'exit 1' {plan.socket} & echo $! > {plan.config.with_name('pid')}; wait; exit 0"
    monkeypatch.setattr(launch, "_SOCKET_S", 60.0)
    began = time.monotonic()
    process = launch.spawn_through(plan, detour(plan, script, ready=lambda: False), marker=str(plan.socket))
    assert time.monotonic() - began < 30
    assert not identity.is_alive(process)
    plan.log.write_text("Error: no KVM\n")
    with pytest.raises(EngineError, match="ended at its start") as caught:
        launch.await_running(
            plan, process, timeout_s=5, ask=lambda limit: EngineStatus.RUNNING, ready=plan.socket.exists
        )
    assert caught.value.details == "Error: no KVM"


# Waiting


@pytest.fixture
def started(plan: BootPlan) -> ProcessIdentity:
    return launch.spawn(sleeper(plan), plan, marker=str(plan.socket))


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    return server


def test_it_is_asked_until_it_says_running(plan: BootPlan, started: ProcessIdentity) -> None:
    answers = [EngineStatus.STARTING, EngineError("busy", details="-", resolution="-"), EngineStatus.RUNNING]

    def ask(limit: float) -> EngineStatus:
        assert 0 < limit <= 2
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with listen(plan.socket):
        launch.await_running(plan, started, timeout_s=5, ask=ask, ready=plan.socket.exists)
    assert answers == []


@pytest.mark.fault(14)
@pytest.mark.parametrize("socket_there", [True, False])
def test_one_that_never_runs_is_told_in_time(plan: BootPlan, started: ProcessIdentity, socket_there: bool) -> None:
    def ask(limit: float) -> EngineStatus:
        raise EngineError("deaf", details="no whole answer", resolution="-")

    if socket_there:
        listen(plan.socket).close()
    began = time.monotonic()
    with pytest.raises(EngineError, match="did not run its guest within") as caught:
        launch.await_running(plan, started, timeout_s=0.2, ask=ask, ready=plan.socket.exists)
    assert time.monotonic() - began < 10
    assert caught.value.details == ("no whole answer" if socket_there else "It said nothing.")
    assert identity.is_alive(started)
