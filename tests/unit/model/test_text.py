"""Text of others' that is shown."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.model.text import LINES, harmless


@pytest.mark.fault(49)
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("é 日本 ß", "é 日本 ß"),
        ("\n\x1b]0;PWNED\x07Kernel panic - x", "\\n\\x1b]0;PWNED\\x07Kernel panic - x"),
        ("\x00\x7f\x80\x9b31m\x9d", "\\x00\\x7f\\x80\\x9b31m\\x9d"),
        ("user\u202egpj.exe\u2066\u200f", "user\\u202egpj.exe\\u2066\\u200f"),
        ("a\u2028b\u2029c\u0085d", "a\\u2028b\\u2029c\\x85d"),
        ("name\udcff\udc80", "name\\xff\\x80"),
        ("\ud800", "\\ud800"),
        ("\U000e0041\ufeff\u200b", "\\U000e0041\\ufeff\\u200b"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
    ],
)
def test_what_drives_a_terminal_is_written_as_an_escape(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_lines_stay_where_there_may_be_several() -> None:
    assert harmless("a\nb\tc\x1b[m", keep=LINES) == "a\nb\tc\\x1b[m"
    assert harmless("x" * 100, most=10) == f"{'x' * 10} ..."


@pytest.mark.fault(49)
@given(st.text(alphabet=st.characters()) | st.binary().map(lambda data: data.decode(errors="surrogateescape")))
@settings(max_examples=500)
def test_nothing_unprintable_is_left_and_twice_is_once(text: str) -> None:
    shown = harmless(text)
    assert not [letter for letter in shown if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]
    assert harmless(shown) == shown
    shown.encode()
