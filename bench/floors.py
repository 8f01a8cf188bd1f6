"""The floors of `start` and `stop`: what they do, as one would write it by hand in shell."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ground import Bench, run

# A tap on the bridge, the elements of the rules, Firecracker with a configuration, and asking until it says Running.
_TAP = """
number=$1 tap=$2 mac=$3 address=$4 uid=$5
ip tuntap add $tap mode tap vnet_hdr {owner}
ip link set $tap master vmm-br0
ip link set $tap up
nft "add element bridge vmm senders {{ $tap . $mac . $address }}; add element ip vmm machines {{ $address }}"
"""
_BARE = """
rm -f {here}/$number.sock
cat >{here}/$number.json <<END
{config}
END
{firecracker} --id floor-$number --api-sock {here}/$number.sock --config-file {here}/$number.json \
    </dev/null >{here}/$number.log 2>&1 &
echo $! >{here}/$number.pid
"""
_JAILED = """
jail={here}/jails/firecracker/floor-$number/root
mkdir -p -m 700 $jail
ln {kernel} $jail/vmlinux
ln {here}/$number.disk $jail/disk0
cat >$jail/config.json <<END
{config}
END
chown $uid:$uid {here}/$number.disk $jail/config.json
{jailer} --id floor-$number --exec-file {firecracker} --uid $uid --gid $uid --chroot-base-dir {here}/jails \
    --new-pid-ns --cgroup-version 1 --resource-limit no-file=1024 \
    -- --api-sock /floor.sock --config-file /config.json </dev/null >{here}/$number.log 2>&1
"""
_UNTIL_RUNNING = """
until curl -s --unix-socket {socket} http://localhost/ 2>/dev/null | grep -q '"Running"'; do sleep 0.001; done
"""
# The guest is asked, has its time, and is killed; then what it had of the host goes. Without a timeout: killed at once.
_STOP = """
number=$1 tap=$2 mac=$3 address=$4 uid=$5 timeout=$6
jail={here}/jails/firecracker/floor-$number
pid=$(cat {pid})
if [ -n "$timeout" ]; then
    curl -s -X PUT -d '{{"action_type": "SendCtrlAltDel"}}' --unix-socket {socket} http://localhost/actions || true
    timeout $timeout tail -s 0.1 --pid=$pid -f /dev/null || true
fi
kill -9 $pid
ip link del $tap
nft "delete element bridge vmm senders {{ $tap . $mac . $address }}; delete element ip vmm machines {{ $address }}"
rm -rf $jail
"""


@dataclass(frozen=True)
class Floor:
    """One way of starting by hand. `start` and `stop` are scripts which take a line of `guests` as their arguments."""

    bench: Bench
    start: Path
    stop: Path

    def one(self, number: int = 0) -> list[str]:
        return self.bench.shell(self.start, *_guest(number))

    def put_back(self, number: int = 0) -> None:
        run(*self.bench.shell(self.stop, *_guest(number), ""))

    def start_all(self, count: int) -> list[str]:
        return self._side_by_side(self.start, count, [], at_once=8)

    def stop_all(self, count: int, *, timeout_s: int) -> list[str]:
        return self._side_by_side(self.stop, count, [str(timeout_s)], at_once=count)

    def _side_by_side(self, script: Path, count: int, more: Sequence[str], *, at_once: int) -> list[str]:
        guests = self.bench.directory / "guests"
        guests.write_text("".join(f"{' '.join([*_guest(number), *more])}\n" for number in range(count)))
        return [
            *self.bench.host.prefix,
            "xargs",
            "-a",
            str(guests),
            "-P",
            str(at_once),
            "-L",
            "1",
            "sh",
            "-e",
            str(script),
        ]


def bare(bench: Bench, config: dict) -> Floor:
    """Return the floor without a jail; `config` is the configuration that vmm wrote for such a machine."""
    here = bench.directory / "bare"
    return _floor(bench, here, _BARE, config, owner="", socket=f"{here}/$number.sock", pid=f"{here}/$number.pid")


def jailed(bench: Bench, config: dict, *, guests: int) -> Floor:
    """Return the floor with the jailer, and with disks for so many guests."""
    here = bench.directory / "jailed"
    root = f"{here}/jails/firecracker/floor-$number/root"
    floor = _floor(
        bench, here, _JAILED, config, owner="user $uid", socket=f"{root}/floor.sock", pid=f"{root}/firecracker.pid"
    )
    disk = bench.data / "images" / "rootfs" / "tiny" / "rootfs.ext4"
    for number in range(guests):
        run("cp", "--sparse=always", str(disk), str(here / f"{number}.disk"))
    return floor


def _floor(bench: Bench, here: Path, how: str, config: dict, **words: str) -> Floor:
    here.mkdir()
    config["network-interfaces"][0].update(host_dev_name="$tap", guest_mac="$mac")
    engine = bench.data / "bin"
    facts = {
        **words,
        "here": here,
        "config": json.dumps(config),
        "firecracker": engine / "firecracker",
        "jailer": engine / "jailer",
        "kernel": bench.data / "images" / "kernels" / "tiny" / "vmlinux",
    }
    start, stop = here / "start.sh", here / "stop.sh"
    start.write_text((_TAP + how + _UNTIL_RUNNING).format(**facts))
    stop.write_text(_STOP.format(**facts))
    return Floor(bench, start, stop)


def _guest(number: int) -> list[str]:
    """Return a guest by hand as its script's arguments: number, tap, MAC, address, uid. vmm leases no such address."""
    return [str(number), f"vmm-ac10fa{number + 1:02x}", f"06:00:ac:10:fa:{number + 1:02x}", f"172.16.250.{number + 1}",
            str(1879048192 + 250 * 256 + number + 1)]  # fmt: skip
