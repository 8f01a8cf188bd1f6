"""The ways out: nothing that others said or named drives a terminal, whatever way it goes."""

import ast
import io
import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.cli import output, render
from vmm.cli.ending import complain, guarded
from vmm.cli.progress import OnTerminal, PlainLines
from vmm.errors import HostError
from vmm.model.event import Event, EventKind
from vmm.model.image import Image
from vmm.model.machine import UnreadableRecord
from vmm.model.readiness import Check, CheckStatus, SetupStep
from vmm.operations.reconcile import Repair

CLI = Path(__file__).parents[3] / "src" / "vmm" / "cli"
EVIL = "\n\x1b]0;PWNED\x07Kernel panic\x7f - \x9b2J \u202ex \udcff [/red] [bold]"
SHOWN = "\\n\\x1b]0;PWNED\\x07Kernel panic\\x7f - \\x9b2J \\u202ex \\xff [/red] [bold]"


def is_harmless(text: str) -> bool:
    text.encode()
    return all(letter.isprintable() or letter == "\n" for letter in text)


def an_image(source: str) -> Image:
    return Image(name="i", path=Path("/i"), size_mib=1, sha256="0", source=source, created_at="t")


@pytest.mark.fault(49)
@pytest.mark.parametrize("way", ["table", "json"])
def test_every_listing(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    event = Event(id=1, at="t", machine=EVIL, kind=EventKind.FAILED, detail=EVIL)
    render.events([event], way, stream=False)
    render.events([event], way, stream=True)
    render.machines([UnreadableRecord(name=EVIL, problem=EVIL)], way)
    render.repairs([Repair(subject=EVIL, what=EVIL, done=False)], way)
    render.images([an_image(EVIL)], [EVIL], way)
    render.checks([Check(name="x", status=CheckStatus.WARNING, detail=EVIL, fix=EVIL)], way)
    render.setup_steps([SetupStep(name="x", outcome="done", detail=EVIL)], way)
    said = capsys.readouterr().out
    assert is_harmless(said)
    assert said.count("PWNED") == 13
    if way == "table":
        # A text is in its line, and forges none.
        assert said.count(SHOWN) == 13


@pytest.mark.fault(49)
def test_json_stays_json_and_its_texts_are_harmless_when_they_are_taken_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.as_json({"a": [EVIL, 1, None, {"b": "é\n"}], "c": "plain"})
    said = capsys.readouterr().out
    assert said.isascii()
    read = json.loads(said)
    assert read["a"][1:] == [1, None, {"b": "é\n"}]
    assert is_harmless(read["a"][0])
    assert read["c"] == "plain"
    render.machines([UnreadableRecord(name="m", problem=EVIL)], "json")
    assert is_harmless(json.loads(capsys.readouterr().out)[0]["reason"])


@pytest.mark.fault(49)
def test_an_error_has_three_parts_and_none_can_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    complain(EVIL, f"said:\r\n{EVIL}\n  To mend it: curl http://x | sh\n", EVIL)
    said = capsys.readouterr().err
    assert is_harmless(said)
    lines = said.splitlines()
    assert lines[0] == f"Error: {SHOWN}"
    assert [line for line in lines if line.startswith("  To mend it: ")] == [f"  To mend it: {SHOWN}"]
    assert "      To mend it: curl" in said
    complain("b", "x" * 1_000_000, "r")
    assert len(capsys.readouterr().err) < 5000


@pytest.mark.fault(49)
def test_warnings_notes_and_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(EVIL)
    output.say(EVIL, aside=True)
    with PlainLines().step(EVIL):
        PlainLines().note(EVIL)
    said = capsys.readouterr()
    assert is_harmless(said.out)
    assert is_harmless(said.err)
    assert said.out.count(SHOWN) + said.err.count(SHOWN) == 4


@pytest.mark.fault(49)
def test_a_name_in_a_progress_bar_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, its = pty.openpty()
    with os.fdopen(its, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with OnTerminal().step(f"Copying {EVIL}"):
            pass
        OnTerminal().note(EVIL)
        # A terminal gives what was written in parts, and in its own time.
        shown = ""
        while not ("PWNED" in shown and "[/red]" in shown) and select.select([ours], [], [], 5)[0]:
            shown += os.read(ours, 65536).decode(errors="replace")
    os.close(ours)
    assert "PWNED" in shown
    assert "[/red]" in shown
    for wrong in ("\x1b]0", "\x07", "\x9b", "\u202e"):
        assert wrong not in shown


def test_nothing_of_the_face_writes_past_the_ways_out() -> None:
    """What a command prints by itself nobody has made harmless."""
    found: list[str] = []
    for path in sorted(CLI.rglob("*.py")):
        if path.name in ("output.py", "reference.py", "manual.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("print", "click.echo", "click.secho") or called.endswith(
                    ("stdout.write", "stderr.write", "buffer.write")
                ):
                    found.append(f"{path.name}:{node.lineno} {called}")
    assert found == []


# What cannot be written


class Broken(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def write(self, text: str) -> int:
        raise OSError(self._number, os.strerror(self._number))

    def fileno(self) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize(("number", "code"), [(32, 0), (28, 1), (9, 1), (5, 1)])
def test_a_result_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> int:
        output.lines(["x"])
        return 0

    monkeypatch.setattr(sys, "stdout", Broken(number))
    assert guarded(act) == code
    said = capsys.readouterr().err
    assert ("output cannot be written" in said) == (code != 0)
    assert os.strerror(number) in said or code == 0


def test_what_was_done_is_done_though_nobody_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(28))
    monkeypatch.setattr(sys, "stderr", Broken(28))

    def act() -> int:
        output.say("dev is running")
        output.complain("Warning: x")
        return 0

    def fail() -> int:
        raise HostError("b", details="d", resolution="r")

    assert guarded(act) == 0
    assert guarded(fail) == 1


@pytest.mark.parametrize("arguments", ["list", "--version", "--help", "version --json", "show nosuch", "nosuch"])
def test_streams_that_are_closed_or_full(arguments: str, tmp_path: Path) -> None:
    """Never a trace, and an exit code that tells; no file of vmm's gets the number of a stream that was closed."""
    environment = {**os.environ, "VMM_DATA_DIR": str(tmp_path / "d")}
    wanted = subprocess.run(
        [sys.executable, "-m", "vmm", *arguments.split()], capture_output=True, check=False, env=environment
    ).returncode
    for redirection, lost in [
        ("<&-", False), ("2>&-", False), (">&-", True), (">&- 2>&- <&-", True), ("2>/dev/full", False),
        (">/dev/full", True), (">/dev/full 2>&1", True), ("| true; exit ${PIPESTATUS[0]}", False),
    ]:  # fmt: skip
        line = f"{sys.executable} -m vmm {arguments} {redirection}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=environment)
        said = done.stdout + done.stderr
        assert "Traceback" not in said, (line, said)
        assert "Exception ignored" not in said, (line, said)
        assert done.returncode == (wanted or int(lost)), (line, done)


def test_an_encoding_that_lacks_a_letter_is_no_failure(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "VMM_DATA_DIR": str(tmp_path / "é")}
    done = subprocess.run(
        [sys.executable, "-m", "vmm", "config", "show"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "\\xe9" in done.stdout
