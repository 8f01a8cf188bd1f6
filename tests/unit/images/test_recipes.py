"""Which image a host builds by default: that of its own release."""

import pytest

from vmm.images.rootfs import own_release


@pytest.mark.parametrize(
    ("release", "recipe"),
    [
        ({"ID": "debian", "VERSION_CODENAME": "bookworm"}, "debian-12"),
        ({"ID": "debian", "VERSION_CODENAME": "trixie"}, "debian-13"),
        ({"ID": "ubuntu", "VERSION_CODENAME": "noble", "ID_LIKE": "debian"}, "ubuntu-24.04"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian", "UBUNTU_CODENAME": "noble"}, "ubuntu-24.04"),
        ({"ID": "linuxmint", "ID_LIKE": "debian", "DEBIAN_CODENAME": "trixie"}, "debian-13"),
        ({"ID": "ubuntu", "VERSION_CODENAME": "jammy"}, "ubuntu-24.04"),
        ({"ID": "fedora"}, "debian-12"),
        ({}, "debian-12"),
    ],
)
def test_the_default_image_is_the_hosts_own_release(release: dict[str, str], recipe: str) -> None:
    assert own_release(release) == recipe
