"""Debian's kernels of three ages in two flavours: what people boot guests with, fetched once and kept beside the library.

Of each is kept what an import needs: vmlinuz, and the modules that stage-1 loads. `python tests/support/debian_kernels.py`
fetches those that are missing; a test that needs one does so as well.
"""

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmm.images.modules import WANTED, find_tree, in_load_order

LIBRARY = Path(os.environ.get("VMM_TEST_LIBRARY", ""))
_RELEASES = {"12": "bookworm", "12-backports": "bookworm-backports", "13": "trixie"}


@dataclass(frozen=True)
class DebianKernel:
    release: str
    flavour: str

    @property
    def name(self) -> str:
        return f"debian-{self.release}-{self.flavour}"

    @property
    def package(self) -> str:
        return "linux-image-cloud-amd64" if self.flavour == "cloud" else "linux-image-amd64"

    @property
    def directory(self) -> Path:
        return LIBRARY.parent / "vmm-nested" / "kernels" / self.name


KERNELS = tuple(DebianKernel(release, flavour) for release in _RELEASES for flavour in ("cloud", "full"))


def fetched(kernel: DebianKernel) -> Path:
    """Return a directory with `vmlinuz` and `lib/modules/VERSION`; fetch it when it is missing."""
    if not (kernel.directory / "vmlinuz").exists():
        work = kernel.directory.with_name(f".{kernel.name}.new")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _fetch(kernel, work)
        shutil.rmtree(kernel.directory, ignore_errors=True)
        work.rename(kernel.directory)
    return kernel.directory


def _fetch(kernel: DebianKernel, work: Path) -> None:
    target = _RELEASES[kernel.release]
    apt = _apt(target)
    said = _run(*apt("apt-cache"), "show", f"{kernel.package}/{target}")
    real = re.search(r"^Depends: (linux-image-\d\S+)", said, re.MULTILINE)
    assert real, said
    _run(*apt("apt-get"), "download", "-q", f"{real[1]}/{target}", cwd=work)
    (package,) = work.glob("*.deb")
    _run("dpkg-deb", "-x", package, work / "tree")
    (vmlinuz,) = (work / "tree/boot").glob("vmlinuz-*")
    vmlinuz.rename(work / "vmlinuz")
    _keep_modules(find_tree(work / "tree"), work)
    package.unlink()
    shutil.rmtree(work / "tree")


def _keep_modules(tree: Path, work: Path) -> None:
    """Keep of 100 MiB of modules those that stage-1 loads."""
    kept = work / "lib/modules" / tree.name
    names = {name.removesuffix(".ko") for name, _ in in_load_order(tree)} | set(WANTED)
    for path in (tree / "kernel").rglob("*.ko*"):
        if path.name.partition(".")[0].replace("-", "_") in names:
            target = kept / path.relative_to(tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    (kept / "kernel").mkdir(parents=True, exist_ok=True)
    for path in tree.glob("modules.builtin*"):
        shutil.copy2(path, kept)


@functools.cache
def _apt(suite: str) -> Callable[[str], list[str | Path]]:
    """Return what gives the beginning of a command line of apt's with a state and one source of its own."""
    root = Path(tempfile.mkdtemp(prefix="vmm-apt-"))
    atexit.register(shutil.rmtree, root)
    for part in ("lists/partial", "archives/partial"):
        (root / part).mkdir(parents=True)
    own = suite.partition("-")[0]
    suites = {own, suite}
    # The host's own mirror, whatever its configuration calls it.
    said = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian")
    mirror = next(line for line in said.splitlines() if "security" not in line)
    sources = "".join(f"deb {mirror} {each} main\n" for each in sorted(suites))
    (root / "sources.list").write_text(sources)
    options = {
        "Dir::Etc::SourceList": root / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": root / "lists",
        "Dir::Cache": root,
        "APT::Sandbox::User": "root",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    _run("apt-get", *words, "update", "-q")
    return lambda program: [program, *words]


def _run(*argv: str | Path, **kwargs) -> str:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, timeout=600, **kwargs)
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


if __name__ == "__main__":
    for each in KERNELS:
        print(f"    {fetched(each)}")
