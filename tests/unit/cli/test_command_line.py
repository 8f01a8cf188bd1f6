"""The parser and the short ways: what they take, what they import, and how they end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from budget import TELL_MODULES
from machines import a_spec

from vmm.cli.main import COMMANDS, SECTIONS, cli, run
from vmm.cli.options import Command, Group, global_options
from vmm.cli.reference import reference
from vmm.cli.short import run_short
from vmm.config import SUBNET
from vmm.storage.store import SqliteStore

TOP = Path(__file__).parents[3]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with two machines."""
    store = SqliteStore(path=tmp_path / "state" / "vmm.db", locks=tmp_path / "state" / "locks")
    for name in ("one", "two"):
        store.add(a_spec(name, labels={"n": name}), subnet=SUBNET, id=name * 8, created_at="2026-01-01T00:00:00Z")
    monkeypatch.setenv("VMM_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("VMM_CONFIG", raising=False)
    return tmp_path


def commands(group: click.Group = cli, path: str = "vmm") -> list[tuple[str, click.Command]]:
    context = click.Context(group)
    found: list[tuple[str, click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        found.append((f"{path} {name}", command))
        if isinstance(command, click.Group):
            found += commands(command, f"{path} {name}")
    return found


def test_the_table_of_commands_says_what_the_commands_say() -> None:
    for name, (_, text, section) in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
        assert str(command.help).splitlines()[0] == text
        assert section in (*SECTIONS, "")


def test_every_command_takes_the_global_options() -> None:
    wanted = {option.name for option in global_options()}
    for path, command in commands():
        assert isinstance(command, Command | Group), path
        assert wanted <= {parameter.name for parameter in command.params}, path
        assert command.help, path


def test_every_option_is_explained() -> None:
    for path, command in commands():
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help or parameter.name == "protocol", (
                path,
                parameter.name,
            )


def test_the_reference_is_current() -> None:
    written = (TOP / "docs" / "reference" / "cli.md").read_text()
    assert written == reference(), "run: make docs"


@pytest.mark.parametrize(
    "arguments", [["list"], ["ls"], ["list", "-a"], ["list", "--output", "json"], ["ls", "--output", "name"]]
)
def test_the_short_way_says_what_the_parser_says(
    data: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_short(arguments) == 0
    short = capsys.readouterr()
    assert run(arguments) == 0
    assert capsys.readouterr() == short
    assert "one" in short.out


@pytest.mark.parametrize(
    "arguments",
    [[], ["list", "--filter", "state=running"], ["-q", "list"], ["list", "--help"], ["list", "--output", "yaml"],
     ["start"], ["start", "--all"], ["start", "a", "b"], ["start", "m", "--wait", "ssh"], ["stop", "m"], ["--help"]],
)  # fmt: skip
def test_what_is_not_plain_goes_to_the_parser(arguments: list[str]) -> None:
    assert run_short(arguments) is None


def test_json_of_a_listing_has_the_keys_that_are_documented(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--output", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    documented = (TOP / "docs" / "reference" / "json.md").read_text()
    assert rows[0]["labels"] == {"n": "one"}
    for key in rows[0]:
        assert f"`{key}`" in documented, key
    # What users of the original know.
    for key in ["id", "name", "state", "cpus", "memory_mb", "disk_size_mb", "image", "kernel", "ip_address", "tap_device", "mac_address", "dns_servers", "pid", "auto_start", "created_at", "started_at", "port_forwards", "mounts"]:  # fmt: skip
        assert key in rows[0]


def test_filters_choose(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--filter", "label=n=two", "--output", "name"]) == 0
    assert capsys.readouterr().out == "two\n"
    assert run(["list", "--filter", "state=running", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 0), (["--help"], 0), (["list", "--help"], 0), (["nosuch"], 2), (["show", "nosuch"], 1), (["show"], 2),
     (["show", "../x"], 2), (["image"], 2)],
)  # fmt: skip
def test_exit_codes(data: Path, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    said = capsys.readouterr()
    assert ("Error: " in said.err) == (code != 0)
    assert ("To mend it: " in said.err) == (code != 0)


def test_help_is_for_a_newcomer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    said = capsys.readouterr().out
    for words in ("vmm setup", "vmm run", "vmm list", "vmm --help", "vmm doctor"):
        assert words in said
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(section in said for section in SECTIONS)
    assert "teardown" not in said


def imported(*arguments: str, data: Path) -> set[str]:
    """Return the modules that a vmm process has imported when it is done."""
    environment = {**os.environ, "VMM_DATA_DIR": str(data)}
    done = subprocess.run(
        [sys.executable, "-c", TELL_MODULES, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    return set(done.stderr.split())


def test_a_listing_imports_no_more_than_it_must(data: Path) -> None:
    modules = imported("list", data=data)
    assert "sqlite3" in modules
    for heavy in ("click", "rich", "typing", "subprocess", "logging", "tomllib", "tempfile", "shutil", "tarfile",
                  "urllib.request", "vmm.cli.main", "vmm.operations.start", "vmm.network.links", "vmm.images.library"):  # fmt: skip
        assert heavy not in modules, heavy


def test_completion_scripts_and_names(data: Path) -> None:
    vmm = [sys.executable, "-m", "vmm"]
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run([*vmm, "completion", shell], capture_output=True, text=True, check=True)
        assert "_VMM_COMPLETE" in done.stdout
    environment = {**os.environ, "_VMM_COMPLETE": "bash_complete", "COMP_WORDS": "vmm start t", "COMP_CWORD": "2"}
    script = "import sys; sys.argv = ['vmm']; from vmm.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "plain,two"
    broken = {**environment, "VMM_DATA_DIR": "/proc/nonexistent"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=broken, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_quiet_says_nothing_and_json_keeps_its_stream_clean(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        assert run(["-q", "config", "init"]) in (0, 1)
        return
    assert run(["-q", "config", "init"]) == 0
    assert capsys.readouterr() == ("", "")
    assert run(["config", "init", "--output", "json"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "was there already" in said.err
