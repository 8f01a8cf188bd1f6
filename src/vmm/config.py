"""The frozen configuration of one host: the only reader of environment variables and TOML.

Precedence: flag, then environment, then file, then built-in.
"""

from __future__ import annotations

import os
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import ConfigError, VmmError
from vmm.model.defaults import Defaults
from vmm.model.network import Subnet, checked_resolver, checked_subnet
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    # Returns the bytes of a file, or raises OSError; `host.reading.read_bytes`, which is above this floor.
    Read = Callable[[Path], bytes]

DATA_DIR = Path("/var/lib/vmm")
SUBNET = Subnet(cidr="172.16.0.0/16", gateway="172.16.0.1")
DEFAULTS = Defaults(
    cpus=1,
    memory_mib=512,
    disk_mib=1024,
    image="default",
    kernel="default",
    ssh_key_path=None,
    dns=(),
    engine="auto",
)
ENGINES = ("auto", "firecracker", "qemu")
# What one machine may have of the host's table of connections (nf_conntrack_max, 262144 on most hosts).
CONNECTIONS = 8192
# Each engine's user and group id: one of these, by its machine's address in the subnet. They lie where no distribution,
# container manager or systemd gives any out (systemd's UIDS-GIDS: 1879048192 to 2147483647 are unused).
UIDS = (1879048192, 1879113727)


class Paths(Value):
    """Where everything lies below the data directory."""

    data_dir: Path

    @property
    def config(self) -> Path:
        return self.data_dir / "config" / "config.toml"

    @property
    def machines(self) -> Path:
        return self.data_dir / "vms"

    @property
    def kernels(self) -> Path:
        return self.data_dir / "images" / "kernels"

    @property
    def images(self) -> Path:
        return self.data_dir / "images" / "rootfs"

    @property
    def sockets(self) -> Path:
        return self.data_dir / "sockets"

    @property
    def logs(self) -> Path:
        return self.data_dir / "logs"

    @property
    def state(self) -> Path:
        return self.data_dir / "state"

    @property
    def database(self) -> Path:
        return self.state / "vmm.db"

    @property
    def locks(self) -> Path:
        return self.state / "locks"

    @property
    def supervisor(self) -> Path:
        return self.state / "supervisor.lock"

    @property
    def jails(self) -> Path:
        return self.data_dir / "jails"

    @property
    def ssh(self) -> Path:
        return self.data_dir / "ssh"

    @property
    def engines(self) -> Path:
        return self.data_dir / "bin"

    @property
    def staging(self) -> Path:
        """Long work happens here, on the same file system as its destination, and is renamed when whole."""
        return self.data_dir / "staging"


class Config(Value):
    """One host's configuration. `firecracker` and `qemu` are paths of the programs; empty means found by vmm."""

    paths: Paths
    file: Path
    bridge_name: str = "vmm-br0"
    subnet: Subnet = SUBNET
    host_interface: str | None = None
    allowed_networks: tuple[str, ...] = ()
    max_connections: int = CONNECTIONS
    firecracker: str = ""
    qemu: str = ""
    firecracker_url: str = ""
    uids: tuple[int, int] = UIDS
    socket_group: str = ""
    defaults: Defaults = DEFAULTS


# Every key of the file, with the type of its value; `vmm config set` writes no other.
KEYS: Mapping[str, type] = {
    "data_dir": str,
    "bridge_name": str,
    "subnet": str,
    "gateway": str,
    "host_interface": str,
    "allowed_networks": list,
    "max_connections": int,
    "firecracker": str,
    "firecracker_url": str,
    "qemu": str,
    "uid_range": str,
    "socket_group": str,
    "vm_defaults.cpus": int,
    "vm_defaults.memory_mb": int,
    "vm_defaults.disk_size_mb": int,
    "vm_defaults.image": str,
    "vm_defaults.kernel": str,
    "vm_defaults.ssh_key_path": str,
    "vm_defaults.dns_servers": list,
    "vm_defaults.engine": str,
}


_KIND_NAMES = {
    str: 'a text in quotes, such as "text"',
    int: "a whole number",
    list: 'a list of texts, such as ["a", "b"]',
}


def load(*, read: Read, data_dir: Path | None = None, file: Path | None = None) -> Config:
    """Read the configuration. `data_dir` and `file` are the flags; None leaves it to the environment and the defaults.

    `read` reads the file: boundedly, and without waiting for what is no plain file.

    Raises:
        ConfigError: the file cannot be read or parsed, has an unknown key, or a value that cannot be right.
    """
    environment = os.environ
    chosen = data_dir or _path(environment.get("VMM_DATA_DIR")) or DATA_DIR
    # Absolute: what vmm starts in another directory reads it too.
    path = _whole(file or file_of(data_dir=data_dir), "the configuration file")
    values = _read(path, read, must_exist=bool(file or environment.get("VMM_CONFIG")))
    if data_dir is None and not environment.get("VMM_DATA_DIR") and "data_dir" in values:
        chosen = Path(str(values["data_dir"]))
    return _checked(Paths(data_dir=_whole(chosen, "the data directory")), path, values)


def file_of(*, data_dir: Path | None = None) -> Path:
    """Return the path of the configuration file that `load` would read."""
    environment = os.environ
    chosen = data_dir or _path(environment.get("VMM_DATA_DIR")) or DATA_DIR
    return _path(environment.get("VMM_CONFIG")) or Paths(data_dir=chosen).config


def values_of(config: Config) -> dict[str, object]:
    """Return the configuration in force, under the keys of its file."""
    defaults = config.defaults
    return {
        "data_dir": str(config.paths.data_dir),
        "bridge_name": config.bridge_name,
        "subnet": config.subnet.cidr,
        "gateway": config.subnet.gateway,
        "host_interface": config.host_interface or "",
        "allowed_networks": list(config.allowed_networks),
        "max_connections": config.max_connections,
        "firecracker": config.firecracker,
        "firecracker_url": config.firecracker_url,
        "qemu": config.qemu,
        "uid_range": f"{config.uids[0]}-{config.uids[1]}",
        "socket_group": config.socket_group,
        "vm_defaults.cpus": defaults.cpus,
        "vm_defaults.memory_mb": defaults.memory_mib,
        "vm_defaults.disk_size_mb": defaults.disk_mib,
        "vm_defaults.image": defaults.image,
        "vm_defaults.kernel": defaults.kernel,
        "vm_defaults.ssh_key_path": defaults.ssh_key_path or "",
        "vm_defaults.dns_servers": list(defaults.dns),
        "vm_defaults.engine": defaults.engine,
    }


def _whole(path: Path, what: str) -> Path:
    if path.is_absolute() and str(path).isprintable():
        return path
    from vmm.config_trouble import whole

    return whole(path, what=what)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _read(path: Path, read: Read, *, must_exist: bool) -> dict[str, object]:
    try:
        content = read(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not must_exist:
            return {}
        from vmm.config_trouble import told

        raise told(path, error, named=must_exist) from error
    # Most hosts have no file, and reading a command's configuration must not cost them the parser.
    from vmm.config_trouble import parsed, told

    tables = parsed(path, content, named=must_exist)
    try:
        return _flatten(tables, path)
    except RecursionError as error:
        raise told(path, error, named=must_exist) from error


def _flatten(table: Mapping[str, object], path: Path, prefix: str = "") -> dict[str, object]:
    from vmm import config_trouble
    from vmm.model import words

    flat: dict[str, object] = {}
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict):
            flat.update(_flatten(value, path, name + "."))  # pyright: ignore[reportUnknownArgumentType]  # TOML tables
            continue
        expected = KEYS.get(name)
        if expected is None:
            raise ConfigError(
                f"The configuration file {path} has an unknown key {words.quoted(name)}.",
                details=f"Known keys: {', '.join(KEYS)}.",
                resolution=f"Take it out of {path}.",
            )
        if config_trouble.is_too_large(value):
            raise config_trouble.too_large(path, name)
        if not _is_of(expected, value):
            raise config_trouble.wrong_kind(path, name, value, needed=_KIND_NAMES[expected])
        flat[name] = value
    return flat


def _is_of(kind: type, value: object) -> bool:
    """Whether a value of TOML is of this type; its lists hold texts alone, and a flag is no number."""
    return type(value) is kind and (kind is not list or all(isinstance(item, str) for item in value))  # pyright: ignore[reportUnknownVariableType, reportGeneralTypeIssues]  # TOML list


def _checked(paths: Paths, file: Path, values: Mapping[str, object]) -> Config:
    if not values:
        return Config(paths=paths, file=file)
    try:
        _check_texts(values)
        return Config(
            paths=paths,
            file=file,
            bridge_name=_text(values, "bridge_name") or "vmm-br0",
            subnet=_subnet(values),
            host_interface=_text(values, "host_interface") or None,
            allowed_networks=_networks(values),
            max_connections=_connections(values),
            firecracker=_text(values, "firecracker"),
            qemu=_text(values, "qemu"),
            firecracker_url=_text(values, "firecracker_url"),
            uids=_uids(_text(values, "uid_range")),
            socket_group=_text(values, "socket_group"),
            defaults=_defaults(values),
        )
    except VmmError as error:
        raise ConfigError(f"{file}: {error.brief}", details=error.details, resolution=error.resolution) from error


def _text(values: Mapping[str, object], key: str) -> str:
    return str(values.get(key, ""))


def _networks(values: Mapping[str, object]) -> tuple[str, ...]:
    if not values.get("allowed_networks"):
        return ()
    from vmm.model.network import checked_networks

    named = values["allowed_networks"]
    return checked_networks([str(network) for network in named])  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType, reportGeneralTypeIssues]  # TOML list


def _connections(values: Mapping[str, object]) -> int:
    number = values.get("max_connections", CONNECTIONS)
    assert isinstance(number, int)  # noqa: S101  # _flatten has checked the type
    if 16 <= number <= 1048576:
        return number
    raise ConfigError(
        f"A machine cannot have {number} connections at most.",
        details="max_connections is a number from 16 to 1048576.",
        resolution=f"sudo vmm config set max_connections {CONNECTIONS}",
    )


def _check_texts(values: Mapping[str, object]) -> None:
    """Raise VmmError for a name, a path or an address that can never be right; an empty one is as none."""
    from vmm.model import names

    for key in ("data_dir", "firecracker", "qemu", "vm_defaults.ssh_key_path"):
        if _text(values, key) or (key == "data_dir" and key in values):
            names.valid_path(_text(values, key), what=key, absolute=True)
    if "bridge_name" in values:
        names.valid_link(_text(values, "bridge_name"), what="bridge", own=True)
    if _text(values, "host_interface"):
        names.valid_link(_text(values, "host_interface"), what="host's interface")
    for what in ("image", "kernel"):
        if f"vm_defaults.{what}" in values:
            names.valid_name(_text(values, f"vm_defaults.{what}"), what=what)
    if _text(values, "socket_group"):
        names.valid_user(_text(values, "socket_group"), what="group")
    if _text(values, "firecracker_url"):
        names.valid_url(_text(values, "firecracker_url"), what="firecracker_url")


def _uids(text: str) -> tuple[int, int]:
    if not text:
        return UIDS
    from vmm.model.sizes import parse_whole
    from vmm.model.words import quoted

    first, _, last = text.partition("-")
    low, high = parse_whole(first), parse_whole(last)
    # A user id has 32 bits, and the last of them means "none" (setuid(2)).
    if low is not None and high is not None and 1000 <= low <= high < 2**32 - 1:
        return low, high
    raise ConfigError(
        f"{quoted(text)} is no range of user ids.",
        details=f"uid_range is FIRST-LAST, two numbers from 1000 to {2**32 - 2}.",
        resolution=f"sudo vmm config set uid_range {UIDS[0]}-{UIDS[1]}",
    )


def _subnet(values: Mapping[str, object]) -> Subnet:
    if "subnet" not in values and "gateway" not in values:
        return SUBNET
    return checked_subnet(_text(values, "subnet") or SUBNET.cidr, _text(values, "gateway"))


def _defaults(values: Mapping[str, object]) -> Defaults:
    if not any(key.startswith("vm_defaults.") for key in values):
        return DEFAULTS
    from vmm.model import sizes

    def number(key: str, default: int, bounds: tuple[int, int]) -> int:
        value = values.get(f"vm_defaults.{key}", default)
        assert isinstance(value, int)  # noqa: S101  # _flatten has checked the type
        return sizes.within(value, bounds, what=f"vm_defaults.{key}")

    def text(key: str, default: str) -> str:
        return str(values.get(f"vm_defaults.{key}", default))

    servers = values.get("vm_defaults.dns_servers", [])
    engine = text("engine", "auto")
    if engine not in ENGINES:
        from vmm.model.words import quoted

        raise ConfigError(
            f"There is no engine {quoted(engine)}.",
            details=f"vm_defaults.engine is one of {', '.join(ENGINES)}.",
            resolution="sudo vmm config set vm_defaults.engine auto",
        )
    return Defaults(
        cpus=number("cpus", DEFAULTS.cpus, sizes.CPUS),
        memory_mib=number("memory_mb", DEFAULTS.memory_mib, sizes.MEMORY_MIB),
        disk_mib=number("disk_size_mb", DEFAULTS.disk_mib, sizes.DISK_MIB),
        image=text("image", DEFAULTS.image),
        kernel=text("kernel", DEFAULTS.kernel),
        ssh_key_path=text("ssh_key_path", "") or None,
        dns=tuple(checked_resolver(str(server)) for server in servers),  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType, reportGeneralTypeIssues]  # TOML list
        engine=engine,
    )
