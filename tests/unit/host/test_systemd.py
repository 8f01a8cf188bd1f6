from pathlib import Path

from vmm.host import systemd


def test_the_unit_names_the_program_and_escapes_its_specifiers() -> None:
    text = systemd.unit_text(executable=Path("/opt/100%/vmm"), data_dir=Path("/var/lib/vmm"))
    assert "ExecStart=/opt/100%%/vmm autostart" in text
    assert "Environment=VMM_DATA_DIR=/var/lib/vmm" in text
    assert "KillMode=process" in text
