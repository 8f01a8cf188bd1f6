"""The NoCloud seed of cloud-init: a small disk labelled `cidata` with meta-data and user-data."""

import json
import shutil
from pathlib import Path

from vmm.errors import HostError
from vmm.host import files, process


def make_seed(out: Path, *, hostname: str, instance_id: str, user_data: Path) -> None:
    """Write the disk (ISO 9660, label `cidata`, as cloud-init's NoCloud source asks), mode 0600.

    Raises:
        HostError: xorriso is not on this host.
    """
    with files.staging_dir(out.parent, prefix=".cidata") as work:
        tree = files.make_dir(work / "tree", mode=0o700)
        # JSON is YAML, and needs no quoting rules of its own.
        (tree / "meta-data").write_text(json.dumps({"instance-id": instance_id, "local-hostname": hostname}))
        shutil.copyfile(user_data, tree / "user-data")
        argv = ["xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", str(work / "disk"), str(tree)]
        try:
            process.run(argv)
        except HostError as error:
            raise HostError(
                "The user data's disk cannot be made.", details=error.details, resolution="sudo apt-get install xorriso"
            ) from error
        (work / "disk").chmod(0o600)
        (work / "disk").replace(out)
