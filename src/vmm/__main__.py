"""The way in. Asking for the version imports nothing but this, and a plain listing no parser."""

import errno
import os
import sys

# What the kernel says when it cannot or may not give what an import asks for. Any other error is a fault of vmm's own.
_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.EACCES, errno.EIO)


def main() -> int:
    """Run the command line and return its exit code."""
    # What is made has the modes that it is given: a shell's umask would keep an engine from its own log.
    os.umask(0o022)
    whole_streams()
    try:
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:
        # While modules were still being imported: nothing was begun.
        code = 130
    except (OSError, MemoryError) as error:
        # The same, for want of memory or files: the module that would say so cannot be imported either.
        if isinstance(error, OSError) and error.errno not in _LACKS:
            raise
        _complain(
            f"Error: vmm cannot be loaded.\n  {str(error) or 'There is not enough memory.'}\n"
            "  To mend it: see the limits of this shell (ulimit -a) and the room in memory (free -h), then try again.\n"
        )
        code = 1
    try:
        _leave(code)
    except KeyboardInterrupt:
        # All was done, and what was to be said is said: what comes now changes nothing.
        os._exit(code)
    return code


def _run(arguments: list[str]) -> int:
    if arguments in (["--version"], ["-V"], ["version"]):
        from vmm import VERSION

        return _write(f"vmm {VERSION}\n", code=0)
    from vmm.cli.short import run_short

    code = run_short(arguments)
    if code is None:
        from vmm.cli.main import run

        code = run(arguments)
    return code


def whole_streams() -> None:
    """Open what was closed when this process began: a file of ours would get its number, and be written to.

    A stdout that was closed cannot be written to all the same, and that is told; other programs find an empty one.
    """
    missing: list[int] = []
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # It gets the lowest number that is free: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003  # its only form
            missing.append(fd)
    if 0 in missing:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if 1 in missing:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), "w", encoding="utf-8")
    if 2 in missing:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    # A name that this terminal's encoding does not know is no reason to fail.
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # it is a TextIOWrapper


def _leave(code: int) -> None:
    """End the process with `code`, and the buffers with it.

    The interpreter's own teardown takes 10 ms to give back memory that the kernel takes back at once. Nothing of vmm's
    waits for it: what must be undone is undone by now, and only buffers are left.
    """
    code = _write("", code=code)
    _complain("")
    os._exit(code)


def _write(text: str, *, code: int) -> int:
    """Write to stdout, and flush it; return `code`, or that of a failure."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more: no error.
        return code
    except (OSError, ValueError) as error:
        _complain(
            f"Error: The output cannot be written.\n  {getattr(error, 'strerror', None) or error}\n"
            "  To mend it: give stdout somewhere to go: a terminal, or a file where there is room (df -h).\n"
        )
        return code or 1
    return code


def _complain(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        # There is no one left to tell.
        pass


if __name__ == "__main__":
    sys.exit(main())
