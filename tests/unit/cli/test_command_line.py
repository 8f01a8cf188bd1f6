"""The parser and the short ways: what they take, what they import, and how they end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from budget import TELL_MODULES
from machines import a_machine, a_spec

from vmm.cli import render
from vmm.cli.commands.create import LIMITS, limits_of
from vmm.cli.commands.power import mode_of
from vmm.cli.main import _ELSEWHERE, COMMANDS, SECTIONS, cli, run
from vmm.cli.options import NONE, Command, Group, Limit, Rate, Size, global_options
from vmm.cli.reference import reference
from vmm.cli.short import run_short
from vmm.config import SUBNET
from vmm.model.machine import Limits, Owner
from vmm.operations.reconcile import Repair
from vmm.operations.start import Mode, Started, Wait
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
    """One that is hidden is for vmm and systemd to give, and for nobody to read of."""
    hidden: list[tuple[str, str]] = []
    for path, command in commands():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.hidden:
                hidden.append((path, str(parameter.name)))
            elif isinstance(parameter, click.Option):
                assert parameter.help or parameter.name == "protocol", (path, parameter.name)
    assert hidden == [
        ("vmm start", "owner"),
        ("vmm start", "error_file"),
        ("vmm stop", "owner"),
        ("vmm settle", "owner"),
    ]
    assert "--owner" not in reference().split("## Host")[0]


def test_the_reference_is_current() -> None:
    written = (TOP / "docs" / "reference" / "cli.md").read_text()
    assert written == reference(), "run: make docs"


@pytest.mark.parametrize("arguments", [["list"], ["ls"], ["list", "--output", "json"], ["ls", "--output", "name"]])
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
     ["start"], ["list", "-a"], ["start", "--all"], ["start", "a", "b"], ["start", "m", "--wait", "ssh"], ["stop", "m"], ["--help"],
     ["start", "--foreground"], ["supervise"], ["--data-dir", "/d", "--config", "supervise"],
     ["--data-dir", "/d", "--conf", "/c", "supervise"], ["--data-dir", "/d", "settle", "m"]],
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
     (["show", "../x"], 2), (["image"], 0), (["help"], 0), (["help", "nosuch"], 2), (["help", "image", "pull"], 0), (["image", "help"], 0),
     (["image", "help", "nosuch"], 2), (["image", "nosuch"], 2), (["db"], 0)],
)  # fmt: skip
def test_exit_codes(data: Path, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    said = capsys.readouterr()
    assert ("Error: " in said.err) == (code != 0)
    assert ("To mend it: " in said.err) == (code != 0)


def test_help_is_for_a_newcomer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    said = capsys.readouterr().out
    for words in ("vmm setup", "vmm run", "vmm list", "vmm help", "vmm doctor"):
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


# What a machine's engine may have


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("512K", 512 << 10), ("10M", 10 << 20), ("10m", 10 << 20), ("1G", 1 << 30), ("0", 0)],
)
def test_rates(text: str, value: int) -> None:
    assert Rate().convert(text, None, None) == value


@pytest.mark.parametrize("text", ["", "M", "10MM", "10KM", "-1", "1.5M", "1e6", "10T", "\u0661M", " 1"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a number of bytes"):
        Rate().convert(text, None, None)


def test_a_limit_is_of_its_type_or_none() -> None:
    assert Limit(float).convert("1.5", None, None) == 1.5
    assert Limit(Size()).convert("1G", None, None) == 1024
    assert Limit(Rate()).convert("1M", None, None) == 1 << 20
    for kind in (float, int, Size(), Rate()):
        assert Limit(kind).convert("none", None, None) == NONE
    with pytest.raises(click.BadParameter):
        Limit(int).convert("nothing", None, None)


def test_what_is_not_said_of_limits_is_left_and_none_takes_off() -> None:
    assert LIMITS.keys() == {option.name for option in limit_options()}
    assert set(LIMITS.values()) == Limits().__dict__.keys()
    said: dict[str, object] = dict.fromkeys(LIMITS)
    assert limits_of(said) == {}
    assert limits_of({**said, "cpu_limit": 1.5, "pids_limit": NONE}) == {"cpus": 1.5, "pids": None}


def limit_options() -> list[click.Parameter]:
    command = cli.get_command(click.Context(cli), "create")
    assert command is not None
    return [option for option in command.params if isinstance(option.type, Limit)]


def test_create_and_set_take_the_same_limits() -> None:
    kinds: dict[str, set[str | None]] = {}
    for name in ("create", "set", "run"):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        kinds[name] = {option.name for option in command.params if isinstance(option.type, Limit)}
    assert kinds["create"] == kinds["set"] == kinds["run"] == LIMITS.keys()


@pytest.mark.skipif(os.geteuid() != 0, reason="set is root's")
def test_limits_come_from_the_command_line_to_the_record(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["--cpu-limit", "1.5", "--memory-limit", "64M", "--io-read-bps", "10M", "--restart", "always", "--no-jail"]
    assert run(["-q", "set", "one", *made]) == 0
    assert run(["show", "one", "--output", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["limits"] == {"cpus": 1.5, "memory_mib": 64, "io_read_bps": 10 << 20}
    assert (facts["restart"], facts["jail"]) == ("always", False)
    assert run(["-q", "set", "one", "--cpu-limit", "none", "--jail"]) == 0
    assert run(["show", "one", "--output", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["limits"] == {"memory_mib": 64, "io_read_bps": 10 << 20}
    assert facts["jail"] is True
    assert run(["-q", "set", "one", "--cpu-limit", "0.01"]) == 2
    assert "--cpu-limit" in capsys.readouterr().err


# Events


def test_events_are_told_in_order_and_as_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["events"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in lines] == [["one", "created"], ["two", "created"]]
    assert run(["events", "two", "--output", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row.keys() == {"id", "at", "machine", "kind", "detail"}
    assert (row["machine"], row["kind"]) == ("two", "created")
    assert run(["events", "-n", "1"]) == 0
    assert capsys.readouterr().out.split()[1] == "two"


def test_events_of_what_was_deleted_are_told_and_of_what_never_was_not(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqliteStore(path=data / "state" / "vmm.db", locks=data / "state" / "locks")
    store.remove("one")
    assert run(["events", "one"]) == 0
    assert "created" in capsys.readouterr().out
    assert run(["events", "nosuch"]) == 1
    assert "no machine 'nosuch'" in capsys.readouterr().err
    assert run(["events", "../x"]) == 2


def test_foreground_is_for_one_machine() -> None:
    mode = mode_of(wait="running", timeout=None, overcommit=True, foreground=True)
    assert mode == Mode(owner=Owner.FOREGROUND, overcommit=True)
    assert mode_of(wait="none", timeout=2.0, overcommit=False) == Mode(wait=Wait.NONE, timeout_s=2.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="start is root's")
@pytest.mark.parametrize("names", [["one", "two"], ["--all"]])
def test_foreground_of_several_is_refused_before_anything_starts(
    data: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["start", "--foreground", *names]) == 2
    assert "for one machine" in capsys.readouterr().err
    store = SqliteStore(path=data / "state" / "vmm.db", locks=data / "state" / "locks")
    assert not store.any_live()


def test_warnings_are_beside_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    machine = a_machine("m")
    said = Started(machine=machine, already=False, seconds=0.1, warnings=("one.", "two."))
    render.warnings(said)
    render.warnings(Started(machine=machine, already=True, seconds=0.1))
    captured = capsys.readouterr()
    assert captured.err == "Warning: one.\nWarning: two.\n"
    assert captured.out == ""


def test_repairs_say_which_are_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    found = (
        Repair(subject="m", what="a tap of its own was left"),
        Repair(subject="n", what="its disk is gone", done=False),
    )
    render.repairs(found, "table")
    assert [line.split("  ")[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["m", "mended"],
        ["n", "NOT MENDED"],
    ]
    render.repairs(found, "json")
    assert [row["done"] for row in json.loads(capsys.readouterr().out)] == [True, False]


# Errors that no command answers


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("OSError(24, 'Too many open files')", "Error: vmm cannot be loaded.\n  [Errno 24] Too many open files\n"),
        ("MemoryError()", "Error: vmm cannot be loaded.\n  There is not enough memory.\n"),
        # A fault of vmm's own is told as what it is.
        ("FileNotFoundError(2, 'No such file or directory')", "Traceback (most recent call last):\n"),
    ],
)
def test_only_a_host_that_lacks_something_keeps_vmm_from_being_loaded(raised: str, said: str) -> None:
    script = (
        "import sys, vmm.cli.short\n"
        f"def fails(arguments): raise {raised}\n"
        "vmm.cli.short.run_short = fails\n"
        "from vmm.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(said)


@pytest.mark.parametrize("text", ["", ",", "state=running,,label=a"])
def test_an_empty_filter_is_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--filter", text]) == 2
    assert "'' is not a filter." in capsys.readouterr().err


def test_no_machine_that_matches_is_not_no_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMM_DATA_DIR", str(tmp_path))
    assert run(["list", "--filter", "state=running,"]) == 0
    assert capsys.readouterr().out.startswith("No machine matches. All of them: vmm ")


def test_ports_without_a_colon_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["port-forward", "dev", "8080"]) == 2
    assert "The ports are HOST:GUEST: vmm port-forward add NAME HOST:GUEST" in capsys.readouterr().err


def test_the_first_steps_end_in_a_command_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "vmm delete --force dev" in capsys.readouterr().out


def test_an_empty_name_is_no_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMM_DATA_DIR", str(tmp_path))
    if os.geteuid() != 0:
        pytest.skip("run is root's")
    assert run(["run", "", "--rm"]) == 2
    assert "'' cannot be the name of a machine." in capsys.readouterr().err


def test_what_other_tools_call_it_leads_to_a_command_there_is() -> None:
    for word, name in _ELSEWHERE.items():
        assert word not in COMMANDS, word
        assert COMMANDS[name][2], name
