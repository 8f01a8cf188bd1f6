"""The way in. Asking for the version imports nothing but this, and a plain listing no parser."""

import os
import sys


def main() -> int:
    """Run the command line and return its exit code."""
    if sys.argv[1:] in (["--version"], ["-V"], ["version"]):
        from vmm import VERSION

        sys.stdout.write(f"vmm {VERSION}\n")
        return 0
    try:
        from vmm.cli.short import run_short

        code = run_short(sys.argv[1:])
        if code is None:
            from vmm.cli.main import run

            code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # While modules were still being imported: nothing was begun.
        code = 130
    except (OSError, MemoryError) as error:
        # The same, for want of memory or files: the module that would say so cannot be imported either.
        sys.stderr.write(
            f"Error: vmm cannot be loaded.\n  {error or 'There is not enough memory.'}\n"
            "  To mend it: see the limits of this shell (ulimit -a) and the room in memory (free -h), then try again.\n"
        )
        code = 1
    try:
        return _left(code)
    except KeyboardInterrupt:
        # All was done, and what was to be said is said: what comes now changes nothing.
        os._exit(code)


def _left(code: int) -> int:
    """End the process with `code`. Returns only where its output cannot be flushed, for the interpreter to say so.

    The interpreter's own teardown takes 10 ms to give back memory that the kernel takes back at once. Nothing of vmm's
    waits for it: what must be undone is undone by now, and only buffers are left.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return code
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
