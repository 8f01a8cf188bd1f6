"""`vmm config`: the file is changed as a whole, and only by what can be read back."""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from vmm import config as configuration
from vmm import config_trouble
from vmm.app import HostSite
from vmm.config import KEYS, Config, Paths
from vmm.errors import ConfigError, ConflictError, NetworkError, UsageError
from vmm.host import accounts, files
from vmm.host.reading import read_bytes
from vmm.model.machine import Machine
from vmm.model.sizes import parse_mib, parse_whole
from vmm.model.words import quoted

_MOST_TOLD = 4
_LOCK_S = 30.0
_OF_NETWORK = {"subnet", "gateway", "bridge_name"}
_SIZES = {"vm_defaults.memory_mb", "vm_defaults.disk_size_mb"}
_HEAD = "# The configuration of vmm on this host. Keys: vmm config show; change one: sudo vmm config set KEY VALUE\n"


def make_directories(paths: Paths) -> None:
    """Make the data directory and what lies in it; what is there stays."""
    files.refuse_unsafe(paths.data_dir)
    for directory in (paths.data_dir, paths.config.parent, paths.machines, paths.kernels, paths.images, paths.logs):
        files.make_dir(directory)
    for directory in (paths.sockets, paths.ssh, paths.staging):
        files.make_dir(directory, mode=0o700)
    files.make_dir(paths.state)


def make_file(path: Path) -> bool:
    """Make a configuration file that sets nothing; False when there was one, which stays."""
    if os.path.lexists(path):
        return False
    if not path.parent.is_dir():
        files.make_dir(path.parent)
    files.write_atomic(path, _HEAD)
    return True


def initialise(*, data_dir: Path | None = None, config_file: Path | None = None) -> tuple[Path, bool]:
    """Make the directories and the configuration file; return its path, and whether it was made.

    Raises:
        ConfigError: there is one, and it cannot be used; it stays as it is.
    """
    path = config_trouble.whole(config_file or configuration.file_of(data_dir=data_dir), what="the configuration file")
    if config_file is None:
        files.refuse_unsafe(path.parent)
    made = make_file(path)
    make_directories(configuration.load(read=read_bytes, data_dir=data_dir, file=config_file).paths)
    return path, made


def set_config(changes: Mapping[str, str], *, data_dir: Path | None = None, config_file: Path | None = None) -> Path:
    """Set keys, keeping the file's comments and order; return the file's path.

    Raises:
        UsageError: there is no such key, or the value is of the wrong kind.
        ConfigError: the file cannot be read, or would not be right with the change; it is then left as it was.
    """
    # What can never be right makes no directory and waits for no one.
    values = {key: _value(key, text) for key, text in changes.items()}
    path = _file(data_dir, config_file)
    lock = path.with_name(f".{path.name}.lock")
    with files.locked(lock, what=f"the configuration file {path}", timeout_s=_LOCK_S):
        try:
            _set(path, values, data_dir)
        finally:
            # Whoever waits for it looks whether it still has its name.
            lock.unlink(missing_ok=True)
    return path


def _set(path: Path, changes: Mapping[str, object], data_dir: Path | None) -> None:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        text = _text(path)
        document = tomlkit.parse(text) if text else tomlkit.document()
    except (TOMLKitError, OSError, RecursionError) as error:
        raise config_trouble.told(path, error, named=True) from error
    for key, value in changes.items():
        table, _, name = key.rpartition(".")
        target = document.setdefault(table, tomlkit.table()) if table else document
        if not isinstance(target, MutableMapping):
            raise ConfigError(
                f"The configuration file {path} has a key {table!r} that is no table.",
                details=f"It is {quoted(target)}.",
                resolution=f"Take the line out of {path}, then give the command again.",
            )
        target[name] = value
    draft = path.with_name(f".{path.name}.draft")
    try:
        files.write_atomic(draft, tomlkit.dumps(document))
        checked = _check(draft, path, data_dir)
        if "uid_range" in changes:
            accounts.refuse_taken(checked.uids, everyone=True)
            _refuse_while_engines_run(path, checked, data_dir)
        if _OF_NETWORK & changes.keys():
            _refuse_moving(checked)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _text(path: Path) -> str:
    """Return what the file holds, nothing where there is none; ConfigError for what the parser is not to be given."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return ""
    config_trouble.parsed(path, content, named=True)
    return content.decode()


def _check(draft: Path, path: Path, data_dir: Path | None) -> Config:
    """Return what the file that is to be says, or raise ConfigError; it is named as the one that it would become."""
    try:
        return configuration.load(read=read_bytes, data_dir=data_dir, file=draft)
    except ConfigError as error:
        parts = (part.replace(str(draft), str(path)) for part in (error.brief, error.details, error.resolution))
        brief, details, resolution = parts
        raise ConfigError(brief, details=details, resolution=resolution) from error


def _refuse_while_engines_run(path: Path, wanted: Config, data_dir: Path | None) -> None:
    """Refuse another range of user ids while engines run: they are known by the range that they were started in.

    Raises:
        ConflictError: there are such engines.
    """
    try:
        now = configuration.load(read=read_bytes, data_dir=data_dir, file=path if path.exists() else None)
    except ConfigError:
        return
    site = HostSite(now, read_only=True)
    if now.uids == wanted.uids or not (running := _running(site)):
        return
    raise ConflictError(
        "Machines run with user ids of the range that this would change.",
        details=f"{', '.join(running[:_MOST_TOLD])}. vmm would not know their engines any more.",
        resolution="Nothing was changed. Stop them first: sudo vmm stop --all",
    )


def _running(site: HostSite) -> list[str]:
    """Return the names of machines that run, recorded or not."""
    recorded = [record.name for record in site.store.machines(live=True)]
    return recorded + [f"{stray.name} (of no record)" for stray in site.strays()]


def _refuse_moving(wanted: Config) -> None:
    """Refuse another network for machines that could not be on it: those with addresses, and those that run.

    Raises:
        ConflictError: there are such machines.
    """
    site = HostSite(wanted, read_only=True)
    machines = [record for record in site.store.machines() if isinstance(record, Machine)]
    subnet = wanted.subnet
    strangers = [each for each in machines if not subnet.holds(each.lease.address)]
    if strangers:
        held = ", ".join(f"{each.name} ({each.lease.address})" for each in strangers[:_MOST_TOLD])
        more = f" and {len(strangers) - _MOST_TOLD} more" if len(strangers) > _MOST_TOLD else ""
        raise ConflictError(
            f"Machines hold addresses that {subnet.cidr} with the gateway {subnet.gateway} has not.",
            details=f"{held}{more}. An address stays with its machine until the machine is deleted.",
            resolution="Nothing was changed. Choose a subnet that has their addresses, or delete them, and their disks"
            " with them: sudo vmm delete NAME",
        )
    try:
        site.network.refuse_moved()
    except NetworkError as error:
        raise ConflictError(
            "Machines run on the network that this would change.",
            details=f"{error.brief} {error.details}",
            resolution="Nothing was changed. Stop them first: sudo vmm stop --all",
        ) from error


def _file(data_dir: Path | None, config_file: Path | None) -> Path:
    if config_file is not None:
        return config_file
    try:
        return configuration.load(read=read_bytes, data_dir=data_dir).file
    except ConfigError:
        # A value in it may be wrong, which is what `set` is there to mend.
        return configuration.file_of(data_dir=data_dir)


def _value(key: str, text: str) -> object:
    kind = KEYS.get(key)
    if kind is None:
        raise UsageError(
            f"There is no key {quoted(key)}.",
            details=f"Keys: {', '.join(KEYS)}.",
            resolution="See them: vmm config show",
        )
    if key in _SIZES:
        return parse_mib(text)
    if kind is int:
        number = parse_whole(text)
        if number is None:
            raise _wrong(key, text, "a whole number is needed")
        return number
    if not text.isprintable():
        raise _wrong(key, text, "a text of printable characters is needed")
    if kind is list:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _wrong(key: str, text: str, why: str) -> UsageError:
    return UsageError(
        f"{quoted(text)} cannot be the value of {key}.",
        details=f"For {key} {why}.",
        resolution=f"sudo vmm config set {key} VALUE",
    )
