"""Where it is measured: a network namespace and a data directory of their own, with the engine and the tiny guest."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests" / "support"))

import tiny_kernel  # noqa: E402  # of the tests' support, found by the line above
from hosts import SMALL, VMM, Host  # noqa: E402

PYTHON = sys.executable
NAMESPACE = "vmmbench"
_ENGINE = ("firecracker", "jailer", "firecracker.json")
_QUIET_S = 30.0


@dataclass(frozen=True)
class Bench:
    """`directory` holds the data directory and whatever else is made for measuring."""

    directory: Path
    host: Host
    runs: int

    @property
    def data(self) -> Path:
        return self.host.data_dir

    @property
    def rounds(self) -> int:
        """How often what takes many seconds is done."""
        return max(min(self.runs, 3), self.runs // 3)

    def vmm(self, *arguments: str) -> list[str]:
        """Return the argument list of a vmm in the namespace."""
        return [*self.host.prefix, *VMM, *arguments]

    def shell(self, script: Path, *arguments: str) -> list[str]:
        return [*self.host.prefix, "sh", "-e", str(script), *arguments]

    def create(self, names: Sequence[str], *options: str) -> None:
        """Create machines with the tiny guest."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(lambda name: self.host.vmm("create", name, *SMALL, *options), names))

    def stop(self, *names: str) -> None:
        """Kill machines (all of them without names), and wait until nothing is at work for them any more."""
        self.host.vmm("stop", "--force", *(names or ["--all"]))
        self.quiet()

    def quiet(self) -> None:
        """Wait until vmm does nothing: the supervisor stays while machines run, and is gone soon after the last."""
        deadline = time.monotonic() + _QUIET_S
        while not self._is_quiet():
            if time.monotonic() > deadline:
                raise SystemExit(f"These do not end: {self.host.processes()}")
            time.sleep(0.02)

    def _is_quiet(self) -> bool:
        there = self.host.processes()
        ours = [line for line in there if " -m vmm " in line]
        return not ours or (len(ours) < len(there) and not any(" settle " in line for line in ours))


@contextlib.contextmanager
def a_bench(runs: int) -> Iterator[Bench]:
    """Give a namespace and a data directory with an engine, and leave nothing of them."""
    found = (TOP / ".venv/vmm-test/bin", Path("/var/lib/vmm/bin"), Path("/var/lib/vmm-demo/bin"))
    engine = next((path for path in found if (path / "jailer").exists()), None)
    if engine is None:
        raise SystemExit("There is no Firecracker with its jailer here; run scripts/test or scripts/demo first.")
    directory = Path(tempfile.mkdtemp(prefix="vmmbench-", dir="/var/tmp"))
    bench = Bench(directory, Host(NAMESPACE, directory / "data"), runs)
    os.environ["VMM_DATA_DIR"] = str(bench.data)
    (bench.data / "bin").mkdir(parents=True)
    for name in _ENGINE:
        shutil.copy(engine / name, bench.data / "bin" / name)
    run("ip", "netns", "add", NAMESPACE)
    try:
        run("ip", "-n", NAMESPACE, "link", "set", "lo", "up")
        yield bench
    finally:
        bench.host.vmm("-q", "delete", "--all", "--force", check=False)
        with contextlib.suppress(SystemExit):
            bench.quiet()
        run("ip", "netns", "del", NAMESPACE)
        shutil.rmtree(directory)


def stock(bench: Bench) -> None:
    """Put the tiny kernel and two images into the data directory."""
    kernel = bench.directory / "tiny.elf"
    kernel.write_bytes(tiny_kernel.build())
    bench.host.vmm("kernel", "import", str(kernel), "--name", "tiny", "--no-stage1")
    small, large = bench.directory / "tiny.ext4", bench.directory / "large.ext4"
    run("mke2fs", "-q", "-t", "ext4", str(small), "256M")
    filling = bench.directory / "filling"
    filling.mkdir()
    (filling / "data").write_bytes(os.urandom(1 << 20) * 300)
    run("mke2fs", "-q", "-t", "ext4", "-d", str(filling), str(large), "1G")
    for image in (small, large):
        bench.host.vmm("image", "import", str(image), "--name", image.stem)
        image.unlink()
    shutil.rmtree(filling)


def run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{argv}\n{done.stdout}{done.stderr}")
