"""What a program may say and take: nothing that is started keeps vmm waiting, or fills its memory."""

import resource
import sys
import time

import pytest

from vmm.errors import HostError
from vmm.host import process

FLOOD = "import os\nwhile True: os.write({fd}, b'x' * 65536)"


@pytest.mark.fault(49)
def test_a_program_that_says_no_end_is_ended_in_bounded_memory() -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HostError, match="said more than any program should"):
        process.run([sys.executable, "-c", FLOOD.format(fd=1)], most_bytes=1 << 20)
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


@pytest.mark.fault(49)
def test_of_complaints_without_end_the_newest_are_kept() -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HostError, match="did not end within"):
        process.run([sys.executable, "-c", FLOOD.format(fd=2)], timeout_s=1)
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
    script = "import sys; sys.stderr.write('a' * 100_000 + 'the end'); sys.exit(3)"
    done = process.run([sys.executable, "-c", script], check=False)
    assert (done.code, len(done.stderr), done.stderr[-7:]) == (3, 64 * 1024, "the end")


def test_a_long_input_and_a_long_answer_pass_each_other() -> None:
    """Whoever writes all before it reads anything waits for ever."""
    text = "".join(f"{number}\n" for number in range(300_000))
    done = process.run([sys.executable, "-c", "import sys; sys.stdout.write(sys.stdin.read())"], stdin=text)
    assert done.stdout == text


def test_a_program_that_does_not_read_its_input_is_no_failure() -> None:
    assert process.run(["true"], stdin="x" * 1_000_000).code == 0
    assert process.run(["sh", "-c", "exec <&-; echo done"], stdin="x" * 1_000_000).stdout == "done\n"


def test_a_program_that_closes_its_ends_and_goes_on_is_waited_for() -> None:
    began = time.monotonic()
    assert process.run(["sh", "-c", "exec >&- 2>&- <&-; sleep 0.3; exit 4"], check=False).code == 4
    assert time.monotonic() - began >= 0.3
    with pytest.raises(HostError, match="did not end within"):
        process.run(["sh", "-c", "exec >&- 2>&- <&-; exec sleep 60"], timeout_s=0.3)
