"""The only door to processes: argument lists, a closed environment, stdin from /dev/null."""

from __future__ import annotations

import _thread
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.host import identity
from vmm.host.talk import Talk
from vmm.model.text import harmless
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from typing import IO, NoReturn, Self

    from vmm.model.machine import ProcessIdentity

# sbin first: a user's own PATH often lacks it, and root's tools live there.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})
# Where programs stand: in the directory of whoever gave the command may lie what Python and others take for their own.
_CWD = "/"
_TIMEOUT_S = 60.0
_MOMENT_S = 2.0
# What is kept of what a program says; the longest known is nft's list of ten thousand machines. One that says more is
# ended.
_MOST_BYTES = 64 * 1024 * 1024
# Held while a program is started. Until it execs, a child has open what any of our threads has, close-on-exec or not:
# whoever opens what must be closed when they close it (a tap, which is busy else) holds this meanwhile.
forking = _thread.allocate_lock()


class Completed(Value):
    """What a program that has ended left: its exit code (negative: the signal) and its output, decoded."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """The program's own words, for the details of an error: at most its last 2,000 characters."""
        said = (self.stderr.strip() or self.stdout.strip())[-2000:]
        return said or f"{self.argv[0]} ended with exit code {self.code} and said nothing."


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the closed environment that programs are given, with `extra` on top."""
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive", **(extra or {})}


def proxies() -> dict[str, str]:
    """Return the proxies of whoever gave this command, for the programs that fetch something.

    apt and others read the small names alone, so one that is given in capitals is passed on under both.
    """
    given = {key: value for key, value in os.environ.items() if key.lower() in _PROXIES}
    return {key.lower(): value for key, value in given.items()} | given


class Begun(Value):
    """A program under way, which its starter waits for."""

    process: subprocess.Popen[bytes]

    def finish(self) -> int:
        """Wait for its end and return its exit code; killed when it takes longer than any program of this kind may."""
        try:
            return self.process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def ended(self) -> int | None:
        """Return its exit code, None while it runs."""
        return self.process.poll()


class Reading(Value):
    """A program under way, whose output is wanted; it goes into memory, so that it never waits for its reader."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]
    most: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()

    def read(self, *, timeout_s: float) -> str:
        """Return what it said; empty when it failed, said more than `most` bytes, or was not done in time."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return ""
        if code != 0 or self.output.seek(0, os.SEEK_END) > self.most:
            return ""
        self.output.seek(0)
        return self.output.read().decode(errors="replace")


def begin_reading(argv: Sequence[str], *, most: int) -> Reading:
    """Start a program whose output is read later, `most` bytes of it; HostError when it is missing."""
    output = os.fdopen(os.memfd_create("vmm", os.MFD_CLOEXEC), "w+b")
    try:
        with _told(argv), forking:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=environment(),
                cwd=_CWD,
            )
    except BaseException:
        output.close()
        raise
    return Reading(process=process, output=output, most=most)


def begin(argv: Sequence[str], *, stdin: str) -> Begun:
    """Start a program that takes its commands from stdin and says nothing; HostError when it is missing."""
    with _told(argv), forking:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            cwd=_CWD,
        )
    assert process.stdin is not None  # noqa: S101  # asked for above
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(stdin.encode())
    return Begun(process=process)


def run(  # each is a plain fact of one exec; a type would only rename subprocess's own
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout_s: float = _TIMEOUT_S,
    env: Mapping[str, str] | None = None,
    cwd: Path | str = _CWD,
    stdout: IO[bytes] | None = None,
    check: bool = True,
    most_bytes: int = _MOST_BYTES,
) -> Completed:
    """Run a program to its end. `stdout` given: its output goes there and `Completed.stdout` is empty.

    Raises:
        HostError: the program is missing, took longer than `timeout_s`, said more than `most_bytes`, or (with `check`)
            did not end with code 0.
    """
    with _told(argv):
        with forking:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=stdout if stdout is not None else subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(env),
                cwd=cwd,
            )
        talk = _communicated(child, argv, (stdin or "").encode(), timeout_s=timeout_s, most_bytes=most_bytes)
    completed = Completed(
        argv=tuple(argv),
        code=child.returncode,
        stdout=talk.said.decode(errors="replace"),
        stderr=talk.complained.decode(errors="replace"),
    )
    if check and completed.code != 0:
        raise HostError(
            f"{Path(argv[0]).name} failed with exit code {completed.code}.",
            details=f"{_line(argv)}: {completed.words}",
            resolution="Mend what it names, then try again; -v shows every program that vmm runs.",
        )
    return completed


def _communicated(
    child: subprocess.Popen[bytes], argv: Sequence[str], stdin: bytes, *, timeout_s: float, most_bytes: int
) -> Talk:
    """Give a child its input, and return what it said; it is ended when that is cut short, or is too much."""
    talk = Talk(child, stdin, most_bytes=most_bytes)
    deadline = time.monotonic() + timeout_s
    with child:
        try:
            while talk.goes_on():
                if (left := deadline - time.monotonic()) <= 0:
                    raise subprocess.TimeoutExpired(list(argv), timeout_s)
                talk.step(left)
            if talk.is_too_long:
                child.kill()
            child.wait(max(0.0, deadline - time.monotonic()))
        except BaseException:
            child.kill()
            raise
    if talk.is_too_long:
        raise HostError(
            f"{Path(argv[0]).name} said more than any program should.",
            details=f"It was ended after {most_bytes} bytes: {_line(argv)}",
            resolution="Run the command by hand to see what it says, then try again.",
        )
    return talk


class Streams(Value):
    """Where a program that outlives us writes, and the cgroups that it is put into (what `cgroups.join` opened).

    `shielded`: the signals that politely ask all of a cgroup or terminal to end do not reach it; vmm ends it.
    `is_ours`: it is a vmm, which holds no guest's memory and stays in our cgroups; to fork it takes half the time.
    """

    output: IO[bytes]
    errors: IO[bytes]
    join: tuple[int, ...] = ()
    shielded: bool = False
    is_ours: bool = False


def spawn(argv: Sequence[str], *, marker: str, streams: Streams) -> ProcessIdentity:
    """Start a program that outlives us, in a session of its own, and return its identity.

    `marker` must be one of its arguments.
    """
    child = _outliving(argv, streams)
    # It is meant to outlive this process: the interpreter must not warn that it still runs. While this process lives it
    # stays the parent, so a child that ended is a zombie until `reap`.
    child.returncode = 0
    return identity.of(child.pid, marker=marker)


def spawn_through(argv: Sequence[str], *, streams: Streams, timeout_s: float) -> int:
    """Run a program that starts another one and ends; return its exit code. HostError when it does not end in time."""
    child = _outliving(argv, streams)
    with _told(argv):
        try:
            return child.wait(timeout_s)
        except BaseException as error:
            if not isinstance(error, subprocess.TimeoutExpired):
                # Interrupted: it ends in a moment, and what it starts is found then. Killed now, that were no one's.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_MOMENT_S)
            child.kill()
            child.wait()
            raise


def child(argv: Sequence[str]) -> Begun:
    """Start a program that is waited for later; what it complains of goes where our own complaints do."""
    with _told(argv), forking:
        argv = list(argv)
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment(), cwd=_CWD)
    return Begun(process=child)


@contextlib.contextmanager
def undisturbed() -> Generator[None]:
    """Hold back what asks this command to end while the block goes on; a thread that it starts never hears of it."""
    import signal

    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outliving(argv: Sequence[str], streams: Streams) -> subprocess.Popen[bytes]:
    import resource
    import signal

    nothing = (0, 0)
    polite = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if streams.shielded else ()

    def enter() -> None:
        # Between fork and exec, a system call each: whatever the program does, its first page included, counts in its
        # cgroup; it never leaves its memory on the disk.
        for fd in streams.join:
            os.write(fd, b"0")
        resource.setrlimit(resource.RLIMIT_CORE, nothing)
        signal.pthread_sigmask(signal.SIG_BLOCK, polite)

    with _told(argv), forking:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=streams.output,
            stderr=streams.errors,
            env=environment(),
            cwd=_CWD,
            start_new_session=True,
            # Without it Python may share its memory with the child until that execs, and copies nothing.
            preexec_fn=None if streams.is_ours else enter,  # noqa: PLW1509  # see there
            # What it makes, its API socket above all, is its owner's alone. In the child: ours has other threads.
            umask=0o077,
        )


def replace(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> NoReturn:
    """Become another program, in this terminal and with this environment (the user's own ssh needs their agent)."""
    with _told(argv):
        os.execvpe(argv[0], list(argv), {**os.environ, **(env or {})})  # noqa: S606  # no shell is wanted


def attached(argv: Sequence[str]) -> int:
    """Run a program in this terminal and environment; return its exit code (128 + n when signal n ended it)."""
    with _told(argv):
        code = subprocess.run(list(argv), check=False).returncode
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _told(argv: Sequence[str]) -> Generator[None]:
    """Log a line that can be pasted into a shell, and convert what goes wrong with starting a program."""
    # Without --verbose nobody has imported logging, and nobody listens.
    if "logging" in sys.modules:
        import logging

        logging.getLogger(__name__).debug("%s", _line(argv))
    try:
        yield
    except FileNotFoundError as error:
        raise _missing(argv[0]) from error
    except subprocess.TimeoutExpired as error:
        raise HostError(
            f"{Path(argv[0]).name} did not end within {error.timeout:.0f} s.",
            details=_line(argv),
            resolution="Run the command by hand to see what it waits for, then try again.",
        ) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(
            f"{argv[0]} cannot be started.", details=str(error), resolution=f"Check it: ls -l {argv[0]}"
        ) from error


def _line(argv: Sequence[str]) -> str:
    import shlex

    return harmless(shlex.join(argv))


def _missing(program: str) -> HostError:
    return HostError(
        f"The program {program!r} is not on this host.",
        details=f"It was looked for in {PATH}.",
        resolution="Install what is missing: sudo vmm setup --install-packages",
    )
