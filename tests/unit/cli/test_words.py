"""What stands behind `--` is a guest's: it is split off before anything is parsed."""

import os

import click
import pytest

from vmm.cli.main import cli, run
from vmm.cli.words import session_of


def parsed(*arguments: str) -> dict[str, object]:
    """Return what a command line gives: its options, its name, its words."""
    name, *rest = arguments
    command = cli.get_command(click.Context(cli, info_name="vmm"), name)
    assert command is not None
    return command.make_context(name, list(rest), parent=click.Context(cli, info_name="vmm")).params


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        (("run", "--rm", "--user", "root", "--", "root", "--version"), None, ("root", "--version")),
        (("run", "--rm", "--", "run"), None, ("run",)),
        (("run", "--", "--rm", "--", "x"), None, ("--rm", "--", "x")),
        (("run", "dev", "--rm", "--", "dev"), "dev", ("dev",)),
        (("run", "dev"), "dev", ()),
        (("run",), None, ()),
        (("run", "--"), None, ()),
        (("run", "--rm", "--cpus", "2", "dev", "uname", "-a", "--rm"), "dev", ("uname", "-a", "--rm")),
        (("exec", "dev", "--", "-oProxyCommand=x", "true"), "dev", ("-oProxyCommand=x", "true")),
        (("exec", "dev", "--", "--help"), "dev", ("--help",)),
        (("exec", "-u", "me", "dev", "ls", "-v", "-q", "--output", "x"), "dev", ("ls", "-v", "-q", "--output", "x")),
        (("ssh", "dev", "-u", "me"), "dev", ()),
        (("ssh", "dev", "-u", "me", "-T", "top", "-b"), "dev", ("top", "-b")),
        (("ssh", "dev", "--", ""), "dev", ("",)),
        (("ssh", "--", "dev"), KeyError, ()),
        (("ssh", "a", "b", "--", "c"), KeyError, ()),
        (("run", "a", "b", "--", "c"), KeyError, ()),
        (("exec", "dev"), KeyError, ()),
        (("exec", "dev", "--"), KeyError, ()),
        (("ssh", "dev", "--nosuch", "ls"), KeyError, ()),
    ],
)
def test_what_is_vmms_and_what_is_the_guests(
    arguments: tuple[str, ...], name: str | type | None, words: tuple[str, ...]
) -> None:
    if name is KeyError:
        with pytest.raises(click.UsageError):
            parsed(*arguments)
        return
    found = parsed(*arguments)
    assert (found["name"], found["words"]) == (name, words)


def test_a_name_behind_the_dashes_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ssh", "--", "dev"]) == 2
    assert "stands before --" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["exec", "dev", "--", ""], ["ssh", "dev", "--", " "], ["run", "--", "", "x"]])
def test_an_empty_command_is_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ends", "arguments", "asks", "terminal"),
    [
        ((True, True), ["ls"], True, True),
        ((True, False), ["ls"], True, False),
        ((False, True), ["ls"], True, False),
        ((True, True), ["ls"], False, False),
        ((False, False), ["-t", "ls"], False, True),
        ((True, True), ["-T", "ls"], True, False),
        # A shell: ssh gives it one where there is one.
        ((True, True), [], True, None),
        ((False, False), ["-t"], True, True),
    ],
)
def test_who_gets_a_terminal(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[bool, bool], arguments: list[str], asks: bool, terminal: bool | None
) -> None:
    for stream, is_terminal in zip(("stdin", "stdout"), ends, strict=True):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda value=is_terminal: value, raising=False)
    session = session_of(parsed("ssh", "dev", *arguments), asks_terminal=asks)
    assert session.terminal is terminal


def test_help_is_vmms_before_the_dashes_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["exec", "--help"]) == 0
    said = capsys.readouterr().out
    assert "vmm exec [OPTIONS] NAME -- COMMAND..." in said
    assert "-n, --no-stdin" in said
    if os.geteuid() == 0:
        assert run(["exec", "nosuch", "--", "--help"]) == 1
        assert "There is no machine 'nosuch'" in capsys.readouterr().err
