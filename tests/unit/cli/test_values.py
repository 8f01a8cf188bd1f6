"""One validator a kind: every number, path, name and subnet that a command line or a configuration can hold."""

import functools
from pathlib import Path

import click
import pytest

from vmm import config
from vmm.cli.main import cli, run
from vmm.cli.options import Decimal, FilePath, Limit, Seconds, Whole
from vmm.errors import ConfigError
from vmm.host.reading import read_bytes
from vmm.model.network import checked_subnet

load = functools.partial(config.load, read=read_bytes)


def parameters(group: click.Group = cli, path: str = "vmm") -> list[tuple[str, click.Parameter]]:
    found: list[tuple[str, click.Parameter]] = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        found += [(f"{path} {name} {parameter.name}", parameter) for parameter in command.params]
        if isinstance(command, click.Group):
            found += parameters(command, f"{path} {name}")
    return found


def test_no_parameter_has_a_number_or_a_path_of_click_s_own() -> None:
    """They take `1_0`, digits of other scripts, and an empty text for the directory that one stands in."""
    loose = (click.types.IntParamType, click.types.FloatParamType, click.Path, click.File)
    for name, parameter in parameters():
        kind = parameter.type._kind if isinstance(parameter.type, Limit) else parameter.type
        assert not isinstance(kind, loose), name


STRANGE = [
    "",
    " ",
    "٣",
    "\uff13",
    "1_0",
    " 1",
    "1 ",
    "+1",
    "-1",
    "0x10",
    "1e3",
    "1.",
    ".5",
    "nan",
    "inf",
    "1\n",
    "1\0",
    "²",
]


@pytest.mark.parametrize("text", STRANGE)
@pytest.mark.parametrize("kind", [Whole(), Decimal(), Seconds()], ids=lambda kind: type(kind).__name__)
def test_numbers_are_plain_digits(kind: click.ParamType, text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a"):
        kind.convert(text, None, None)


def test_numbers_that_are_some() -> None:
    assert Whole().convert("0", None, None) == 0
    assert Whole(least=1, most=5).convert("5", None, None) == 5
    for text in ("0", "6", "9" * 30):
        with pytest.raises(click.BadParameter, match="from 1 to 5"):
            Whole(least=1, most=5).convert(text, None, None)
    assert Decimal().convert("1.5", None, None) == 1.5
    assert Seconds().convert("0.25", None, None) == 0.25


def test_paths_that_are_none() -> None:
    assert FilePath().convert("a b\n", None, None) == Path("a b\n")
    for text in ("", "a\0b"):
        with pytest.raises(click.BadParameter, match="no path"):
            FilePath().convert(text, None, None)
    with pytest.raises(click.BadParameter, match="no path"):
        FilePath(plain=True).convert("a\nb", None, None)


def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.BadParameter, match="there is no such user"):
        FilePath().convert("~nosuch/k", None, None)
    for text in (f"/tmp/{'x' * 300}", "x/" * 3000):
        with pytest.raises(click.BadParameter, match="longer than a path or a name may be"):
            FilePath().convert(text, None, None)
    monkeypatch.setenv("HOME", "/h")
    assert FilePath().convert("~/k", None, None) == Path("/h/k")
    monkeypatch.chdir(tmp_path)
    assert FilePath(plain=True).convert("d", None, None) == tmp_path / "d"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(click.BadParameter, match="the directory that this shell stands in was removed"):
        FilePath(plain=True).convert("d", None, None)


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    "arguments",
    [["create", "m", "--cpus", "٣"], ["create", "m", "--cpus", "1_0"], ["create", "m", "--pids-limit", "٣٣"],
     ["create", "m", "--cpu-limit", "\u0661.\u0665"], ["create", "m", "--memory", "\u0665\u0661\u0662"], ["create", "m", "--io-read-bps", "٣M"],
     ["set", "m", "--cpus", "²"], ["stop", "m", "--timeout", "٣"], ["events", "-n", "٣"], ["console", "m", "-n", "٣"],
     ["create", "m", "--ssh-key", ""], ["create", "m", "--ssh-key", "a\0b"], ["create", "m", "--user-data", ""],
     ["image", "import", "", "--name", "x"], ["kernel", "import", "", "--name", "x"], ["--data-dir", "", "list"],
     ["kernel", "import", "x", "--modules", "", "--name", "x"], ["--config", "", "list"], ["--data-dir", "a\nb", "list"],
     ["setup", "--firecracker", ""], ["db", "restore", "--from", ""], ["create", "m", "--cpus", ""]],
    ids=str,
)  # fmt: skip
def test_every_command_refuses_them(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert "Error: " in said
    assert "To mend it: " in said


# Subnets


@pytest.mark.parametrize(
    "cidr",
    ["0.0.0.0/0", "0.0.0.0/8", "0.0.0.0/16", "127.0.0.0/8", "127.7.0.0/16", "126.0.0.0/7", "224.0.0.0/24", "239.1.0.0/16",
     "169.254.0.0/16", "169.254.9.0/24", "168.0.0.0/6", "240.0.0.0/4", "255.255.255.0/24", "255.255.255.252/30",
     "192.0.0.0/24", "128.0.0.0/1", "10.0.0.0/7", "10.0.0.0/31", "10.0.0.0/32", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/24",
     "10.0.0.0/-1", "10.0.0.0/٨", "10.0.0/24", "", " ", "fd00::/64", "10.0.0.0/24\n", "10.0.0.0/ 24", "10.00.0.0/24"],
)  # fmt: skip
def test_subnets_of_no_hosts_are_refused(cidr: str) -> None:
    with pytest.raises(ConfigError, match="subnet") as caught:
        checked_subnet(cidr)
    assert "vmm config set subnet" in caught.value.resolution


@pytest.mark.parametrize(
    ("cidr", "gateway"),
    [("10.0.0.0/8", "10.0.0.1"), ("172.16.0.0/12", "172.16.0.1"), ("192.168.7.0/30", "192.168.7.1"),
     ("100.64.0.0/10", "100.64.0.1"), ("198.18.0.0/15", "198.18.0.1"), ("192.0.2.0/24", "192.0.2.1")],
)  # fmt: skip
def test_subnets_of_hosts_are_taken_and_the_gateway_is_the_first_of_them(cidr: str, gateway: str) -> None:
    assert checked_subnet(cidr).gateway == gateway
    assert checked_subnet(cidr).cidr == cidr


# The configuration


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    "text",
    ['subnet = "127.0.0.0/8"', 'bridge_name = ""', 'bridge_name = "a b"', 'bridge_name = "-x"', 'bridge_name = "x/y"',
     'bridge_name = "sixteen-letters-"', 'host_interface = "eth0;drop"', 'host_interface = "eth0\\u0000"',
     'uid_range = "٣٠٠٠-٤٠٠٠"', 'uid_range = "5-7"', 'uid_range = "4000-3000"', 'uid_range = "1000"', 'socket_group = "a:b"',
     'data_dir = ""', 'data_dir = "relative"', 'data_dir = "/a\\u0000b"', 'data_dir = "/a\\nb"', 'firecracker = "bin/fc"',
     'qemu = "/x\\u0000"', 'firecracker_url = "file:///etc"', 'firecracker_url = "https://a b"', "a = 1", "subnet = 5",
     "[vm_defaults]\\ncpus = true", "[vm_defaults]\ncpus = 2.0", '[vm_defaults]\ncpus = "٢"', '[vm_defaults]\nimage = ""',
     '[vm_defaults]\nkernel = "../x"', '[vm_defaults]\nssh_key_path = "a\\u0000b"', '[vm_defaults]\nssh_key_path = "k.pub"',
     "[vm_defaults]\ndns_servers = [1]", '[vm_defaults]\ndns_servers = ["x"]', '[vm_defaults]\nengine = ""',
     "[vm_defaults.cpus]\nx = 1", "[subnet]\nx = 1", "a = " + "[" * 50_000, ".".join("a" * 5000) + " = 1",
     "[vm_defaults]\ncpus = " + "9" * 5000, "\x00", "\x1b[31m = 1", "= 1"],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused_in_few_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file=written(tmp_path / "c.toml", text), data_dir=tmp_path)
    said = f"{caught.value.brief} {caught.value.details} {caught.value.resolution}"
    assert "c.toml" in said
    assert len(said) < 1500
    assert said.isprintable()


def test_an_empty_text_is_the_built_in_value(tmp_path: Path) -> None:
    text = 'host_interface = ""\nfirecracker = ""\nqemu = ""\nuid_range = ""\nsocket_group = ""\nfirecracker_url = ""\n'
    loaded = load(file=written(tmp_path / "c.toml", text), data_dir=tmp_path)
    assert loaded == load(file=written(tmp_path / "c.toml", ""), data_dir=tmp_path)


def test_the_gateway_follows_the_subnet(tmp_path: Path) -> None:
    loaded = load(file=written(tmp_path / "c.toml", 'subnet = "10.7.0.0/24"\n'), data_dir=tmp_path)
    assert loaded.subnet.gateway == "10.7.0.1"
