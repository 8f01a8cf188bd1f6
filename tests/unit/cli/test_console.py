"""What `vmm console` shows: the last lines of two files that are one, in bounded memory, and nothing that drives."""

import random
import time
import tracemalloc
from pathlib import Path

import pytest

from vmm.cli.commands import console
from vmm.cli.commands.console import Screen


def shown(path: Path, lines: int | None, capsys: pytest.CaptureFixture[str], *, raw: bool = False) -> str:
    screen = Screen(raw=raw)
    console._show(screen, path, path.with_suffix(".1"), lines)
    screen.end()
    return capsys.readouterr().out


def test_the_last_lines_are_those_of_both_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_PIECE_BYTES", 7)
    dice = random.Random(1)
    path = tmp_path / "c"
    for _ in range(200):
        before, after = ("".join(dice.choice("ab\n\n") for _ in range(dice.randrange(30))) for _ in range(2))
        path.with_suffix(".1").write_text(before)
        path.write_text(after)
        lines = dice.choice([None, 0, 1, 2, 3, 5, 100])
        whole = (before + after).splitlines(keepends=True)
        first = 0 if lines is None else max(0, len(whole) - lines)
        assert shown(path, lines, capsys) == "".join(whole[first:]), (before, after, lines)


def test_a_letter_or_a_colour_in_two_pieces_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = "é\x1b[1;31mred\x1b[0m \x1b]0;x\x07 日\x9b"
    for size in range(1, 9):
        screen = Screen(raw=False)
        data = text.encode()
        for at in range(0, len(data), size):
            screen.write(data[at : at + size])
        screen.end()
        assert capsys.readouterr().out == "éred \\x1b]0;x\\x07 日\\x9b"
    screen = Screen(raw=False)
    screen.write(b"x\x1b[3")
    assert capsys.readouterr().out == "x"
    screen.end()
    assert capsys.readouterr().out == "\\x1b[3"


@pytest.mark.fault(49)
def test_a_console_of_zeros_costs_neither_memory_nor_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    path.write_bytes(bytes(4 << 20))
    written: list[int] = []
    monkeypatch.setattr(console.output, "raw", lambda text: written.append(len(text)))
    began = time.process_time()
    shown(path, None, capsys)
    assert sum(written) == 16 << 20
    assert time.process_time() - began < 2.0
    tracemalloc.start()
    try:
        path.write_bytes(bytes(1 << 20))
        shown(path, None, capsys)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
