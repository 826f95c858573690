"""How the two ends of a transfer name each other to QEMU's tools, and the key by which they know each other."""

import shutil
from pathlib import Path

from virtfleet_common.ports import Export

EXPORT_NAME = "disk"
_KEY_FILE = "keys.psk"  # the name is QEMU's


def identity(instance_id: str) -> str:
    """The name under which both ends know the key."""
    return f"vf-{instance_id}"


def write_key(folder: Path, export: Export) -> None:
    """Have a folder that nobody else can read, with nothing in it but the export's key. Blocking."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    (folder / _KEY_FILE).write_text(f"{export.psk_identity}:{export.key}\n")


def server_key(folder: Path) -> str:
    """The `--object` by which qemu-nbd refuses everybody who has not the key in `folder`."""
    return f"tls-creds-psk,id=key,endpoint=server,dir={_quoted(folder)}"


def client_key(folder: Path, instance_id: str) -> str:
    """The `--object` by which qemu-img and qemu-io prove that they have the key in `folder`."""
    return f"tls-creds-psk,id=key,endpoint=client,dir={_quoted(folder)},username={identity(instance_id)}"


def target(export: Export) -> str:
    """The export as an image of qemu-img's `--target-image-opts`."""
    where = f"server.type=inet,server.host={export.address},server.port={export.port}"
    return f"driver=nbd,{where},export={EXPORT_NAME},tls-creds=key"


def _quoted(path: Path) -> str:
    """QEMU reads a doubled comma as one that belongs to the value."""
    return str(path).replace(",", ",,")
