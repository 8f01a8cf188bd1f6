"""Where a configuration comes from, and which one wins."""

import errno
import functools
from pathlib import Path

import pytest

from vmm import config
from vmm.app.configure import initialise, set_config
from vmm.errors import ConfigError, UsageError
from vmm.host.reading import read_bytes

load = functools.partial(config.load, read=read_bytes)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMM_DATA_DIR", raising=False)
    monkeypatch.delenv("VMM_CONFIG", raising=False)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_a_file_the_built_in_values_hold(tmp_path: Path) -> None:
    loaded = load(data_dir=tmp_path)
    assert loaded.subnet == config.SUBNET
    assert loaded.defaults == config.DEFAULTS
    assert loaded.paths.database == tmp_path / "state" / "vmm.db"
    assert not (tmp_path / "config").exists()


def test_flag_wins_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "c.toml", f'data_dir = "{tmp_path}/file"\n[vm_defaults]\ncpus = 4\n')
    assert load(file=file).paths.data_dir == tmp_path / "file"
    assert load(file=file).defaults.cpus == 4
    monkeypatch.setenv("VMM_DATA_DIR", str(tmp_path / "environment"))
    assert load(file=file).paths.data_dir == tmp_path / "environment"
    assert load(file=file, data_dir=tmp_path / "flag").paths.data_dir == tmp_path / "flag"
    monkeypatch.setenv("VMM_CONFIG", str(file))
    assert load().defaults.cpus == 4


def test_every_key_is_read_and_shown(tmp_path: Path) -> None:
    file = written(
        tmp_path / "c.toml",
        'bridge_name = "b0"\nsubnet = "10.0.0.0/24"\ngateway = "10.0.0.9"\nhost_interface = "eth1"\n'
        'firecracker = "/f"\nfirecracker_url = "http://r"\nqemu = "/q"\n[vm_defaults]\ncpus = 3\nmemory_mb = 1000\n'
        'disk_size_mb = 5000\nimage = "i"\nkernel = "k"\nssh_key_path = "/k.pub"\ndns_servers = ["1.1.1.1"]\n'
        'engine = "qemu"\n',
    )
    shown = config.values_of(load(file=file, data_dir=tmp_path))
    assert set(shown) == set(config.KEYS)
    assert shown["gateway"] == "10.0.0.9"
    assert shown["vm_defaults.dns_servers"] == ["1.1.1.1"]
    assert load(file=file).defaults.memory_mib == 1000


def test_setting_keeps_comments_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    file = written(tmp_path / "c.toml", "# mine\n[vm_defaults]\ncpus = 2 # two\n")
    set_config({"vm_defaults.memory_mb": "2G", "subnet": "10.1.0.0/16", "gateway": "10.1.0.1"}, config_file=file)
    text = file.read_text()
    assert "# mine" in text
    assert "# two" in text
    assert load(file=file).defaults.memory_mib == 2048
    for wrong in ({"nosuch": "1"}, {"vm_defaults.cpus": "many"}, {"vm_defaults.cpus": "77"}, {"subnet": "10.1.0.0/31"}):
        with pytest.raises((ConfigError, UsageError)):
            set_config(wrong, config_file=file)
    assert file.read_text() == text


def test_setting_mends_a_value_that_is_wrong(tmp_path: Path) -> None:
    file = written(tmp_path / "config" / "config.toml", "[vm_defaults]\ncpus = 99\n")
    with pytest.raises(ConfigError, match=r"vm_defaults\.cpus"):
        load(data_dir=tmp_path)
    set_config({"vm_defaults.cpus": "2"}, data_dir=tmp_path)
    assert load(data_dir=tmp_path).defaults.cpus == 2
    assert file.exists()


# What a file that cannot be used is told as


def trouble(file: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(file=file)
    assert "Errno" not in caught.value.details
    return caught.value


@pytest.mark.parametrize(
    ("content", "details"),
    [
        (b"a = \xff", "It is no text (UTF-8): byte 5 is 0xff."),
        (b"max_connections = " + b"9" * 5000, "A number in it has too many digits."),
        (b"a" + b".a" * 15000 + b" = 1", "Line 1 has 15000 dots outside quotes; a key has one at most."),
        (b'# 1.2.3.4.5.6.7.8.9.0\nqemu = "/a.b.c.d.e.f.g.h.i.j"\n[a' + b".a" * 9 + b"]", "Line 3 has 9 dots outside"),
        (b'qemu = """\n...........\n"""\na' + b" . a" * 9 + b" = 1", "Line 4 has 9 dots outside quotes"),
        (b"#" * 70000, "It holds more than 65536 bytes."),
        (b"allowed_networks = " + b"[" * 5000, "It is nested too deeply."),
    ],
)
def test_a_file_that_cannot_be_parsed_is_told_without_pythons_words(
    tmp_path: Path, content: bytes, details: str
) -> None:
    file = tmp_path / "a b.toml"
    file.write_bytes(content)
    error = trouble(file)
    assert error.details.startswith(details)
    assert error.resolution == f"Mend it with an editor, or move it away: sudo mv '{file}' '{file}.old'"
    with pytest.raises(ConfigError) as caught:
        set_config({"qemu": "/q"}, config_file=file)
    assert caught.value.details == error.details


def test_dots_in_texts_and_comments_are_no_matter(tmp_path: Path) -> None:
    networks = ", ".join(f'"10.{number}.0.0/16"' for number in range(0, 200, 2))
    file = written(
        tmp_path / "c.toml", f'allowed_networks = [{networks}] # 1.2.3.4.5.6.7.8.9.0.1\nqemu = "/\\"........."\n'
    )
    assert len(load(file=file).allowed_networks) == 100


@pytest.mark.parametrize(
    ("line", "details"),
    [
        ("max_connections = true", "It is true or false; needed is a whole number."),
        ("max_connections = 2024-01-01", "It is a date or a time; needed is a whole number."),
        ("max_connections = 1.5", "It is a number with a point; needed is a whole number."),
        ("qemu = 1", 'It is 1; needed is a text in quotes, such as "text".'),
        ("allowed_networks = [1]", 'It is a list of more than texts; needed is a list of texts, such as ["a", "b"].'),
        ("max_connections = 0x" + "f" * 5000, "A number has 18 digits at most."),
        ("qemu = 0x" + "f" * 5000, "A number has 18 digits at most."),
    ],
)
def test_a_value_of_another_kind_is_told_without_pythons_words(tmp_path: Path, line: str, details: str) -> None:
    assert trouble(written(tmp_path / "c.toml", line)).details == details


def test_only_what_an_editor_mends_is_to_be_moved_away(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    elsewhere = "Name a file with --config or VMM_CONFIG, or leave it out: without one the built-in values hold."
    for file in (loop, tmp_path, tmp_path / ("x" * 300), written(tmp_path / "f", "") / "c.toml"):
        assert trouble(file).resolution == elsewhere
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").symlink_to(loop)
    with pytest.raises(ConfigError) as caught:
        load(data_dir=tmp_path)
    assert caught.value.resolution == f"See what lies there (ls -ld {tmp_path}/config/config.toml), and put it right."


def test_a_file_that_its_reader_may_not_read_is_not_to_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ConfigError) as caught:
        config.load(read=refused, file=tmp_path / "c.toml")
    assert caught.value.resolution == (
        f"Run the command as root: sudo vmm ...; or let this user read it (who may: namei -l {tmp_path}/c.toml)."
    )


@pytest.mark.parametrize("variable", ["VMM_DATA_DIR", "VMM_CONFIG"])
@pytest.mark.parametrize("value", ["/a\nb", "/a\udcff", "a\x1b"])
def test_a_path_from_the_environment_is_one_that_others_can_go_by(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match="cannot be the path of the"):
        load()


def test_a_relative_path_in_a_directory_that_was_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("VMM_DATA_DIR", "d")
    with pytest.raises(ConfigError, match="leads nowhere"):
        load()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [("vm_defaults.memory_mb", "2G", 2048), ("vm_defaults.disk_size_mb", "8G", 8192), ("max_connections", "100", 100)],
)
def test_set_takes_sizes_where_sizes_are_and_counts_where_counts_are(
    tmp_path: Path, key: str, text: str, value: int
) -> None:
    file = tmp_path / "c.toml"
    set_config({key: text}, config_file=file)
    assert config.values_of(load(file=file))[key] == value


@pytest.mark.parametrize("text", ["2G", "8192M", "many"])
def test_a_count_is_no_size(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        set_config({"max_connections": text}, config_file=tmp_path / "c.toml")
    assert caught.value.details == "For max_connections a whole number is needed."


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_init_makes_the_file_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    file, data_dir = tmp_path / "deep" / "c.toml", tmp_path / "data"
    if by == "environment":
        monkeypatch.setenv("VMM_CONFIG", str(file))
    named = file if by == "flag" else None
    assert initialise(data_dir=data_dir, config_file=named) == (file, True)
    assert "sudo vmm config set KEY VALUE" in file.read_text()
    assert (data_dir / "vms").is_dir()
    assert not (data_dir / "config" / "config.toml").exists()
    assert initialise(data_dir=data_dir, config_file=named) == (file, False)
