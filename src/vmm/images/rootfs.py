"""The default image: a root file system built on the spot from the package registry, without mounting anything."""

from collections.abc import Mapping
from pathlib import Path

from vmm.errors import HostError, NotFoundError
from vmm.host import process
from vmm.host.reading import read_text
from vmm.images.packages import os_release
from vmm.images.sources import make_ext4
from vmm.images.tuning import tune
from vmm.model.progress import Progress
from vmm.model.value import Value

DEFAULT = "default"
# The size of a machine's disk unless told otherwise: machines of that size need not grow.
SIZE_MIB = 1024
_BUILD_S = 1800.0

# What someone who opens a shell expects to find, and no more: apt brings the rest.
_PACKAGES = (
    "openssh-server", "systemd-sysv", "udev", "dbus", "iproute2", "iputils-ping", "procps", "ca-certificates", "curl",
    "less", "vim-tiny", "e2fsprogs", "sudo",
)  # fmt: skip


class Recipe(Value):
    """What to build: a distribution's suite, from the sources of apt that this host has."""

    name: str
    distribution: str
    suite: str

    @property
    def source(self) -> str:
        return f"built from packages ({self.distribution} {self.suite})"


_RECIPES = {
    "debian-12": Recipe(name="debian-12", distribution="debian", suite="bookworm"),
    "debian-13": Recipe(name="debian-13", distribution="debian", suite="trixie"),
    "ubuntu-24.04": Recipe(name="ubuntu-24.04", distribution="ubuntu", suite="noble"),
}
_KEYRINGS = {
    "debian": Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    "ubuntu": Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
}


def recipe_names() -> tuple[str, ...]:
    """Return the names that `image pull` takes."""
    return (DEFAULT, *_RECIPES)


def recipe_for(name: str) -> Recipe:
    """Return the recipe of an image's name; `default` is this host's own distribution.

    Raises:
        NotFoundError: there is no such recipe.
        HostError: it cannot be built here, because its keyring is missing.
    """
    if name == DEFAULT:
        name = own_release(os_release())
    recipe = _RECIPES.get(name)
    if recipe is None:
        raise NotFoundError(
            f"There is no image {name!r} to pull.",
            details=f"Images that can be built: default, {', '.join(_RECIPES)}.",
            resolution="sudo vmm image pull; one of your own: sudo vmm image import PATH --name NAME",
        )
    keyring = _KEYRINGS[recipe.distribution]
    if not keyring.exists():
        raise HostError(
            f"The image {recipe.name!r} cannot be built on this host.",
            details=f"The keys that its packages are signed with are missing: {keyring}",
            resolution=f"sudo apt-get install {recipe.distribution}-keyring, or: sudo vmm image pull default",
        )
    return recipe


def own_release(release: Mapping[str, str]) -> str:
    """Return the recipe of this host's own release, or of the one that comes nearest to a host of another."""
    family = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    # What is made from Debian or Ubuntu says from which release (Mint, LMDE, Raspberry Pi OS).
    names = [release.get(key, "") for key in ("VERSION_CODENAME", "UBUNTU_CODENAME", "DEBIAN_CODENAME")]
    for recipe in _RECIPES.values():
        if recipe.suite in names:
            return recipe.name
    return "ubuntu-24.04" if "ubuntu" in family else "debian-12"


def build(recipe: Recipe, out: Path, *, work: Path, progress: Progress) -> None:
    """Build the image into `out`, by way of `work`: half a minute; needs root, mmdebstrap and the registry."""
    tree = work / "tree"
    with progress.step(f"Building {recipe.distribution} {recipe.suite} from packages"):
        argv = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(_PACKAGES)}",
            # The manual pages and translations of a minimal system are half of its files.
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            f"--keyring={_KEYRINGS[recipe.distribution]}",
            recipe.suite,
            str(tree),
            *_mirrors(recipe),
        ]
        process.run(argv, timeout_s=_BUILD_S, env={"TMPDIR": str(work), **process.proxies()})
    tune(tree)
    with progress.step("Making the file system"):
        make_ext4(tree, out, size_mib=SIZE_MIB)


def _mirrors(recipe: Recipe) -> list[str]:
    """Return this host's own sources of apt when they are of the recipe's distribution; else mmdebstrap's defaults.

    Whatever the host is configured to use works here too: a mirror, a proxy, a snapshot.
    """
    if os_release().get("VERSION_CODENAME") != recipe.suite:
        return []
    listed = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    own = [path for path in listed if path.is_file() and path.suffix in (".list", ".sources")]
    # Third parties' sources are not the distribution's; its own files are named after it or are the plain list.
    chosen = [path for path in own if path.name in ("sources.list", f"{recipe.distribution}.sources")]
    filled = [path for path in chosen if read_text(path, errors="replace").strip()]
    return [str(path) for path in filled]
