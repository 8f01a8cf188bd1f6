"""`vmm image`."""

from pathlib import Path

import click

from vmm.cli.options import IMAGES, Command, FilePath, Group, Size, settings


@click.group("image", cls=Group)
def image_command() -> None:
    """Root file systems that machines are made from."""


@image_command.command("list", cls=Command)
@click.option("--remote", is_flag=True, help="What can be pulled.")
def list_(remote: bool) -> None:
    """List images."""
    from vmm.cli import render

    if remote:
        from vmm.images.rootfs import recipe_names

        render.texts(recipe_names(), settings().output)
        return
    library = settings().site(read_only=True).images
    render.images(library.all(), library.damaged(), settings().output)


@image_command.command("pull", cls=Command)
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Build it again and replace what is there.")
def pull(name: str | None, force: bool) -> None:
    """Build an image from the distribution's packages (default: this host's own distribution).

    Without NAME the default kernel comes with it, where there is none.
    """
    from vmm.app import require_root

    require_root("image pull")
    given = settings()
    site = given.site()
    before = {image.name for image in site.images.all()}
    image = site.images.pull(name, force=force, progress=given.progress())
    if image.name in before and not force:
        given.say(
            f"The image {image.name} is here already: {image.source}. Build it anew:"
            f" vmm image pull {image.name} --force"
        )
    else:
        given.say(f"The image {image.name} is here: {image.source}, {image.size_mib} MiB.")
    if name is None:
        kernel = site.kernels.pull(None, force=False, progress=given.progress())
        given.say(f"The kernel {kernel.name} is here: {kernel.version}, {kernel.source}.")


@image_command.command("import", cls=Command)
@click.argument("path", type=FilePath())
@click.option("--name", required=True, help="The image's name.")
@click.option("--size", type=Size(), help="The file system's size, for a directory or a tar [what it needs].")
@click.option("-f", "--force", is_flag=True, help="Replace an image of that name.")
def import_(path: Path, name: str, size: int | None, force: bool) -> None:
    """Import an ext4 image, a directory or a tar of a root file system."""
    from vmm.app import require_root
    from vmm.model import sizes

    require_root("image import")
    if size is not None:
        sizes.within(size, sizes.DISK_MIB, what="--size", unit=" MiB")
    progress = settings().progress()
    image = settings().site().images.import_path(path, name, size_mib=size, force=force, progress=progress)
    settings().say(f"The image {image.name} is here: {image.source}, {image.size_mib} MiB.")


@image_command.command("delete", cls=Command)
@click.argument("name", shell_complete=IMAGES)
def delete(name: str) -> None:
    """Delete an image that no machine was made from."""
    from vmm.app import require_root
    from vmm.model.names import valid_name
    from vmm.operations.libraries import delete_image

    require_root("image delete")
    delete_image(settings().site(), valid_name(name, what="image"))
    settings().say(f"The image {name} is deleted.")
