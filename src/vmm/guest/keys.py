"""SSH keys: vmm's own, and one host key a machine. Made by the system's ssh-keygen; Ed25519 throughout."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import UsageError
from vmm.host import files, process
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
        return public.read_text(encoding="ascii").strip()


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
    if "\n" in line or len(parts) < 2 or parts[0] not in _TYPES or not _is_base64(parts[1]):
        raise UsageError(
            f"{source} is not an ssh public key.",
            details="A public key is one line: its type (such as ssh-ed25519), the key, and a comment.",
            resolution="Give the .pub file of your key; ssh-keygen -t ed25519 makes one.",
        )
    return line


def _is_base64(text: str) -> bool:
    import base64
    import binascii

    try:
        return len(base64.b64decode(text, validate=True)) > 16
    except (binascii.Error, ValueError):
        return False
