"""Where a configuration comes from, and which one wins."""

import functools
from pathlib import Path

import pytest

from vmm import config
from vmm.app.configure import set_config
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
