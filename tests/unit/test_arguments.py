"""Words of users' in the arguments of programs: what looks like an option is none, with the programs themselves."""

import ast
import subprocess
from pathlib import Path

import pytest

from vmm.cli.progress import Silent
from vmm.config import Config, Paths, load
from vmm.errors import ConfigError, UsageError
from vmm.host import process
from vmm.host.reading import read_bytes
from vmm.images import packages, sources
from vmm.images.packed import packing_of
from vmm.images.unpack import unpack
from vmm.model.names import valid_name, valid_user

SOURCE = Path(packages.__file__).parents[1]
ODD = ["-", "--", "-x", "-d", "--help", "-oProxyCommand=x", "a,b=c", "a b", "$(id)", "nbd:localhost:1", "#", "%s", "'"]


@pytest.mark.fault(48)
@pytest.mark.parametrize("name", ODD)
def test_no_word_of_a_users_is_an_option_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Given as the user gave it, from where they are: a directory, and a packed tar, of such a name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "inside").write_text("x")
    sources.make_ext4(Path(name), Path("out"), size_mib=None)
    listed = subprocess.run(["debugfs", "-R", "ls", "out"], capture_output=True, text=True, check=True)
    assert "inside" in listed.stdout
    for packer, ending in (("gzip", ".gz"), ("xz", ".xz"), ("bzip2", ".bz2"), ("zstd", ".zst")):
        packed = Path(name + ending)
        plain = subprocess.run(["tar", "-C", f"./{name}", "-c", "."], capture_output=True, check=True).stdout
        packed.write_bytes(subprocess.run([packer, "-q", "-c"], input=plain, capture_output=True, check=True).stdout)
        tree = tmp_path / f"tree{ending}"
        unpack(packed, packing_of(packed.read_bytes()[:16]), tree, progress=Silent())
        assert (tree / "inside").read_text() == "x"


@pytest.mark.fault(48)
def test_names_of_packages_stand_behind_the_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[list[str]] = []

    def run(argv: list[str], **_: object) -> process.Completed:
        ran.append(argv)
        return process.Completed(
            argv=tuple(argv), code=0, stdout="linux-image-x\n  Depends: linux-image-6.1\n", stderr=""
        )

    monkeypatch.setattr(packages.process, "run", run)
    packages.fetch_kernel("linux-image-x", tmp_path, progress=Silent())
    named = [argv for argv in ran if any(word.startswith("linux-image-") for word in argv)]
    assert named
    for argv in named:
        assert "--" in argv[: next(place for place, word in enumerate(argv) if word.startswith("linux-image-"))]


@pytest.mark.fault(48)
@pytest.mark.parametrize("name", ODD)
def test_names_and_users_begin_with_no_dash(name: str) -> None:
    for check in (valid_name, valid_user):
        with pytest.raises(UsageError):
            check(name)


@pytest.mark.fault(48)
@pytest.mark.parametrize("link", ['eth0" accept; #', "-eth0", "eth 0", "eth0\n", "x" * 16, "a{b}", "*", "$x", ""])
def test_a_links_name_adds_no_rule(tmp_path: Path, link: str) -> None:
    for key in ("bridge_name", "host_interface"):
        config = tmp_path / "config.toml"
        escaped = link.replace('"', '\\"').replace("\n", "\\n")
        config.write_text(f'{key} = "{escaped}"\n')
        if key == "host_interface" and not link:
            continue
        with pytest.raises(ConfigError, match="cannot be the name"):
            load(data_dir=tmp_path, file=config, read=read_bytes)


def test_a_configuration_file_is_known_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What vmm starts reads it too, in another directory, and not as an option."""
    monkeypatch.chdir(tmp_path)
    Path("-c.toml").write_text("")
    found = load(data_dir=Path("-d"), file=Path("-c.toml"), read=read_bytes)
    assert isinstance(found, Config)
    assert (found.file, found.paths) == (tmp_path / "-c.toml", Paths(data_dir=tmp_path / "-d"))


def test_one_module_starts_programs_and_none_by_a_shell() -> None:
    """Types of `subprocess` may be named anywhere, where only pyright imports it."""
    found: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for branch in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
            if ast.unparse(branch.test) == "TYPE_CHECKING":
                branch.body = []
        for node in ast.walk(tree):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            shell = isinstance(node, ast.keyword) and node.arg == "shell"
            if shell or name in ("os.system", "os.popen", "asyncio.create_subprocess_shell", "pty.spawn"):
                found.append(f"{path}:{node.lineno} by a shell")
            if path == SOURCE / "host" / "process.py":
                continue
            imported = isinstance(node, ast.Import) and any(alias.name == "subprocess" for alias in node.names)
            imported |= isinstance(node, ast.ImportFrom) and node.module == "subprocess"
            if imported or name.startswith(("os.exec", "os.spawn", "os.posix_spawn", "os.fork")):
                found.append(f"{path}:{node.lineno} {name or 'subprocess'}")
    assert found == []


# apt.conf(5), apt-get(8), apt-secure(8), sources.list(5), mmdebstrap(1): all that takes something without a signature.
UNCHECKED = (
    "unauthenticated",
    "insecure",
    "trusted=yes",
    "trusted: yes",
    "verify-peer",
    "check-gpg",
    "aptopt",
    "no-check",
)


def test_no_check_of_a_signature_is_switched_off() -> None:
    """Nothing that vmm gives apt or mmdebstrap takes what is not signed."""
    said = [
        (path, node.value)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert any("--keyring=" in text for _, text in said)
    assert [(path, text) for path, text in said if any(way in text.lower() for way in UNCHECKED)] == []
