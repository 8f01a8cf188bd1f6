"""The part of stage-1 that works in a root, run on this host in namespaces of its own: a root a moment, without a guest."""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from hosts import sh

from vmm.guest import stage1
from vmm.guest.facts import Facts, facts_files

SCRIPT = Path(stage1.__file__).with_name("stage1-facts.sh")
INIT = Path(stage1.__file__).with_name("stage1-init.sh")
MAC = "06:00:ac:10:00:02"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1hY2hpbmVzIGtleSBmb3IgdGVzdHMgb25seSAtLS0tLS0t vmm"
FACTS = Facts(
    hostname="dev", machine_id="0123456789abcdef0123456789abcdef", mac=MAC, address="172.16.0.2", prefix_length=16,
    gateway="172.16.0.1", resolvers=("192.0.2.53",), authorized_keys=(KEY,), host_key="PRIVATE", host_key_pub="PUBLIC",
)  # fmt: skip

# As stage-1 leaves it: the root is a mount, /run is in memory with the facts in it.
_INSIDE = r"""
set -e
[ $$ = 1 ] || exit 9  # a step that takes too long is ended with all processes that there are
root=$1 facts=$2 script=$3 disk=$4 look=$5 how=$6
mount --bind "$root" "$root"
mount -t tmpfs tmpfs "$root/run"
mount --bind /dev "$root/dev"
mount --bind /sys "$root/sys"
[ ! -d "$root/proc" ] || mount -t proc proc "$root/proc"
install -d -m 700 "$root/run/vmm"
install -d "$root/run/systemd/system"
cp "$facts"/* "$root/run/vmm"
cp /bin/busybox "$root/run/vmm/busybox"
cp "$script" "$root/run/vmm/facts"
case $how in
read-only) mount -o remount,bind,ro "$root" ;;
full)
	mkdir "$root/run/whole"
	mount -t tmpfs -o size=400k tmpfs "$root/run/whole"
	for name in bin etc root usr; do cp -a "$root/$name" "$root/run/whole"; done
	mkdir "$root/run/whole/run" "$root/run/whole/dev" "$root/run/whole/sys" "$root/run/whole/proc"
	for name in dev sys run; do mount --rbind "$root/$name" "$root/run/whole/$name"; done
	root=$root/run/whole
	dd if=/dev/zero of="$root/etc/fill" 2>/dev/null || true
	;;
esac
# As stage-1 calls it, with its own limit; nothing of the test's can be waited for in its place.
b=/bin/busybox r=$root inits="/sbin/init /bin/init"
exec 4>&1
mkfifo "$facts/steps"
exec 3<>"$facts/steps"
@INIT@
set +e
apply_facts
echo "--- $(hostname)"
[ -z "$look" ] || chroot "$root" /run/vmm/busybox sh -c "$look"
"""


def inside() -> str:
    """Return the script of a boot, with the functions of stage-1's first part that call the second."""
    text = INIT.read_text()
    names = ("say() {", "bounded() {", "in_root() {", "apply_facts() {")
    parts = [text[text.index(f"\n{name}") :] for name in names]
    return _INSIDE.replace("@INIT@", "".join(re.split(r"(?<=\})\n", part, maxsplit=1)[0] for part in parts))


@dataclass
class Root:
    """A root file system's tree, and what a boot of it said."""

    path: Path
    said: list[str] = field(default_factory=list)
    found: str = ""

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, text: str, mode: int = 0o644) -> "Root":
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return self

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def boot(
        self, look: str = "", *, disk: str = "/dev/vda", how: str = "", hang: str = "", timeout: float = 60
    ) -> "Root":
        """Apply the facts; `look` is a script for busybox, run inside before the mounts go. `b` is busybox there.

        `how`: the root is `read-only`, or its /etc is `full`. `hang`: the step that does not end.
        """
        facts = self.path.with_name(f"{self.path.name}-facts")
        shutil.rmtree(facts, ignore_errors=True)
        facts.mkdir()
        for name, text in facts_files(FACTS).items():
            (facts / name).write_bytes(text)
        script = facts.with_name("stage1-facts.sh")
        text = SCRIPT.read_text()
        if hang:
            text = text.replace("disk=$1", f"{hang}() {{ while :; do :; done; }}\ndisk=$1").replace(
                "limit=15", "limit=1"
            )
        script.write_text(text)
        look = f"b=/run/vmm/busybox; {look}" if look else ""
        argv = ["unshare", "-mupf", "--kill-child", "--propagation", "private", "busybox", "sh", "-c", inside(), "sh"]
        done = sh(*argv, str(self.path), str(facts), str(script), disk, look, how, timeout=timeout)
        words, _, found = done.stdout.partition("--- ")
        self.said = words.splitlines()
        self.found = found.partition("\n")[2].strip()
        assert found.startswith("dev\n"), done.stdout
        return self


def a_root(directory: Path) -> Root:
    """Make a tree with what every root has, and an sshd that is none."""
    root = Root(directory / "root")
    for name in ("dev", "etc/ssh", "proc", "run", "sys", "root", "usr/sbin"):
        (root.path / name).mkdir(parents=True)
    root.path.chmod(0o755)
    (root.path / "root").chmod(0o700)
    root.write("usr/sbin/sshd", "#!/bin/sh\n", 0o755)
    root.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n").write("bin/sh", "", 0o755)
    return root
