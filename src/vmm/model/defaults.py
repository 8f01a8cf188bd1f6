"""What a machine gets when its user does not say."""

from vmm.model.value import Value


class Defaults(Value):
    """What a machine gets when its user does not say. Sizes in MiB."""

    cpus: int
    memory_mib: int
    disk_mib: int
    image: str
    kernel: str
    ssh_key_path: str | None
    dns: tuple[str, ...]
    engine: str  # auto, firecracker or qemu
