"""`vmm image` and `vmm kernel`: what no machine uses may go."""

from __future__ import annotations

import contextlib

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, ImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.model.site import Site


def delete_image(site: Site, name: str) -> str:
    """Delete an image. Raises ConflictError while a machine was made from it."""
    with contextlib.suppress(ImageError):  # a damaged one is there to be deleted
        site.images.get(name)
    _refuse_used("image", name, site.store.users_of(image=name))
    site.images.delete(name)
    return name


def delete_kernel(site: Site, name: str) -> str:
    """Delete a kernel. Raises ConflictError while a machine boots it."""
    with contextlib.suppress(ImageError):
        site.kernels.get(name)
    _refuse_used("kernel", name, site.store.users_of(kernel=name))
    site.kernels.delete(name)
    return name


def _refuse_used(what: str, name: str, users: Sequence[str]) -> None:
    if users:
        shown = ", ".join(users[:5]) + (" ..." if len(users) > 5 else "")
        raise ConflictError(
            f"The {what} {name!r} is in use.",
            details=f"{len(users)} machine(s) use it: {shown}",
            resolution=f"Delete them first (vmm delete {users[0]}), or keep the {what}.",
        )
