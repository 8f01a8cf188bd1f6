"""Each root of the corpus boots as a real guest with its address and keys, is written to, stopped, and has all of it."""

import concurrent.futures
import time
from dataclasses import dataclass, field

import corpus
import pytest
from hosts import Host

pytestmark = [pytest.mark.system, pytest.mark.fault(47)]

# What is asked of each root, once it has had time to go wrong.
ASKED = {
    "address": "ip -4 -o address show eth0",
    "route": "ip route show default",
    "name": "hostname",
    "resolvers": "cat /etc/resolv.conf",
    "clients": "pgrep -l 'dhclient|dhcpcd' || echo none",
    "container": "systemd-detect-virt --container || true",
    "traces": "ls -a / /run | grep -E 'dockerenv|containerenv' || echo none",
    "networkd": "networkctl status eth0 --no-pager 2>/dev/null | grep 'Network File'",
    "networkmanager": "nmcli -t -f GENERAL.CONNECTION,IP4.ADDRESS device show eth0 2>/dev/null",
    "cloud": "cat /root/from-cloud-init",
    "init": "cat /proc/1/comm",
}

# How often each is started and stopped. Of stops of the first, whose init believed itself in a container, three of four
# lost what was written last; the second's init is the simplest there is.
LIVES = {"exported": 2, "busybox": 2}


@dataclass
class Life:
    """What became of a machine of one root."""

    started: str = ""
    seconds: float = 0.0
    answers: dict[str, str] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    shown: dict = field(default_factory=dict)
    console: str = ""


@pytest.fixture(scope="module")
def lives(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Life]:
    """Live through all of them, two at a time: each is a guest that wants a CPU."""
    directory = tmp_path_factory.mktemp("roots")
    user_data = directory / "user-data"
    user_data.write_text("#cloud-config\nwrite_files:\n- path: /root/from-cloud-init\n  content: seen\n")

    def live(name: str) -> Life:
        tree = corpus.build(name, directory)
        shared_host.vmm("image", "import", str(tree), "--name", name)
        corpus.remove(tree)
        extra = ("--user-data", str(user_data)) if name == "cloud-init" else ()
        shared_host.vmm(
            "create", name, "--image", name, "--engine", "qemu", "--cpus", "2", "--disk", "1G", *extra,
            "--dns", "192.0.2.53",
        )  # fmt: skip
        life = Life()
        _live(shared_host, name, life)
        life.console = shared_host.console(name)
        shared_host.vmm("delete", "--force", name)
        shared_host.vmm("image", "delete", name)
        return life

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(corpus.ROOTS, pool.map(live, corpus.ROOTS), strict=True))


def _live(host: Host, name: str, life: Life) -> None:
    for number in range(LIVES.get(name, 1)):
        began = time.monotonic()
        done = host.vmm("start", name, "--wait", "ssh", "--timeout", "600", check=False, timeout=700)
        life.started = done.stdout + done.stderr
        life.seconds = time.monotonic() - began
        if done.returncode != 0:
            life.shown = host.machine(name)
            return
        if number == 0:
            _settle(host, name)
            life.answers = {key: _ask(host, name, command) for key, command in ASKED.items()}
            life.shown = host.machine(name)
        else:
            life.kept = _ask(host, name, "cat /root/written").splitlines()
        # Just before the stop: what an init that does not unmount would lose.
        _ask(host, name, f"echo {number} >>/root/written")
        life.stops.append(host.vmm("stop", name, "--timeout", "300", timeout=400).stdout)


def _settle(host: Host, name: str) -> None:
    """Wait until the root's own programs have done what they do at a boot."""
    command = "systemctl is-system-running --wait; cloud-init status --wait"
    host.vmm("exec", name, "--", "timeout", "200", "sh", "-c", command, check=False, timeout=300)


def _ask(host: Host, name: str, command: str) -> str:
    return host.vmm("exec", name, "--", "sh", "-c", command, check=False, timeout=120).stdout.strip()


@pytest.mark.parametrize("name", corpus.ROOTS)
def test_a_root_that_nobody_tuned(lives: dict[str, Life], name: str) -> None:
    life = lives[name]
    print(life.console[-3000:], life)
    assert "is running" in life.started, life.started
    assert "inet 172.16.0." in life.answers["address"]
    # No other address: nobody asked a DHCP server, or gave itself one of 169.254.0.0/16.
    assert life.answers["address"].count("inet ") == 1
    assert "default via 172.16.0.1" in life.answers["route"]
    assert life.answers["name"] == name
    assert life.answers["clients"] == "none"
    assert life.answers["traces"] == "none"
    assert life.answers["resolvers"].endswith("nameserver 192.0.2.53")
    assert life.kept == [str(number) for number in range(len(life.stops) - 1)]
    assert len(life.stops) == LIVES.get(name, 1)
    assert all("shut down by the guest (" in stop for stop in life.stops), life.stops


def test_systemd_is_in_no_container(lives: dict[str, Life]) -> None:
    assert lives["exported"].answers["container"] == "none"
    assert any("/etc/fstab" in note for note in lives["exported"].shown["boot_notes"])


def test_networkd_takes_the_address_from_stage_1(lives: dict[str, Life]) -> None:
    assert lives["networkd"].answers["networkd"].endswith("/run/systemd/network/!vmm.network")
    assert any("would keep vmm out" in note for note in lives["networkd"].shown["boot_notes"])


def test_network_manager_has_a_connection_with_the_address(lives: dict[str, Life]) -> None:
    # By the file that stage-1 left it, or as it found the link; never the image's own, which asks a DHCP server.
    found = lives["networkmanager"].answers["networkmanager"].splitlines()
    assert found[0] in ("GENERAL.CONNECTION:vmm", "GENERAL.CONNECTION:eth0")
    assert found[1].startswith("IP4.ADDRESS[1]:172.16.0.")


def test_cloud_init_does_its_work_and_leaves_network_and_keys(lives: dict[str, Life]) -> None:
    assert lives["cloud-init"].answers["cloud"] == "seen"


def test_roots_without_systemd(lives: dict[str, Life]) -> None:
    assert lives["busybox"].answers["init"] != "systemd"
    assert lives["openrc"].answers["init"] == "init"
    assert any("rc_sys" in note for note in lives["openrc"].shown["boot_notes"])
