"""The verbs of the truth table: what each begins with, and what may be said when it is repeated."""

from dataclasses import dataclass
from enum import StrEnum

NAME = "{name}"
# What a verb is given; fault_stock makes these files.
FIRECRACKER, KERNEL, IMAGE, TAR, USER_DATA, KEY = (
    "{firecracker}", "{kernel}", "{image}", "{tar}", "{user_data}", "{key}",
)  # fmt: skip
SMALL = ("--kernel", "tiny", "--image", "tiny", "--disk", "256", "--memory", "128", "--engine", "firecracker")
FORWARD = "127.0.0.1:18080:80"


class Ground(StrEnum):
    """What is there before: the data directory, and whether a machine runs."""

    BARE = "nothing at all"
    SET_UP = "Firecracker, a kernel and an image"
    EMPTY = "the same, and a database"
    LIBRARY = "the same, and another kernel and image that no machine uses"
    CREATED = "a machine that never ran, with a forward, a seed disk and a disk that has grown"
    STOPPED = "a machine that ran once, with a forward"
    RUNNING = "the same, running"


@dataclass(frozen=True)
class Verb:
    """One row of the table.

    `done`: what a repetition may say instead of doing it (exit code 1), because it is done. `cold`: bridge and firewall
    are not there. `leaves_running`: whatever happens, a machine that runs goes on running. `since`: vmm's own
    supervisor is started too, and the table begins at this boundary; elsewhere the table holds the supervisor's place.
    `may_fail`: where nothing at all could be recorded, an engine that is gone is all that is left to be seen.
    """

    title: str
    argv: tuple[str, ...]
    ground: Ground
    done: str | None = None
    cold: bool = False
    leaves_running: bool = False
    since: str | None = None
    may_fail: bool = False

    @property
    def is_watched(self) -> bool:
        return self.since is not None


VERBS = (
    Verb("create", ("create", NAME, *SMALL), Ground.SET_UP, done=r"There is a machine '\S+' already"),
    Verb(
        "create with user data, key and label",
        ("create", NAME, *SMALL, "--user-data", USER_DATA, "--ssh-key", KEY, "--label", "a=b"),
        Ground.EMPTY,
        done=r"There is a machine '\S+' already",
    ),
    Verb("start, the host's first", ("start", NAME), Ground.CREATED, cold=True),
    Verb("start", ("start", NAME), Ground.STOPPED),
    Verb("start, and the supervisor", ("start", NAME), Ground.STOPPED, since="open logs/supervisor.log"),
    Verb("stop", ("stop", NAME, "--timeout", "0.3"), Ground.RUNNING, may_fail=True),
    Verb("stop --force", ("stop", NAME, "--force"), Ground.RUNNING, may_fail=True),
    Verb("restart --force", ("restart", NAME, "--force"), Ground.RUNNING),
    Verb("delete", ("delete", NAME), Ground.STOPPED, done=r"There is no machine '\S+'"),
    Verb("delete --force", ("delete", NAME, "--force"), Ground.RUNNING, done=r"There is no machine '\S+'"),
    Verb("set --memory", ("set", NAME, "--memory", "256"), Ground.STOPPED),
    Verb("set --disk", ("set", NAME, "--disk", "300"), Ground.STOPPED),
    Verb("set --label", ("set", NAME, "--label", "a=b"), Ground.RUNNING, leaves_running=True),
    Verb(
        "port-forward add",
        ("port-forward", "add", NAME, "18081:81"),
        Ground.STOPPED,
        done=r"forwarded already.*It leads to the machine",
    ),
    Verb(
        "port-forward add, running",
        ("port-forward", "add", NAME, "18081:81"),
        Ground.RUNNING,
        done=r"forwarded already.*It leads to the machine",
        leaves_running=True,
    ),
    Verb("port-forward remove", ("port-forward", "remove", NAME, FORWARD), Ground.STOPPED, done=r"has no forward"),
    Verb(
        "port-forward remove, running",
        ("port-forward", "remove", NAME, FORWARD),
        Ground.RUNNING,
        done=r"has no forward",
        leaves_running=True,
    ),
    Verb(
        "image import of a file",
        ("image", "import", IMAGE, "--name", "other"),
        Ground.SET_UP,
        done=r"There is an image 'other' already",
    ),
    Verb(
        "image import of a tar",
        ("image", "import", TAR, "--name", "other"),
        Ground.SET_UP,
        done=r"There is an image 'other' already",
    ),
    Verb("image import --force", ("image", "import", IMAGE, "--name", "other", "--force"), Ground.LIBRARY),
    Verb("image delete", ("image", "delete", "other"), Ground.LIBRARY, done=r"There is no image 'other'"),
    Verb("image pull", ("image", "pull"), Ground.SET_UP, done=r"There is an image 'default' already"),
    Verb(
        "kernel import",
        ("kernel", "import", KERNEL, "--name", "other", "--no-stage1"),
        Ground.SET_UP,
        done=r"There is a kernel 'other' already",
    ),
    Verb("kernel delete", ("kernel", "delete", "other"), Ground.LIBRARY, done=r"There is no kernel 'other'"),
    Verb("kernel pull", ("kernel", "pull"), Ground.SET_UP, done=r"There is a kernel 'default' already"),
    Verb(
        "setup, the host's first",
        ("setup", "--no-kernel", "--no-image", "--firecracker", FIRECRACKER),
        Ground.BARE,
        cold=True,
    ),
    Verb("setup, again", ("setup", "--no-kernel", "--no-image"), Ground.SET_UP),
    Verb(
        "setup --force",
        ("setup", "--no-kernel", "--no-image", "--firecracker", FIRECRACKER, "--force"),
        Ground.SET_UP,
    ),
)
