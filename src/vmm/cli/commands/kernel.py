"""`vmm kernel`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmm.cli.options import KERNELS, Command, FilePath, Group, settings
from vmm.cli.output import complain

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.model.image import Kernel


@click.group("kernel", cls=Group)
def kernel_command() -> None:
    """Kernels that machines boot."""


@kernel_command.command("list", cls=Command)
@click.option("--remote", is_flag=True, help="What can be pulled.")
def list_(remote: bool) -> None:
    """List kernels."""
    from vmm.cli import render

    if remote:
        from vmm.images.packages import cloud_kernel

        found = [f"default ({cloud_kernel()})", "linux-image-VERSION (a package of this host's distribution, by name)"]
        render.texts(found, settings().output)
        return
    library = settings().site(read_only=True).kernels
    render.kernels(library.all(), library.damaged(), settings().output)


@kernel_command.command("pull", cls=Command)
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Fetch it again and replace what is there.")
def pull(name: str | None, force: bool) -> None:
    """Fetch a kernel from the distribution's packages (default: its own cloud kernel)."""
    from vmm.app import require_root

    require_root("kernel pull")
    given = settings()
    site = given.site()
    before = {kernel.name for kernel in site.kernels.all()}
    kernel = site.kernels.pull(name, force=force, progress=given.progress())
    if kernel.name in before and not force:
        given.say(
            f"The kernel {kernel.name} is here already: {kernel.version}. Fetch it anew:"
            f" vmm kernel pull {kernel.name} --force"
        )
    else:
        given.say(f"The kernel {kernel.name} is here: {kernel.version}, {kernel.source}.")
    _warn(kernel)


@kernel_command.command("import", cls=Command)
@click.argument("path", type=FilePath())
@click.option("--name", required=True, help="The kernel's name.")
@click.option("--modules", type=FilePath(), help="Its modules: /lib/modules/VERSION.")
@click.option("--no-stage1", is_flag=True, help="It finds its root on /dev/vda and its address by itself.")
@click.option("-f", "--force", is_flag=True, help="Replace a kernel of that name.")
def import_(path: Path, name: str, modules: Path | None, no_stage1: bool, force: bool) -> None:
    """Import a vmlinux or a bzImage."""
    from vmm.app import require_root

    require_root("kernel import")
    kernel = (
        settings()
        .site()
        .kernels.import_path(
            path, name, modules=modules, stage1=not no_stage1, force=force, progress=settings().progress()
        )
    )
    settings().say(f"The kernel {kernel.name} is here: {kernel.version}.")
    _warn(kernel)


def _warn(kernel: Kernel) -> None:
    if kernel.lacking:
        complain(
            f"Warning: of its machines' ends the kernel {kernel.name} does not say all: {'; '.join(kernel.lacking)}."
            " Where vmm's own hook is not there to say it (an init other than systemd), such a machine may be listed as"
            " running after its guest has ended; vmm stop ends it."
        )


@kernel_command.command("delete", cls=Command)
@click.argument("name", shell_complete=KERNELS)
def delete(name: str) -> None:
    """Delete a kernel that no machine boots."""
    from vmm.app import require_root
    from vmm.model.names import valid_name
    from vmm.operations.libraries import delete_kernel

    require_root("kernel delete")
    delete_kernel(settings().site(), valid_name(name, what="kernel"))
    settings().say(f"The kernel {name} is deleted.")
