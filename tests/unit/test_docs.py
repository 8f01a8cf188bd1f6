"""What the documentation promises is so: what it names is there, and its tables are what the code has."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from machines import a_machine

from vmm import config
from vmm.app.database import Restored
from vmm.app.doctor import engine_versions
from vmm.cli import render
from vmm.cli.commands import db
from vmm.cli.main import cli
from vmm.cli.options import Settings
from vmm.config import Config, Paths
from vmm.engines.firecracker import jail, releases
from vmm.engines.qemu import engine as qemu
from vmm.errors import ExitCode, VmmError
from vmm.host import process, systemd
from vmm.model import hearing, limits, network, sizes
from vmm.model.event import THE_HOST, Event, EventKind
from vmm.model.image import Image, Kernel
from vmm.model.machine import (
    EngineName,
    Limits,
    MachineState,
    MachineView,
    Owner,
    RestartPolicy,
    Stray,
    UnreadableRecord,
)
from vmm.model.network import PortForward, Protocol
from vmm.model.readiness import Check, CheckStatus, SetupStep
from vmm.network import dns, managers, tables
from vmm.operations.reconcile import Repair
from vmm.operations.stop import STOP_TIMEOUT_S
from vmm.storage import backup, events, machine_files, reserve
from vmm.storage.rebuild import Left

TOP = Path(__file__).parents[2]
SOURCE = TOP / "src" / "vmm"
# As the pages name a test: by its path below tests/.
NAMED = re.compile(r"\b((?:unit|system)/[\w/]+\.py)::(\w+)")
PAGES = [*sorted((TOP / "docs").rglob("*.md")), TOP / "README.md", TOP / "CONTRIBUTING.md"]
SECURITY, DESIGN = "docs/explanation/security.md", "docs/explanation/design.md"
CONFIGURATION, JSON, CLI = (f"docs/reference/{name}.md" for name in ("configuration", "json", "cli"))
SUPERVISE, RECOVER = "docs/how-to/supervise.md", "docs/how-to/recover.md"


def page(name: str) -> str:
    return (TOP / name).read_text(encoding="utf-8")


def in_one_line(name: str) -> str:
    return " ".join(page(name).split())


def section(name: str, heading: str) -> str:
    """Return what stands below a heading that begins so."""
    (found,) = re.findall(rf"^##+ {re.escape(heading)}.*?\n(.*?)(?=^## |\Z)", page(name), re.MULTILINE | re.DOTALL)
    return found


def rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the tables in a text, their heads left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if not re.match(r"\|[-:| ]+\|$", line)
    ]


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(TOP)))
def test_named_tests_and_links_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for where, name in NAMED.findall(text):
        source = (TOP / "tests" / where).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE), f"{path}: {where} has no {name}"
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path} leads to {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(TOP)))
def test_headings_that_are_led_to_exist(path: Path) -> None:
    """As GitHub makes an anchor of a heading."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        there = (path.parent / target) if target else path
        headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


# What security.md promises


PROMISES = ["The network", "Firecracker in its jail", "Limits", "Files and secrets", "What comes from outside"]


@pytest.mark.parametrize("heading", PROMISES)
def test_each_promise_of_the_security_page_names_a_test(heading: str) -> None:
    # An item ends where the next begins, or with the paragraph.
    items = [item.partition("\n\n")[0] for item in section(SECURITY, heading).split("\n- ")[1:]]
    assert items
    assert [item for item in items if not NAMED.search(item)] == []


def test_each_row_of_what_is_not_lost_names_a_test() -> None:
    found = rows(section(SECURITY, "Nothing lost"))[1:]
    assert len(found) > 10
    assert [row for row in found if not NAMED.search(row[2]) and row[2] != "the same test"] == []


def test_the_closed_metadata_services_are_those_of_the_rules() -> None:
    named = [row[0] for row in rows(section(SECURITY, "The network")) if row[0][0].isdigit()]
    assert named == list(tables.METADATA)


def test_the_holes_are_those_that_are_looked_for() -> None:
    named = {row[0]: row[1] for row in rows(section(SECURITY, "What comes from outside"))[1:]}
    assert set(named) == {hole.name for hole in releases.HOLES}
    for hole in releases.HOLES:
        for _, last in hole.releases:
            assert ".".join(map(str, last)) in named[hole.name]


def test_the_options_of_limits_are_those_there_are() -> None:
    known = {"--cpu-limit", "--memory-limit", "--pids-limit"}
    known |= {f"--{name.replace('_', '-')}" for name in Limits.__annotations__ if name.startswith("io_")}
    named = {word.split()[0] for row in rows(section(SECURITY, "Limits"))[1:] for word in quoted(row[0])}
    assert named == known


def test_the_sandbox_of_qemu_is_what_the_page_says() -> None:
    on, *denied = qemu._SANDBOX.split(",")  # pyright: ignore[reportPrivateUsage]
    assert on == "on"
    said = re.search(r"The filter is `-sandbox on` with (.*?) denied\. (.*?) is left", in_one_line(SECURITY))
    assert said is not None
    assert {f"{name}=deny" for name in quoted(said[1])} == set(denied)
    assert quoted(said[2]) == {"elevateprivileges=deny"}


# Numbers


MIB = 1024 * 1024
WORDS = {1: "one", 2: "two", 10: "ten"}
NUMBERS = [
    (SECURITY, f"`max_connections` ({config.CONNECTIONS:,})"),
    (SECURITY, f"It may have {jail._NO_FILE:,} files open"),  # pyright: ignore[reportPrivateUsage]
    (SECURITY, f"at {machine_files.CONSOLE_BYTES // MIB} MiB the console is turned over and one older part is kept"),
    (SECURITY, f"{2 * machine_files.CONSOLE_BYTES // MIB} MiB in all; an engine's log has {machine_files.LOG_BYTES // MIB} MiB"),
    (SECURITY, f"keeps {events.MOST_EVENTS:,} events, and of copies of itself {WORDS[backup.MOST]} of each kind"),
    (SECURITY, f"the guest is asked and has {systemd.UNIT_STOP_S:g} seconds"),
    (CONFIGURATION, f"({2 * machine_files.CONSOLE_BYTES // MIB} MiB in all)".strip("()")),
    (CONFIGURATION, f"reserve ({reserve._BYTES // 1024} KiB"),  # pyright: ignore[reportPrivateUsage]
    (CONFIGURATION, f"the schema N was changed); {WORDS[backup.MOST]} of each"),
    (CONFIGURATION, f"else {' and '.join(dns.FALLBACK)}"),
    (DESIGN, f"gives no sign for {WORDS[hearing.SILENT_S // 60]} minutes"),
    (DESIGN, "reboots again within a minute" if limits.NOWHERE_S == 60 else "?"),
    (SUPERVISE, f"no answer for {WORDS[hearing.SILENT_S // 60]} minutes"),
    (SUPERVISE, "comes after a second" if limits.restart_delay_s(0) == 1 else "?"),
    (SUPERVISE, "after twice as long" if limits.restart_delay_s(3) == 2 * limits.restart_delay_s(2) else "?"),
    (SUPERVISE, "up to a minute" if limits.restart_delay_s(limits.RESTARTS_MOST) == 60 else "?"),
    (SUPERVISE, f"after {WORDS[limits.RESTARTS_MOST]} vmm gives up"),
    (SUPERVISE, f"One that ran for {WORDS[limits.HEALTHY_S // 60]} minutes is counted anew"),
    (SUPERVISE, "again within a minute of its start" if limits.NOWHERE_S == 60 else "?"),
    (SUPERVISE, f"`--stop-timeout` ({STOP_TIMEOUT_S:g} seconds unless given)"),
    (SUPERVISE, f"gives the guest {systemd.UNIT_STOP_S:g} seconds"),
    (RECOVER, f"the newest {WORDS[backup.MOST]} stay"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), NUMBERS)
def test_numbers_are_those_of_the_code(name: str, words: str) -> None:
    assert words in in_one_line(name)


def test_the_bounds_of_stage_1_are_those_of_its_script() -> None:
    script = page("src/vmm/guest/stage1-facts.sh")
    assert "limit=15\n" in script
    assert "ends a step that takes longer than 15 s" in in_one_line(DESIGN)
    assert f"most_bytes={MIB}\n" in script
    assert "plain files of a megabyte at most" in in_one_line(DESIGN)


def test_the_unit_of_vmm_gives_the_guests_what_the_page_says() -> None:
    unit = systemd.unit_text(executable=Path("/v"), data_dir=Path("/d"))
    assert "--timeout 60\n" in unit
    assert "`vmm.service` asks every guest to shut down and gives them 60 seconds" in in_one_line(SUPERVISE)


# The configuration, the environment, and where things lie


def test_the_table_of_keys_is_what_the_file_may_have() -> None:
    table = rows(page(CONFIGURATION).partition("\n## ")[0])[1:]
    shown = config.values_of(Config(paths=Paths(data_dir=config.DATA_DIR), file=Path("/f")))
    named: list[str] = []
    for keys, built_in, _ in table:
        in_row = re.findall(r"`([^`]+)`", keys)
        named += in_row
        values = [shown[key] for key in in_row]
        # A word such as "none" stands for what is empty.
        told = [part.strip(" `") for part in (built_in.split(",") if len(in_row) > 1 else [built_in])]
        for key, value in zip(in_row, values, strict=True):
            assert not value or str(value) in told, (key, value, built_in)
    assert set(named) == set(config.KEYS)
    assert len(named) == len(config.KEYS)


def test_the_bounds_of_keys_are_those_that_are_checked() -> None:
    meaning = {key: row[2] for row in rows(page(CONFIGURATION)) if len(row) == 3 for key in quoted(row[0])}
    for key, (low, high) in {"cpus": sizes.CPUS, "memory_mb": sizes.MEMORY_MIB, "disk_size_mb": sizes.DISK_MIB}.items():
        assert f"{low} to {high}" in meaning[f"vm_defaults.{key}"]
    low, high = network._PREFIXES  # pyright: ignore[reportPrivateUsage]
    assert f"From a /{low} to a /{high}" in meaning["subnet"]
    for special in network._NO_SUBNETS:  # pyright: ignore[reportPrivateUsage]
        assert special in meaning["subnet"]
    assert quoted(meaning["vm_defaults.engine"]) == set(config.ENGINES)


def test_every_variable_that_is_read_is_named() -> None:
    """And those that programs which vmm starts are given."""
    read: set[str] = set()
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        read |= set(re.findall(r'environ(?:ment)?(?:\.get\(|\[)"(\w+)"', text))
        read |= set(re.findall(r'"(\w+)" (?:not )?in os\.environ', text))
    assert {"VMM_DATA_DIR", "VMM_CONFIG", "NO_COLOR"} <= read
    told = quoted(section(CONFIGURATION, "The environment"))
    assert read | process._PROXIES | {"PIP_*"} <= told  # pyright: ignore[reportPrivateUsage]
    table = {word for row in rows(section(CONFIGURATION, "The environment"))[1:] for word in quoted(row[0])}
    assert table <= read | process._PROXIES | {"PIP_*"}  # pyright: ignore[reportPrivateUsage]


def test_every_place_is_where_the_tree_says() -> None:
    tree = section(CONFIGURATION, "Where things lie")
    named = re.findall(r"^  ([\w./-]+)", tree, re.MULTILINE)
    found = Paths(data_dir=Path("/d"))
    places = {name: getattr(found, name) for name, value in vars(Paths).items() if isinstance(value, property)}
    below = {name: str(path.relative_to("/d")) for name, path in places.items()}
    for where in [where for where in below.values() if not where.startswith("state/")]:
        assert any(place.startswith(where) for place in named), where
    for path in below.values():
        assert path.removeprefix("state/") in tree
    # Nor is anything in the tree that vmm has no name for.
    assert {place.partition("/")[0] for place in named} == {path.partition("/")[0] for path in below.values()}
    for path in (managers._NETWORKD, managers._NETWORKMANAGER):  # pyright: ignore[reportPrivateUsage]
        assert f"`{path}`" in tree


# The command line


def test_the_exit_codes_are_those_there_are() -> None:
    said = in_one_line(CLI).partition("Exit codes: ")[2]
    assert [int(number) for number in re.findall(r"\b\d+\b", said.partition(";")[0])] == sorted(ExitCode)


def commands_in(text: str) -> list[str]:
    """Return what a page tells one to type, and what it names in a line: from `vmm` to where the shell takes over."""
    in_blocks = "\n".join(re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    typed = re.findall(
        r"(?:^|(?:sudo|do|exec|&&|\|) |=/usr/local/bin/)(vmm .*)$", in_blocks.replace("$ ", ""), re.MULTILINE
    )
    named = re.findall(r"`(?:sudo )?(vmm [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [one for line in (*typed, *named) for one in re.split(r" && (?:sudo )?(?=vmm )", line)]


def words_of(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word[0] in "|<>;&":
            break
        words.append(word)
    return words[1:]


def parse(words: list[str]) -> None:
    """Parse a command line, and run nothing."""
    context = cli.make_context("vmm", list(words))
    command: click.Command = cli
    rest = [*context._protected_args, *context.args]  # pyright: ignore[reportPrivateUsage]
    while isinstance(command, click.Group) and rest:
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        context = found.make_context(name, rest, parent=context)
        command, rest = found, [*context._protected_args, *context.args]  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "cli.md"], ids=lambda path: path.name)
def test_what_one_is_told_to_type_can_be_typed(path: Path) -> None:
    wrong: list[tuple[str, str]] = []
    for line in commands_in(path.read_text(encoding="utf-8")):
        words = words_of(line.replace(" ...", ""))
        try:
            parse(words)
        except (click.MissingParameter, click.exceptions.Exit):
            # What a line leaves to its reader; help.
            continue
        except (click.UsageError, VmmError) as error:
            wrong.append((line, str(error)))
    assert wrong == []


# JSON


MACHINE = render.machine_facts(MachineView(machine=a_machine("m")))
KEY = re.compile(r"^[a-z][a-z0-9_]*$")


def keys_of(heading: str) -> set[str]:
    """Return what a section of json.md names in the form of a key: keys, and values of theirs."""
    return {word for word in quoted(section(JSON, heading)) if KEY.match(word)}


def test_a_machine_has_the_keys_of_the_table_and_each_value_is_named() -> None:
    text = section(JSON, "Machines")
    table = rows(text)[1:]
    assert {key for row in table for key in quoted(row[0])} == set(MACHINE)
    said = {key: quoted(row[1]) for row in table for key in quoted(row[0])}
    assert said["state"] == {*MachineState, "unreadable", "unrecorded", "list --all"}
    assert said["engine"] == {*EngineName}
    assert said["restart"] == {*RestartPolicy}
    assert said["owner"] == {*Owner}
    assert said["limits"] == set(Limits.__annotations__)
    assert set(render.machine_facts(UnreadableRecord(name="m", problem="p"))) == {"name", "state", "reason"}
    assert set(render.machine_facts(Stray(name="m", id="i", pid=1))) == {"name", "state", "reason", "id", "pid"}


def test_events_have_the_keys_and_kinds_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    table = rows(section(JSON, "Events"))[1:]
    event = Event(id=1, at="t", machine="m", kind=EventKind.FAILED, detail="d")
    render.events([event], "json", stream=False)
    assert [next(iter(quoted(row[0]))) for row in table] == list(json.loads(capsys.readouterr().out)[0])
    said = {next(iter(quoted(row[0]))): quoted(row[1]) for row in table}
    assert said["kind"] == {*EventKind}
    assert said["machine"] == {THE_HOST}


A_PATH = Path("/p")
AN_IMAGE = Image(name="i", path=A_PATH, size_mib=1, sha256="0", source="s", created_at="t")
A_KERNEL = Kernel(name="k", path=A_PATH, stage1=None, version="6", sha256="0", source="s", created_at="t")
A_FORWARD = PortForward(machine="m", protocol=Protocol.TCP, host_port=1, guest_port=2)
LISTINGS = [
    ("Forwards", lambda: render.forwards([A_FORWARD], "json"), {*Protocol}),
    ("Images", lambda: render.images([AN_IMAGE], ["d"], "json"), set[str]()),
    ("Kernels", lambda: render.kernels([A_KERNEL], ["d"], "json"), set[str]()),
    ("Repairs", lambda: render.repairs([Repair(subject="s", what="w")], "json"), {"network", "host"}),
    ("Checks", lambda: render.checks([Check(name="n", status=CheckStatus.OK, detail="d")], "json"), {*CheckStatus}),
    ("Steps", lambda: render.setup_steps([SetupStep(name="n", outcome="done", detail="d")], "json"), {"done", "present", "skipped"}),
]  # fmt: skip


@pytest.mark.parametrize(("heading", "show", "values"), LISTINGS)
def test_listings_have_the_keys_that_are_named(heading, show, values, capsys: pytest.CaptureFixture[str]) -> None:
    show()
    printed = {key for row in json.loads(capsys.readouterr().out) for key in row} - {"damaged"}
    assert keys_of(heading) == printed | values
    assert ("`damaged: true`" in section(JSON, heading)) == (heading in ("Images", "Kernels"))


def test_what_was_restored_has_the_keys_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    done = Restored(source="/c", kept=None, machines=1, running=("m",), left=(Left(name="n", why="w"),), network=None)
    with click.Context(cli) as context:
        context.obj = Settings(output="json")
        db._tell(done)  # pyright: ignore[reportPrivateUsage]
    printed = json.loads(capsys.readouterr().out)
    assert keys_of("The database put back") == set(printed) | set(printed["left"][0]) | {"vms"}


def test_versions_have_the_keys_that_are_named() -> None:
    nowhere: Any = SimpleNamespace(
        firecracker=Path("/nosuch"), config=SimpleNamespace(qemu="/nosuch", paths=SimpleNamespace(data_dir=Path("/")))
    )
    assert keys_of("Versions") == {"version", *engine_versions(nowhere)}


def test_the_configuration_is_shown_under_its_keys() -> None:
    assert set(config.values_of(Config(paths=Paths(data_dir=Path("/d")), file=Path("/f")))) == set(config.KEYS)


@pytest.mark.parametrize("output", ["table", "json"])
def test_what_can_be_pulled_is_listed_for_programs_too(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    render.texts(["default", "debian-12"], output)
    said = capsys.readouterr().out
    assert (json.loads(said) if output == "json" else said.splitlines()) == ["default", "debian-12"]


def test_no_name_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    render.machines([], "name")
    render.images([], [], "name")
    assert capsys.readouterr().out == ""


# What the pages show


def errors_in(text: str) -> list[str]:
    return re.findall(r"^Error: (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "path", [path for path in PAGES if errors_in(path.read_text(encoding="utf-8"))], ids=lambda path: path.name
)
def test_errors_that_are_shown_are_those_of_the_code(path: Path) -> None:
    code = "".join(source.read_text(encoding="utf-8") for source in sorted(SOURCE.rglob("*.py")))
    for brief in errors_in(path.read_text(encoding="utf-8")):
        # Up to the name of a machine, which the code has as a field.
        assert brief.partition(" '")[0] in code, brief


def test_the_listing_of_the_readme_is_the_real_one(capsys: pytest.CaptureFixture[str]) -> None:
    dev = a_machine("dev", state=MachineState.RUNNING, engine=EngineName.FIRECRACKER)
    render.machines([MachineView(machine=dev)], "table")
    assert capsys.readouterr().out in page("README.md")


def test_scripts_take_the_options_that_are_named() -> None:
    named = {
        (script, option)
        for path in PAGES
        for line in path.read_text(encoding="utf-8").splitlines()
        for script in re.findall(r"scripts/(\w+)", line)
        for option in re.findall(r"`(--[\w-]+)`", line)
        if "vmm " not in line
    }
    assert ("uninstall", "--purge") in named
    for script, option in named:
        assert option in page(f"scripts/{script}"), (script, option)
