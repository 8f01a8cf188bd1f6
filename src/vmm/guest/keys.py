"""SSH keys: vmm's own, and one host key a machine. Made by the system's ssh-keygen; Ed25519 throughout."""

from __future__ import annotations

import contextlib
import os

from vmm import TYPE_CHECKING
from vmm.errors import HostError, UsageError
from vmm.host import files, process
from vmm.host.reading import read_text
from vmm.model.value import Value

if TYPE_CHECKING:
    from pathlib import Path

_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
# What is looked through of a user's home, and read of each file there.
_MOST_KEYS = 100
_KEY_BYTES = 16 * 1024
# An agent that asks its user whether it may list keys is no use here.
_AGENT_S = 5.0
PublicKey = tuple[str, str]


class ManagedKey(Value):
    """The key pair that vmm reaches every machine with: `DIRECTORY/vmm_ed25519`, readable by its owner only."""

    directory: Path

    @property
    def private(self) -> Path:
        return self.directory / "vmm_ed25519"

    def public_key(self) -> str:
        """Return the public key's line; the pair is made when it is not there."""
        public = self.private.with_suffix(".pub")
        if not public.exists():
            files.make_dir(self.directory, mode=0o700)
            # Two first starts at once must not make two pairs.
            with files.locked(self.directory / ".lock", what="vmm's ssh key", timeout_s=30.0):
                if not public.exists():
                    make_key(self.private, comment="vmm")
        return read_text(public).strip()


def make_key(path: Path, *, comment: str = "vmm host key") -> None:
    """Write a new key pair to `path` and `path.pub`: the private one 0600; both appear whole."""
    with files.staging_dir(path.parent, prefix=".key") as staging:
        process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(staging / "key")])
        (staging / "key").chmod(0o600)
        (staging / "key").replace(path)
        (staging / "key.pub").replace(path.with_suffix(".pub"))


def checked_public_key(text: str, *, source: str) -> str:
    """Return the one public key in `text`; raise UsageError when it is none, and never quote a private one."""
    line = text.strip()
    parts = line.split()
    if "PRIVATE KEY" in text:
        raise UsageError(
            f"{source} is a private key.",
            details="A machine is given public keys only; the private one stays with you.",
            resolution="Give the file that ends in .pub.",
        )
    if not line.isprintable() or len(parts) < 2 or parts[0] not in _TYPES or not _is_blob(parts[1], parts[0]):
        raise UsageError(
            f"{source} is not an ssh public key.",
            details="A public key is one line: its type (such as ssh-ed25519), the key, and a comment.",
            resolution="Give the .pub file of your key; ssh-keygen -t ed25519 makes one.",
        )
    return line


def private_keys(published: Path) -> dict[PublicKey, Path]:
    """Return the private keys of the user who asks: a file of each, by the public one.

    Those of their home as they are. Of those that only their agent has, the public one, if it is in `published`.
    """
    from pathlib import Path

    agents = _agents_keys()
    found: dict[PublicKey, Path] = {}
    with contextlib.suppress(OSError, RuntimeError):
        for public in sorted(published.glob("*.pub"))[:_MOST_KEYS]:
            if (key := _public_key(public)) in agents:
                found[key] = public
        for public in sorted((Path.home() / ".ssh").glob("*.pub"))[:_MOST_KEYS]:
            private = public.with_suffix("")
            if os.access(private, os.R_OK) and private.is_file():
                found[_public_key(public)] = private
    return found


def _agents_keys() -> set[PublicKey]:
    """Return the public keys that the user's agent holds; none where there is no agent, or none that answers."""
    socket = os.environ.get("SSH_AUTH_SOCK")
    if not socket:
        return set()
    try:
        listed = process.run(["ssh-add", "-L"], env={"SSH_AUTH_SOCK": socket}, timeout_s=_AGENT_S, check=False)
    except HostError:
        return set()
    return {in_line(line) for line in listed.stdout.splitlines()} if listed.code == 0 else set()


def _public_key(path: Path) -> PublicKey:
    """Return the key in a file, whatever that is: an empty one where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as stream:
            return in_line(stream.read(_KEY_BYTES).decode(errors="replace"))
    except OSError:
        return ("", "")


def in_line(line: str) -> PublicKey:
    """Return type and text of a public key's line, without its comment."""
    kind, _, rest = line.strip().partition(" ")
    return kind, rest.strip().partition(" ")[0]


def _is_blob(text: str, kind: str) -> bool:
    """Whether this is the base64 of a key of that type, whose name it begins with (RFC 4253, 6.6)."""
    import base64
    import binascii

    name = len(kind).to_bytes(4, "big") + kind.encode()
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(blob) > len(name) + 16 and blob.startswith(name)
