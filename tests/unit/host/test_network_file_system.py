"""A data directory that two hosts could share is refused, whatever it is mounted as."""

from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.host import files
from vmm.storage.store import SqliteStore

TABLE = """\
/dev/vda / ext4 rw 0 0
server:/export /srv/nfs nfs4 rw 0 0
tmpfs /srv/nfs/local tmpfs rw 0 0
//server/share /mnt/a\\040share cifs rw 0 0
host:/ /home/me/far fuse.sshfs rw 0 0
"""


@pytest.mark.fault(35)
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/vmm", None),
        ("/srv/nfs/vmm", "nfs4"),
        ("/srv/nfs", "nfs4"),
        ("/srv/nfsother", None),
        ("/srv/nfs/local/vmm", None),
        ("/mnt/a share/vmm/state", "cifs"),
        ("/home/me/far/away", "fuse.sshfs"),
    ],
)
def test_what_a_path_lies_on(tmp_path: Path, path: str, kind: str | None) -> None:
    table = tmp_path / "mounts"
    table.write_text(TABLE)
    assert files.network_file_system(Path(path), table) == kind


@pytest.mark.fault(35)
def test_no_database_is_made_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "network_file_system", lambda path: "nfs4")
    store = SqliteStore(path=tmp_path / "state" / "vmm.db", locks=tmp_path / "state" / "locks")
    with pytest.raises(HostError) as caught:
        store.note_once("anything")
    assert "nfs4" in caught.value.brief
    assert not (tmp_path / "state").exists()
