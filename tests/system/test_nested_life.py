"""Whole guests on real Firecracker, jailed, under a real systemd and cgroup v2: in a host with virtualization."""

import pytest
from nested import Nested

pytestmark = pytest.mark.system


def test_the_host_is_what_these_tests_are_about(nested: Nested) -> None:
    checks = {check["name"]: check for check in nested.json("doctor")}
    assert checks["kvm"]["status"] == "ok", checks["kvm"]
    assert "firecracker" in checks["engine"]["detail"]
    assert checks["cgroups"]["detail"] == "version 2"


def test_a_machine_lives_jailed_in_a_unit_and_is_shut_down_by_its_guest(nested: Nested) -> None:
    nested.vmm("create", "fc", "--restart", "on-failure")
    nested.start("fc")
    machine = nested.machine("fc")
    assert (machine["state"], machine["engine"], machine["owner"]) == ("running", "firecracker", "unit")
    assert nested.guest("fc", "hostname; cat /proc/1/comm").split() == ["fc", "systemd"]
    status = nested.shell(f"cat /proc/{machine['pid']}/status /proc/{machine['pid']}/cgroup")
    for line in ("CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "0::/vmm.slice/vmm-fc-"):
        assert line in status
    assert "Uid:\t0" not in status
    nested.guest("fc", "echo written > /root/note")
    said = nested.vmm("stop", "fc").stdout
    assert "shut down by the guest" in said
    assert nested.state("fc") == "stopped"
    assert nested.unit("fc") == {}
    nested.start("fc")
    assert nested.guest("fc", "cat /root/note") == "written"
    nested.vmm("delete", "--force", "fc")
