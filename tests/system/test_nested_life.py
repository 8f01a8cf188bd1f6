"""The life of a machine on real Firecracker, jailed, with a whole guest, under a real systemd and cgroup v2.

In a host with virtualization (tests/support/nested.py). A boot there takes ten seconds and more, so that one machine goes
through all of it, test after test.
"""

import subprocess

import pytest
from nested import Nested, whole

pytestmark = pytest.mark.system

# A web server in a line of shell, started by systemd for each request.
WEB = r"""
echo "from inside" > /root/index.html
printf '#!/bin/sh\nsed "/^.$/q" >/dev/null\nprintf "HTTP/1.0 200 OK\\r\\n\\r\\n"\ncat /root/index.html\n' > /usr/local/bin/web
chmod +x /usr/local/bin/web
printf '[Socket]\nListenStream=80\nAccept=yes\n[Install]\nWantedBy=sockets.target\n' > /etc/systemd/system/web.socket
printf '[Service]\nStandardInput=socket\nExecStart=/usr/local/bin/web\n' > /etc/systemd/system/web@.service
systemctl -q enable --now web.socket
"""
GROUP = "/sys/fs/cgroup/vmm.slice"


def kinds(nested: Nested) -> list[str]:
    return [kind for kind, _ in nested.events("fc")]


def unit_name(nested: Nested) -> str:
    return f"vmm-fc-{nested.machine('fc')['id'][:8]}.service"


def came_back(nested: Nested, before: int) -> None:
    """Wait until the machine has another engine, and its guest is up."""
    nested.wait(f'p=$(pgrep -x firecracker) && [ "$p" != {before} ]', timeout=400)
    nested.start("fc")


def curl(nested: Nested, port: int) -> str:
    """Fetch from the host within by its own address, from the host around it: from outside."""
    return nested.host.run("curl", "-sf", "--max-time", "20", f"http://172.16.0.2:{port}/", check=False).stdout


def test_the_host_is_what_these_tests_are_about(nested: Nested) -> None:
    checks = {check["name"]: check for check in nested.json("doctor")}
    assert checks["kvm"]["status"] == "ok", checks["kvm"]
    assert "auto chooses firecracker" in checks["engine"]["detail"]
    assert checks["cgroups"]["detail"] == "version 2"
    assert nested.shell("ps -o comm= -p 1") == "systemd"


def test_it_is_jailed_in_a_unit_with_a_cgroup_of_its_own(nested: Nested) -> None:
    nested.vmm("create", "fc", "--restart", "on-failure")
    nested.start("fc")
    machine, unit = nested.machine("fc"), nested.unit("fc")
    assert (machine["state"], machine["engine"], machine["owner"]) == ("running", "firecracker", "unit")
    assert (unit["Id"], unit["MainPID"], unit["Restart"]) == (unit_name(nested), str(machine["pid"]), "on-failure")
    assert nested.guest("fc", "hostname; cat /proc/1/comm").split() == ["fc", "systemd"]
    status = nested.shell(f"cat /proc/{machine['pid']}/status /proc/{machine['pid']}/cgroup")
    for line in ("CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    assert f"0::/vmm.slice/{unit_name(nested)}" in status
    assert "Uid:\t0" not in status
    assert len(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()) == 3
    # The whole of what it sees: its own files.
    seen = nested.shell(f"ls /proc/{machine['pid']}/root/")
    assert "vmlinux" in seen or "kernel" in seen, seen
    assert not {"etc", "home", "var"} & set(seen.split())


def test_forwards_work_from_outside_and_from_the_host_itself(nested: Nested) -> None:
    nested.guest("fc", WEB)
    nested.vmm("port-forward", "add", "fc", "8080:80")
    assert curl(nested, 8080) == "from inside\n"
    assert nested.shell("curl -sf --max-time 20 http://127.0.0.1:8080/") == "from inside"
    # Outwards, masqueraded twice.
    argv = [*nested.host.prefix[:1], f"--net=/run/netns/{nested.world}", "python3", "-m", "http.server", "80"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/proc/self") as server:
        try:
            probe = "curl -s -o /dev/null -w '%{http_code}' --retry 5 --retry-connrefused --max-time 20 http://192.0.2.2/status"
            assert nested.guest("fc", probe) == "200"
        finally:
            server.kill()


@pytest.mark.fault(4)
def test_systemctl_stop_of_its_unit_is_a_clean_stop(nested: Nested) -> None:
    nested.guest("fc", "echo written > /root/note")
    nested.run("systemctl", "stop", unit_name(nested))
    machine = nested.machine("fc")
    assert (machine["state"], machine["pid"]) == ("stopped", None)
    assert nested.events("fc")[-1] == ("stopped", "shut down by the guest")
    assert nested.unit("fc") == {}
    # Stopped by its user: what starts machines after a boot leaves it alone.
    nested.run("systemctl", "restart", "vmm", check=False)
    nested.vmm("autostart")
    assert nested.state("fc") == "stopped"


@whole
def test_limits_are_in_force_on_its_unit_and_its_stop_needs_none_of_them(nested: Nested) -> None:
    nested.vmm("set", "fc", "--cpu-limit", "0.8", "--memory-limit", "32", "--pids-limit", "16", "--io-write-bps", "2M")
    nested.start("fc")
    group = f"{GROUP}/{unit_name(nested)}"
    assert nested.guest("fc", "cat /root/note") == "written"
    read = nested.shell(f"cd {group} && cat cpu.max memory.max memory.swap.max pids.max io.max").splitlines()
    assert read[:4] == ["80000 100000", str((512 + 32) << 20), "0", "16"]
    assert "wbps=2097152" in read[4]
    # The kernel holds it, while the guest could take a whole one.
    nested.guest("fc", "(while :; do :; done) >/dev/null 2>&1 </dev/null & sleep 1")
    used = "grep usage_usec cpu.stat | cut -d' ' -f2"
    taken = nested.shell(
        f"cd {group}; b=$(date +%s%N); a=$({used}); sleep 4; c=$({used}); e=$(date +%s%N); echo $(((c-a)*100000/(e-b)))"
    )
    assert 20 < int(taken) < 90, f"it took {taken} % of a CPU"
    # What a guest flushes is throttled as well.
    nested.guest("fc", "pkill -f 'while :' ; true", check=False)
    began = nested.shell("date +%s%N")
    nested.guest("fc", "dd if=/dev/zero of=/root/big bs=1M count=8 conv=fsync status=none")
    seconds = (int(nested.shell("date +%s%N")) - int(began)) / 1e9
    assert seconds > 3, f"8 MiB at 2 MiB/s in {seconds:.1f} s"
    # All of the guest's memory is used, and vmm's own commands in the unit take nothing of what is left.
    fill = "mount -t tmpfs -o size=340M none /mnt; dd if=/dev/zero of=/mnt/big bs=1M count=330 status=none; umount /mnt"
    nested.guest("fc", f"{fill}; rm /root/big")
    nested.run("systemctl", "stop", unit_name(nested))
    assert nested.events("fc")[-1] == ("stopped", "shut down by the guest")
    nested.vmm("set", "fc", *(word for name in ("cpu", "memory", "pids") for word in (f"--{name}-limit", "none")))
    nested.vmm("set", "fc", "--io-write-bps", "none")


@whole
@pytest.mark.fault(13)
def test_each_end_is_told_apart_and_its_policy_holds(nested: Nested) -> None:
    nested.start("fc")
    # systemctl restart: shut down by its guest, and there again.
    before = nested.machine("fc")["pid"]
    nested.run("systemctl", "restart", unit_name(nested))
    assert kinds(nested)[-2:] == ["stopped", "started"]
    came_back(nested, before)
    # The guest's own reboot is no failure, and is not counted.
    before = nested.machine("fc")["pid"]
    nested.guest("fc", "systemctl --no-block reboot", check=False)
    came_back(nested, before)
    assert kinds(nested)[-2:] == ["rebooted", "started"]
    assert nested.machine("fc")["restarts"] == 0
    # A panic is one, with its own words.
    before = nested.machine("fc")["pid"]
    nested.guest("fc", "(sleep 1; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &", check=False)
    came_back(nested, before)
    assert [kind for kind, _ in nested.events("fc")][-2:] == ["restarting", "started"]
    assert "sysrq triggered crash" in nested.events("fc")[-2][1]
    assert nested.machine("fc")["restarts"] == 1
    # So is an engine that dies.
    before = nested.machine("fc")["pid"]
    nested.run("kill", "-9", str(before))
    came_back(nested, before)
    assert "is gone: killed, crashed" in nested.events("fc")[-2][1]
    assert nested.machine("fc")["restarts"] == 2


@whole
@pytest.mark.fault(4)
def test_a_reboot_of_the_host_shuts_its_guest_down_and_brings_it_back(nested: Nested) -> None:
    """Without vmm.service nobody but the machine's own unit asks its guest, and nobody brings it back."""
    nested.guest("fc", "echo unsynced > /root/note")
    nested.reboot()
    machine = nested.machine("fc")
    assert machine["state"] == "stopped", machine
    assert nested.events("fc")[-1] == ("stopped", "shut down by the guest")
    nested.vmm("autostart", timeout=240)
    nested.start("fc")
    assert nested.guest("fc", "cat /root/note") == "unsynced"
    assert curl(nested, 8080) == "from inside\n"


@whole
@pytest.mark.fault(4)
def test_after_the_plug_was_pulled_it_is_told_and_comes_back(nested: Nested) -> None:
    nested.guest("fc", "echo synced > /root/note; sync")
    nested.shell("sync")
    nested.pull_the_plug()
    machine = nested.machine("fc")
    assert machine["state"] == "failed"
    assert "the host was restarted" in machine["reason"]
    nested.vmm("autostart", timeout=240)
    nested.start("fc")
    assert nested.guest("fc", "cat /root/note") == "synced"


@whole
def test_a_power_off_is_a_stop_and_nothing_stays_of_what_is_deleted(nested: Nested) -> None:
    nested.guest("fc", "systemctl --no-block poweroff", check=False)
    nested.wait_state("fc", "stopped")
    assert nested.machine("fc")["reason"] == "the guest powered off"
    nested.wait("[ -z \"$(systemctl list-units --all --plain --no-legend 'vmm-fc-*')\" ]")
    nested.vmm("delete", "fc")
    left = nested.shell(
        "ls /var/lib/vmm/vms /var/lib/vmm/sockets /var/lib/vmm/jails/firecracker; ls -d /sys/fs/cgroup/vmm.slice/vmm-fc* 2>/dev/null; true"
    )
    assert "fc" not in left.split()
    assert "vmm-0a4d" not in nested.shell("ip -o link")


def test_deleted_while_it_runs_nothing_of_it_stays(nested: Nested) -> None:
    nested.vmm("create", "gone")
    nested.vmm("start", "gone", "--wait", "none")
    tap = nested.machine("gone")["tap_device"]
    nested.vmm("delete", "gone", "--force")
    nested.wait("[ -z \"$(systemctl list-units --all --plain --no-legend 'vmm-gone-*')\" ]")
    left = nested.shell(
        "ls /var/lib/vmm/vms /var/lib/vmm/sockets /var/lib/vmm/jails/firecracker; ls -d /sys/fs/cgroup/vmm.slice/vmm-gone* 2>/dev/null; true"
    )
    assert "gone" not in left
    assert tap not in nested.shell("ip -o link")
