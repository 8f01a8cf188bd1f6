"""The one rule of a command's words on their way into a guest, tried with a real shell."""

import subprocess

import pytest

from vmm.errors import UsageError
from vmm.model.session import remote_line

HOSTILE = [
    "", " ", "a  b", "c'd", '"', "$e", "$(id)", "`id`", "*", "~", "\\", "\\n", "a\nb", "\t", "!", "#", ";", "&&", "-n",
    "--", "-oProxyCommand=touch /x", "=", "A=b", "if", "é", "\x1b[31m", "'\"'\"'", "a'", "'", "\udcff", "%h", "{a,b}",
]  # fmt: skip


def through(line: str, shell: str) -> subprocess.CompletedProcess[bytes]:
    """Do with a line what an ssh server does with it."""
    return subprocess.run([shell, "-c", line], capture_output=True, check=False)


@pytest.mark.fault(48)
@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_several_words_arrive_as_they_are(shell: str) -> None:
    done = through(remote_line(("printf", "%s\\0", *HOSTILE)), shell)
    assert done.stdout.decode(errors="surrogateescape").split("\0")[:-1] == HOSTILE


@pytest.mark.fault(48)
@pytest.mark.parametrize("first", ["-oProxyCommand=touch x", "--", "-c", "A=b", "if", "{", "!", "no such", "(", "+x"])
def test_the_first_word_is_a_program_and_nothing_else(first: str) -> None:
    assert through(remote_line((first, "x")), "bash").returncode == 127


def test_one_word_is_a_line_for_the_shell() -> None:
    assert through(remote_line(("echo a; echo 'b  c'; exit 5",)), "sh").stdout == b"a\nb  c\n"
    assert through(remote_line(("echo a; exit 5",)), "sh").returncode == 5
    assert through(remote_line(("A=b env | grep ^A=",)), "sh").stdout == b"A=b\n"


@pytest.mark.fault(48)
@pytest.mark.parametrize("line", ["-oProxyCommand=/tmp/x", "--", "-c", "+o", "-"])
@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_a_line_is_never_an_option_of_the_shell(line: str, shell: str) -> None:
    assert through(remote_line((line,)), shell).returncode == 127


@pytest.mark.parametrize("words", [(), ("",), (" ",), ("\n\t",), ("", "x"), (" ", "x"), ("", "")])
def test_an_empty_command_is_refused(words: tuple[str, ...]) -> None:
    """A shell would call it done: a job whose command is in a variable that is not set would be green."""
    with pytest.raises(UsageError, match="is empty"):
        remote_line(words)
