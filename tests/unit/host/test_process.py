import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.host import identity, process
from vmm.host.recognition import Recognition
from vmm.model.machine import ProcessIdentity
from vmm.model.value import replace

SLEEP = "import time; time.sleep(60)"


def spawned(tmp_path: Path, *arguments: str, marker: str) -> ProcessIdentity:
    with (tmp_path / "out").open("ab") as out, (tmp_path / "err").open("ab") as errors:
        return process.spawn(list(arguments), marker=marker, streams=process.Streams(output=out, errors=errors))


def sleeper(tmp_path: Path, marker: str, *arguments: str) -> ProcessIdentity:
    """Start a process that has its marker where qemu has it, or these arguments."""
    said = arguments or (f"unix:{marker},server=on",)
    return spawned(tmp_path, sys.executable, "-c", SLEEP, *said, marker=marker)


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start children of ours that sleep, with these arguments, and end them."""
    children: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen([sys.executable, "-c", SLEEP, *arguments]))
        line = b"\0".join(word.encode() for word in arguments)
        until(lambda: line in Path(f"/proc/{children[-1].pid}/cmdline").read_bytes())
        return children[-1]

    yield start
    for one in children:
        one.kill()
        one.wait()


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
        until(lambda: identity.is_alive(known))
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
    known = spawned(tmp_path, "sh", "-c", "exit 0", "marker-x", marker="marker-x")
    until(lambda: not identity.is_alive(known))


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


# Who has which marker


@pytest.mark.fault(3)
def test_one_walk_finds_every_marker(tmp_path: Path, child: Callable[..., subprocess.Popen[bytes]]) -> None:
    """As a word of its own, and where qemu has its socket: within an option, a comma written twice."""
    plain = str(tmp_path / "a.sock")
    commas = str(tmp_path / "b, c=1/d.sock")
    jailed = "/0123456789abcdef0123456789abcdef.sock"
    word = child("--api-sock", plain)
    option = child("-qmp", f"unix:{commas.replace(',', ',,')},server=on,wait=off")
    inside = child("--id", "0123456789abcdef0123456789abcdef", "--api-sock", jailed)
    absent = str(tmp_path / "e.sock")
    found = identity.find_all([plain, commas, jailed, absent])
    assert {marker: known.pid for marker, known in found.items()} == {
        plain: word.pid,
        commas: option.pid,
        jailed: inside.pid,
    }
    for marker, known in found.items():
        assert known.marker == marker
        assert identity.is_alive(known)
    assert identity.find_all([]) == {}


def test_what_only_looks_like_a_marker_is_none(tmp_path: Path, child: Callable[..., subprocess.Popen[bytes]]) -> None:
    marker = str(tmp_path / "m.sock")
    child(f"{marker}2")
    child(f"/jail{marker}")
    child(f"unix:{marker}.old,server=on")
    child(f"x{marker} unix:")
    child(f"--log={marker}")  # a word with more in it, and no qemu
    assert identity.find_all([marker]) == {}


@pytest.mark.fault(3)
@pytest.mark.parametrize(
    ("leads", "own", "counts"), [(True, True, True), (False, True, True), (True, False, None), (False, False, False)]
)
def test_only_what_may_be_an_engine_is_taken_for_one(
    tmp_path: Path, leads: bool, own: bool, counts: bool | None
) -> None:
    """Anybody may name a socket in a shell: `curl --unix-socket PATH`. Root's engines lead a session of their own."""
    marker = str(tmp_path / "m.sock")
    me = os.geteuid()
    uids = (me, me) if own else (me + 1, me + 10)
    known_by = Recognition(uids=uids, programs=(Path(sys.executable),), jails=tmp_path, machines=tmp_path)
    words = [sys.executable, "-c", SLEEP, "--unix-socket", marker]
    with subprocess.Popen(words, start_new_session=leads) as known:
        try:
            until(lambda: identity.find(marker))
            found = identity.find(marker, known=known_by)
            other = identity.find(marker, known=replace(known_by, programs=(Path("/bin/true"),)))
        finally:
            known.kill()
    # A session's leader with another user id is an engine if it is root's.
    expected = counts if counts is not None else me == 0
    if me == 0 and not leads:
        expected = False
    assert (found is not None) is expected
    # Nothing but root can see which program it is.
    assert other is None or me != 0


@pytest.mark.fault(43)
def test_whoever_has_a_disk_open_is_its_engine_whatever_its_program(tmp_path: Path) -> None:
    marker, disk = str(tmp_path / "m.sock"), tmp_path / "m" / "disk.ext4"
    disk.parent.mkdir()
    disk.touch()
    known_by = Recognition(
        uids=(1, os.geteuid() + 1), programs=(Path("/bin/true"),), jails=tmp_path / "none", machines=tmp_path
    )
    with disk.open() as opened:
        for given in (opened, subprocess.DEVNULL):
            words = [sys.executable, "-c", SLEEP, "--api-sock", marker]
            with subprocess.Popen(words, start_new_session=True, stdin=given) as known:
                try:
                    until(lambda: identity.find(marker))
                    found = identity.find(marker, known=known_by)
                finally:
                    known.kill()
            assert (found is not None) is (given is opened) or os.geteuid() != 0


@pytest.mark.fault(43)
def test_a_socket_of_a_name_that_another_machine_has_is_no_proof(tmp_path: Path) -> None:
    marker = str(tmp_path / "m.sock")
    known_by = Recognition(
        uids=(1, os.geteuid() + 1), programs=(Path(sys.executable),), jails=tmp_path, machines=tmp_path
    )
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    words = [sys.executable, "-c", SLEEP, "-uuid", uuid, "-qmp", f"unix:{marker},server=on"]
    with subprocess.Popen(words, start_new_session=True) as known:
        try:
            until(lambda: identity.find(marker))
            assert identity.find(uuid, marker, known=known_by) is not None
            assert identity.find(uuid.replace("0", "1"), marker, known=known_by) is None
        finally:
            known.kill()


def test_of_several_the_youngest_is_found(child: Callable[..., subprocess.Popen[bytes]]) -> None:
    """The jailer has the marker too: it is older than the engine that it starts, and ends."""
    marker = "/fedcba9876543210fedcba9876543210.sock"
    older = child("--", "--api-sock", marker)
    tick = 1 / os.sysconf("SC_CLK_TCK")
    time.sleep(3 * tick)
    younger = child("--api-sock", marker)
    assert getattr(identity.find(marker), "pid", None) == younger.pid
    younger.kill()
    younger.wait()
    assert getattr(identity.find(marker), "pid", None) == older.pid


def test_a_zombie_is_nobody(child: Callable[..., subprocess.Popen[bytes]]) -> None:
    marker = "/00000000000000000000000000000bad.sock"
    dead = child("--api-sock", marker)
    known = identity.of(dead.pid, marker=marker)
    os.kill(dead.pid, signal.SIGKILL)
    # Not waited for yet: its pid is still its own.
    until(lambda: Path(f"/proc/{dead.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert identity.find_all([marker]) == {}
    assert not identity.is_alive(known)


def test_who_looks_is_not_found(tmp_path: Path) -> None:
    """The command that looks for an engine may have the marker in its own arguments."""
    marker = str(tmp_path / "m.sock")
    script = "import sys; from vmm.host import identity; print(identity.find(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, marker], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_a_program_that_starts_another_and_ends(tmp_path: Path) -> None:
    marker = "/11111111111111111111111111111111.sock"
    script = f"{sys.executable} -c '{SLEEP}' --api-sock {marker} & echo $! > {tmp_path}/pid; exit 0"
    with (tmp_path / "out").open("ab") as out:
        streams = process.Streams(output=out, errors=out)
        assert process.spawn_through(["sh", "-c", script], streams=streams, timeout_s=5) == 0
    pid = int((tmp_path / "pid").read_text())
    try:
        until(lambda: identity.find(marker))
        known = identity.of(pid, marker=marker)
        assert identity.find(marker) == known
        # It is no child of ours, and its end is seen all the same.
        identity.kill(known)
        assert identity.wait_gone(known, timeout_s=5)
        assert not identity.is_alive(known)
    finally:
        identity.kill(identity.of(pid, marker=marker))


@pytest.mark.fault(14)
def test_a_program_that_should_start_another_and_hangs_is_ended(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; exec sleep 60"
    began = time.monotonic()
    with (tmp_path / "out").open("ab") as out:
        streams = process.Streams(output=out, errors=out)
        with pytest.raises(HostError, match="did not end within"):
            process.spawn_through(["sh", "-c", script], streams=streams, timeout_s=0.3)
    assert time.monotonic() - began < 5
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


@pytest.mark.fault(24)
def test_what_an_engine_makes_is_its_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        known = spawned(tmp_path, "sh", "-c", f"echo x > {tmp_path}/made", "marker-y", marker="marker-y")
    finally:
        os.umask(old)
    until((tmp_path / "made").exists)
    assert identity.wait_gone(replace(known, marker=""), timeout_s=5)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600


def test_a_child_is_in_its_cgroup_before_it_does_anything(tmp_path: Path) -> None:
    """What is written to a group's file between fork and exec is written by the child itself."""
    group = tmp_path / "cgroup.procs"
    group.touch()
    fd = os.open(group, os.O_WRONLY)
    try:
        with (tmp_path / "out").open("ab") as out:
            streams = process.Streams(output=out, errors=out, join=(fd,))
            known = process.spawn(["cat", str(group)], marker=str(group), streams=streams)
    finally:
        os.close(fd)
    assert identity.wait_gone(replace(known, marker=""), timeout_s=5)
    assert (tmp_path / "out").read_text() == "0"


@pytest.mark.fault(24)
def test_a_group_that_is_not_there_is_told() -> None:
    with pytest.raises(HostError, match="no group 'vmm-no-such'") as caught:
        identity.group_id("vmm-no-such")
    assert "groupadd" in caught.value.resolution
    assert identity.group_id("root") == 0


def test_programs_do_not_stand_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, and others, take for their own what lies there."""
    monkeypatch.chdir(tmp_path)
    assert process.run(["pwd"]).stdout == "/\n"
    assert process.run(["pwd"], cwd=tmp_path).stdout == f"{tmp_path}\n"
    with process.begin_reading(["pwd"], most=100) as reading:
        assert reading.read(timeout_s=10) == "/\n"


def test_a_command_line_is_read_to_a_bound(tmp_path: Path) -> None:
    """Its size is its user's to choose: one of half a gigabyte made a walk over all processes take a minute."""
    long = [sys.executable, "-c", SLEEP, "/the/marker", *["x" * 100_000] * 3]
    child = subprocess.Popen(long)
    try:
        while b"marker" not in Path(f"/proc/{child.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        assert identity.command_line(child.pid) == b""
        assert identity.find("/the/marker") is None
    finally:
        child.kill()
        child.wait()
    assert identity.command_line(os.getpid()) == Path("/proc/self/cmdline").read_bytes()
