"""Hints lead on: every command that an error, a check or a page names is one that this vmm takes."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vmm.cli import hints
from vmm.cli.main import ALIASES, COMMANDS, cli, run

TOP = Path(__file__).parents[3]
# A command in prose ends where the sentence goes on.
IN_PROSE = re.compile(r"(?<![\w./'-])(?:sudo )?vmm (?P<words>[a-z][^;,()`\n]*)")
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").rglob("*.md")), TOP / "scripts" / "install"]


def known() -> set[str]:
    return {*COMMANDS, *ALIASES}


def parse(words: list[str]) -> None:
    """Let the real parser read a command, as far as it goes without doing it; UsageError where it would refuse."""
    command: click.Command = cli
    context = click.Context(cli, info_name="vmm")
    while isinstance(command, click.Group):
        if not words:
            return
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(context.info_name, words, parent=context.parent)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Give every text of a module that is no docstring; what is filled in is `8`, which may be a name or a number."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "8" for part in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError:  # a quote of the sentence's own
        return words.split()


def commands_in(text: str) -> Iterator[list[str]]:
    for found in IN_PROSE.finditer(text):
        words = found["words"]
        verb = words.split()[0]
        if verb not in known() and not found[0].startswith("sudo "):
            continue  # "vmm goes on"
        # Where the command is over and the sentence is not.
        words = re.split(
            r":? {2}|: | (?:then|first|again|and|or|does|says|shows|lists|makes|checks|keeps|finds|for) ", f"{words} "
        )[0]
        words = words.strip().rstrip(".:").removesuffix(" ...")
        yield [re.sub(r"^[A-Z_]{2,}$", "8", word) for word in _split(words.rstrip("'"))]


def in_source() -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for path in sorted((TOP / "src").rglob("*.py")):
        if path.name == "reference.py":
            continue  # a page, which speaks of commands as such
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if id(node) in docs and isinstance(node, ast.Constant):
                node.value = ""
        for line, text in strings(tree):
            # `vmm ssh`, in backticks and alone, is spoken of and not advised.
            text = re.sub(r"`vmm [a-z-]+`", "", text)  # noqa: PLW2901
            found += [(f"{path.relative_to(TOP)}:{line}", words) for words in commands_in(text)]
    return found


def in_pages() -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for page in PAGES:
        if page.name == "cli.md":
            continue  # made of the parser itself
        fenced = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("```"):
                fenced = not fenced
                continue
            spans = [line] if fenced else re.findall(r"`([^`]+)`", line)
            for span in spans:
                plain = span.removeprefix("$ ")
                for part in re.split(r"\s(?:\||&&|;)\s", plain):
                    match = re.match(r"(?:sudo )?vmm (.+)", part.partition(" #")[0].strip())
                    bare = match is not None and re.fullmatch(r"[a-z-]+(?: [a-z-]+)?", match[1])
                    # A page may speak of a command as such.
                    if match and match[1].split()[0] in known() and (fenced or not bare):
                        words = [re.sub(r"^[A-Z_]{2,}$", "8", word) for word in _split(match[1])]
                        found.append((f"{page.relative_to(TOP)}:{number}", [w for w in words if w not in ("...", "|")]))
    return found


def test_there_are_as_many_as_there_should_be() -> None:
    assert len(in_source()) > 60
    assert len(in_pages()) > 40


@pytest.mark.parametrize(
    ("where", "words"),
    in_source() + in_pages(),
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:40],
)
def test_every_command_in_a_hint_parses(where: str, words: list[str]) -> None:
    try:
        parse(words)
    except click.UsageError as error:
        pytest.fail(f"{where}: vmm {' '.join(words)}: {error.format_message()}")


# As they are shown


def test_every_command_is_known_to_hints() -> None:
    assert {*hints.ROOTS, *hints.OTHERS} == known(), "say in vmm.cli.hints whether it needs root"
    for name, below in hints.ROOTS.items():
        if below is not None:
            group = cli.get_command(click.Context(cli), name)
            assert isinstance(group, click.Group)
            assert below <= set(group.commands)


@pytest.mark.parametrize(
    ("text", "user", "root"),
    [
        ("vmm delete m", "sudo vmm delete m", "vmm delete m"),
        (
            "See: vmm list; then: sudo vmm stop m",
            "See: vmm list; then: sudo vmm stop m",
            "See: vmm list; then: vmm stop m",
        ),
        ("vmm db check or vmm db restore", "vmm db check or sudo vmm db restore", "vmm db check or vmm db restore"),
        ("vmm image list, vmm image pull", "vmm image list, sudo vmm image pull", "vmm image list, vmm image pull"),
        ("run vmm as root", "run vmm as root", "run vmm as root"),
        ("sudo apt-get install x", "sudo apt-get install x", "apt-get install x"),
        ("/usr/bin/vmm delete m", "/usr/bin/vmm delete m", "/usr/bin/vmm delete m"),
    ],
)
def test_sudo_is_there_where_it_is_needed_and_only_there(text: str, user: str, root: str) -> None:
    assert hints.fit(text, root=False) == user
    assert hints.fit(text, root=True) == root


@pytest.mark.parametrize(
    ("user", "by_sudo", "shown"),
    [(0, None, "vmm stop m"), (0, "0", "vmm stop m"), (0, "1000", "sudo vmm stop m"), (1000, None, "sudo vmm stop m")],
)
def test_who_typed_sudo_is_told_to_type_it_again(
    monkeypatch: pytest.MonkeyPatch, user: int, by_sudo: str | None, shown: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.delenv("SUDO_UID", raising=False)
    if by_sudo is not None:
        monkeypatch.setenv("SUDO_UID", by_sudo)
    assert hints.fit("vmm stop m") == shown


def test_the_data_directory_that_was_given_is_in_the_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "_given", {})
    assert run(["--data-dir", str(tmp_path / "a b"), "show", "nosuch"]) == 1
    assert f"vmm --data-dir '{tmp_path}/a b' list" in capsys.readouterr().err
    monkeypatch.setattr(hints, "_given", {})
    monkeypatch.setenv("VMM_DATA_DIR", "/elsewhere")
    assert hints.fit("vmm start m", root=False) == "sudo vmm --data-dir /elsewhere start m"
    assert hints.fit("vmm start m", root=True) == "vmm start m"
