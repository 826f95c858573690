"""Builds the small Linux that local fleets run: Debian's cloud kernel, busybox, and one script (`guest/init`).

    python -m virtfleet_local.guest_image     builds it into the cache unless it is there

The kernel comes out of Debian's package, which is unpacked and not installed. The disk image is empty: the guest runs
from its initial RAM disk, and uses the disk to show that what it wrote is still there.
"""

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from virtfleet_common.records import Image

from virtfleet_local.caches import cache_folder

_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_MODULES = ("virtio_pci", "virtio_blk", "evdev", "button")
_DISK_MIB = 64
# In 64 MiB the kernel cannot unpack itself.
_MIN_RAM_MB = 80
_BUSYBOX = Path("/bin/busybox")
_RECIPE = Path(__file__).with_name("guest")
# Under software emulation each of these saves a piece of the boot: no searching for hardware that is not there, no
# waiting for timers to be calibrated, no defence against neighbours on the same processor.
_CMDLINE = (
    "console=ttyS0 quiet panic=1 mitigations=off nokaslr no_timer_check random.trust_cpu=on tsc=reliable "
    "8250.nr_uarts=1 cryptomgr.notests rcupdate.rcu_expedited=1 virtfleet.marker=boot"
)
_VARIANTS = {
    "tiny": _CMDLINE,
    "tiny-deaf": f"{_CMDLINE} virtfleet.acpi=ignore",
    "tiny-tired": f"{_CMDLINE} virtfleet.poweroff_after=2",
}


class BuildError(RuntimeError):
    """A tool is missing or refused. The message says which, and what to do."""


class GuestImage(BaseModel):
    """The three files of the guest and their checksums (`sha256:<hex>`)."""

    kernel: Path
    initrd: Path
    disk: Path
    checksums: dict[str, str]
    built_at: datetime
    recipe: str


def find(folder: Path | None = None) -> GuestImage | None:
    """The image in the cache, if it is whole and of today's recipe."""
    try:
        image = GuestImage.model_validate_json(((folder or _default_folder()) / "image.json").read_text())
    except (OSError, ValueError):
        return None
    is_whole = all(file.exists() for file in (image.kernel, image.initrd, image.disk))
    return image if is_whole and image.recipe == _recipe() else None


def build(folder: Path | None = None) -> GuestImage:
    """The image, built unless it is in the cache. Raises BuildError."""
    folder = folder or _default_folder()
    if image := find(folder):
        return image
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        package = _unpack_kernel(Path(work))
        files = {
            "kernel": _keep(next(package.glob("boot/vmlinuz-*")), folder / "vmlinuz"),
            "initrd": _keep(_make_initrd(Path(work), package), folder / "initrd"),
            "disk": _keep(_make_disk(Path(work)), folder / "disk.qcow2"),
        }
    checksums = {name: checksum(file) for name, file in files.items()}
    image = GuestImage(**files, checksums=checksums, built_at=datetime.now().astimezone(), recipe=_recipe())
    (folder / "image.json").write_text(image.model_dump_json(indent=2))
    return image


def catalogue(folder: Path | None = None) -> list[Image]:
    """The catalogue's entries: `tiny`; `tiny-deaf` ignores the power button, `tiny-tired` powers itself off when it has
    run for two seconds."""
    image = build(folder)
    return [_entry(str(number), name, cmdline, image) for number, (name, cmdline) in enumerate(_VARIANTS.items(), 1)]


def checksum(file: Path) -> str:
    """The SHA-256 of a file, as the catalogue writes it."""
    with file.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def _default_folder() -> Path:
    return cache_folder() / "guest"


def _entry(number: str, name: str, cmdline: str, image: GuestImage) -> Image:
    return Image(
        id=f"00000000-0000-4000-8000-{number:0>12}",
        name=name,
        location=str(image.disk),
        checksum=image.checksums["disk"],
        size=image.disk.stat().st_size,
        min_ram_mb=_MIN_RAM_MB,
        properties={
            "kernel": str(image.kernel),
            "kernel_checksum": image.checksums["kernel"],
            "initrd": str(image.initrd),
            "initrd_checksum": image.checksums["initrd"],
            "cmdline": cmdline,
        },
        created_at=image.built_at,
        updated_at=image.built_at,
    )


def _unpack_kernel(work: Path) -> Path:
    _run("apt-get", "download", _KERNEL_PACKAGE, cwd=work)
    meta = next(work.glob(f"{_KERNEL_PACKAGE}_*.deb"))
    depends = _run("dpkg-deb", "--field", meta, "Depends", cwd=work)
    _run("apt-get", "download", re.split(r"[ ,]", depends)[0].strip(), cwd=work)
    package = next(file for file in work.glob("linux-image-*.deb") if file != meta)
    _run("dpkg-deb", "--extract", package, work / "package", cwd=work)
    return work / "package"


def _make_initrd(work: Path, package: Path) -> Path:
    root = work / "root"
    for folder in ("bin", "dev", "proc", "sys", "modules", "etc/acpi/PWRF"):
        (root / folder).mkdir(parents=True)
    shutil.copy(_busybox(), root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    shutil.copy(_RECIPE / "init", root / "init")
    shutil.copy(_RECIPE / "power-button", root / "etc/acpi/PWRF/00000080")
    for script in (root / "init", root / "etc/acpi/PWRF/00000080"):
        script.chmod(0o755)
    modules = _with_dependencies(_MODULES, {file.stem: file for file in package.glob("lib/modules/**/*.ko")})
    for module in modules:
        shutil.copy(module, root / "modules")
    (root / "modules/order").write_text(" ".join(module.stem for module in modules))
    names = "\n".join(str(file.relative_to(root)) for file in sorted(root.rglob("*")))
    # Not compressed: unpacking would take the guest longer than reading two MiB more.
    _run(
        "cpio",
        "--create",
        "--format=newc",
        "--quiet",
        f"--file={work / 'initrd'}",
        "--owner=0:0",
        cwd=root,
        stdin=names,
    )
    return work / "initrd"


def _with_dependencies(wanted: Iterable[str], known: dict[str, Path]) -> list[Path]:
    """The modules in an order in which each can be loaded. A module names in itself what it depends on."""
    ordered: list[Path] = []
    for name in wanted:
        module = known[name]
        depends = re.search(rb"depends=([\w,-]*)\0", module.read_bytes())
        names = depends[1].decode().split(",") if depends and depends[1] else []
        ordered += [one for one in [*_with_dependencies(names, known), module] if one not in ordered]
    return ordered


def _make_disk(work: Path) -> Path:
    _run("qemu-img", "create", "-q", "-f", "qcow2", work / "disk.qcow2", f"{_DISK_MIB}M", cwd=work)
    return work / "disk.qcow2"


def _busybox() -> Path:
    if not _BUSYBOX.exists() or b"acpid" not in subprocess.run([_BUSYBOX, "--list"], capture_output=True).stdout:
        raise BuildError(f"no {_BUSYBOX} with acpid: install busybox-static")
    return _BUSYBOX


def _recipe() -> str:
    """What the image is made from, as far as this checkout decides it."""
    content = b"".join(file.read_bytes() for file in sorted(_RECIPE.iterdir()))
    return hashlib.sha256(content + repr((_MODULES, _DISK_MIB)).encode()).hexdigest()


def _keep(file: Path, target: Path) -> Path:
    return Path(shutil.move(file, target))


def _run(tool: str, *words: str | Path, cwd: Path, stdin: str = "") -> str:
    try:
        done = subprocess.run(
            [tool, *map(str, words)], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=600
        )
    except FileNotFoundError as missing:
        raise BuildError(f"{tool} is not installed") from missing
    if done.returncode:
        raise BuildError(f"{tool} {' '.join(map(str, words))} failed:\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Build the image and say where it is."""
    console = Console()
    if find() is None:
        with console.status("Building the guest image"):
            image = build()
        console.print(f"Guest image: {image.kernel.parent}")


if __name__ == "__main__":
    main()
