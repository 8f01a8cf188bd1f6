import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.host import identity, process
from vmm.model.machine import ProcessIdentity
from vmm.model.value import replace

SLEEP = "import time; time.sleep(60)"


def sleeper(tmp_path: Path, marker: str) -> ProcessIdentity:
    with (tmp_path / "out").open("ab") as out:
        return process.spawn([sys.executable, "-c", SLEEP, f"unix:{marker},server=on"], marker=marker, output=out)


def test_run_gives_output_and_code() -> None:
    done = process.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin="hello", check=False)
    assert (done.code, done.stdout, done.stderr) == (3, "hello", "err\n")


def test_a_failure_quotes_the_program_and_its_words() -> None:
    with pytest.raises(HostError) as caught:
        process.run(["sh", "-c", "echo no such thing >&2; exit 4"])
    assert "exit code 4" in caught.value.brief
    assert "no such thing" in caught.value.details


def test_a_missing_program_names_itself() -> None:
    with pytest.raises(HostError, match="no-such-program"):
        process.run(["no-such-program"])


def test_a_program_that_hangs_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(HostError, match="did not end within"):
        process.run(["sleep", "60"], timeout_s=0.2)
    assert time.monotonic() - began < 5


@pytest.mark.fault(38)
def test_the_environment_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "canary")
    assert "canary" not in process.run(["env"]).stdout


@pytest.mark.fault(3)
def test_a_spawned_process_is_known_by_more_than_its_pid(tmp_path: Path) -> None:
    marker = str(tmp_path / "m.sock")
    known = sleeper(tmp_path, marker)
    try:
        deadline = time.monotonic() + 5
        while not identity.is_alive(known):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert identity.find(marker) == known
        assert not identity.is_alive(replace(known, start_ticks=known.start_ticks + 1))
        assert not identity.is_alive(replace(known, marker="/another.sock"))
        assert not identity.is_alive(replace(known, boot_id="another boot"))
        assert not identity.wait_gone(known, timeout_s=0.05)
    finally:
        identity.kill(known)
    assert identity.wait_gone(known, timeout_s=5)
    assert not identity.is_alive(known)
    assert identity.find(marker) is None


@pytest.mark.fault(3)
def test_a_foreign_process_on_a_recorded_pid_is_never_signalled() -> None:
    with subprocess.Popen(["sleep", "60"]) as foreign:
        recorded = ProcessIdentity(boot_id=identity.boot_id(), pid=foreign.pid, start_ticks=1, marker="/x.sock")
        identity.kill(recorded)
        assert identity.wait_gone(recorded, timeout_s=0.1)
        time.sleep(0.05)
        assert foreign.poll() is None
        foreign.send_signal(signal.SIGKILL)


def test_a_child_that_ended_is_not_alive_though_no_one_reaped_it(tmp_path: Path) -> None:
    with (tmp_path / "out").open("ab") as out:
        known = process.spawn(["sh", "-c", "exit 0", "marker-x"], marker="marker-x", output=out)
    deadline = time.monotonic() + 5
    while identity.is_alive(known):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.fault(31)
def test_a_spawned_process_outlives_a_terminal(tmp_path: Path) -> None:
    marker = str(tmp_path / "s.sock")
    known = sleeper(tmp_path, marker)
    try:
        fields = Path(f"/proc/{known.pid}/stat").read_text().rpartition(")")[2].split()
        assert int(fields[3]) == known.pid  # the session is its own
    finally:
        identity.kill(known)
        assert identity.wait_gone(known, timeout_s=5)


def test_attached_gives_the_programs_own_code() -> None:
    assert process.attached(["sh", "-c", "exit 7"]) == 7
    assert process.attached(["sh", "-c", "kill -9 $$"]) == 137


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("/d/m.sock", True),
        ("unix:/d/m.sock,server=on", True),
        ("path=/d/m.sock", True),
        ("/d/m.sock2", False),
        ("/x/d/m.sock", False),
        ("--x/d/m.sock", False),
        ("", False),
    ],
)
def test_a_marker_is_a_whole_value(argument: str, named: bool) -> None:
    assert identity._names(argument.encode(), b"/d/m.sock") is named


def test_a_marker_with_commas_is_found_as_qemu_writes_it() -> None:
    assert identity._names(b"unix:/a,, b=c/m.sock,server=on,wait=off", b"/a, b=c/m.sock")
