"""Many commands at once: one wins, the others are told, and nothing is given twice."""

import subprocess
import tomllib

import pytest
from hosts import Host

pytestmark = pytest.mark.system

SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    return [(process.wait(timeout=120), process.communicate()[1]) for process in processes]


@pytest.mark.fault(2)
def test_twenty_creates_from_twenty_processes_share_nothing(tiny: Host) -> None:
    processes = [
        tiny.popen("create", f"m{number}", *SMALL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for number in range(20)
    ]
    ended = finish(processes)
    assert [code for code, _ in ended] == [0] * 20, ended
    machines = tiny.json("list")
    assert len(machines) == 20
    for key in ("ip_address", "mac_address", "tap_device", "id"):
        assert len({machine[key] for machine in machines}) == 20, key
    # And one port for twenty that want it.
    wanted = [
        tiny.popen("port-forward", "add", f"m{number}", "8080:80", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for number in range(20)
    ]
    ended = finish(wanted)
    assert sorted(code for code, _ in ended) == [0] + [1] * 19
    assert all("forwarded already" in said for code, said in ended if code)
    assert sum(len(machine["port_forwards"]) for machine in tiny.json("list")) == 1


@pytest.mark.fault(2)
def test_one_name_goes_to_one_of_many(tiny: Host) -> None:
    ended = finish(
        [tiny.popen("create", "same", *SMALL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(10)]
    )
    assert sorted(code for code, _ in ended) == [0] + [1] * 9
    assert all("already" in said for code, said in ended if code), ended
    starts = finish([tiny.popen("start", "same", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(6)])
    assert [code for code, _ in starts] == [0] * 6, starts
    assert len([line for line in tiny.processes() if "--api-sock" in line]) == 1
    deletes = finish(
        [tiny.popen("delete", "-f", "same", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(4)]
    )
    assert sorted(code for code, _ in deletes) == [0, 1, 1, 1], deletes


@pytest.mark.fault(2, 29)
def test_starts_at_once_where_the_rules_were_flushed_put_everyone_into_them(tiny: Host) -> None:
    """Each of them finds no tables and renders them anew, from what it knows of the others."""
    names = [f"m{number}" for number in range(8)]
    for name in names:
        tiny.vmm("create", name, *SMALL)
    tiny.vmm("port-forward", "add", "m0", "8080:80")
    tiny.vmm("start", "m0")
    for _ in range(2):
        tiny.run("nft", "flush", "ruleset")
        starts = [tiny.popen("start", name, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for name in names[1:]]
        ended = finish(starts)
        assert [code for code, _ in ended] == [0] * 7, ended
        rules = tiny.run("nft", "list", "ruleset").stdout
        assert "tcp . 8080 : 172.16.0.2 . 80" in rules
        for machine in tiny.json("list"):
            assert f'"{machine["tap_device"]}" . {machine["mac_address"]} . {machine["ip_address"]}' in rules
        tiny.vmm("stop", "--force", *names[1:])


def test_what_several_commands_set_at_once_is_all_kept(host: Host) -> None:
    values = {
        "cpus": 3,
        "memory_mb": 300,
        "disk_size_mb": 2000,
        "engine": "qemu",
        "image": "other",
        "kernel": "another",
    }
    running = [host.popen("config", "set", f"vm_defaults.{key}", str(value)) for key, value in values.items()]
    assert [each.wait(60) for each in running] == [0] * len(values)
    directory = host.data_dir / "config"
    assert tomllib.loads((directory / "config.toml").read_text())["vm_defaults"] == values
    assert [path.name for path in directory.iterdir()] == ["config.toml"]
