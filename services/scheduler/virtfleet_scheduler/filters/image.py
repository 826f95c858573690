"""What the image needs of a host: its architecture and its hypervisor type."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from virtfleet_scheduler.columns import Bools, Codes, HostColumns
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Plain

_ARCH_KEYS = ("hw_architecture", "architecture")
_TYPE_KEYS = ("img_hv_type", "hypervisor_type")
_ARCHES = {"amd64": "x86_64", "x64": "x86_64", "i386": "i686", "x86": "i686", "arm64": "aarch64"}
_TYPES = {"kvm": "qemu"}
"""libvirt's QEMU driver runs both, and calls itself QEMU."""


class ImageFits(Plain):
    """The host's architecture and hypervisor are those the image names; what a host does not tell passes."""

    code = "image_does_not_fit"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Both fit, as far as the image names them."""
        arch, kind = _wanted(request)
        passing: Bools | None = None
        for column, names, wanted in ((hosts.arch, _ARCHES, arch), (hosts.hypervisor_type, _TYPES, kind)):
            if wanted is not None:
                fits = _equals(hosts, column, names, wanted)
                passing = fits if passing is None else passing & fits
        return passing

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """What the image names, and what the host is."""
        arch, kind = _wanted(request)
        has = hosts.facts(row)
        return {
            "wanted": {"arch": arch, "hypervisor_type": kind},
            "has": {"arch": has["arch"], "hypervisor_type": has["hypervisor_type"]},
        }


def _wanted(request: Request) -> tuple[str | None, str | None]:
    return _property(request, _ARCH_KEYS, _ARCHES), _property(request, _TYPE_KEYS, _TYPES)


def _property(request: Request, keys: tuple[str, ...], names: Mapping[str, str]) -> str | None:
    found = next((request.image_properties[key] for key in keys if key in request.image_properties), None)
    return None if found is None else _canonical(found, names)


def _canonical(text: str, names: Mapping[str, str]) -> str:
    return names.get(text.lower(), text.lower())


def _equals(hosts: HostColumns, column: Codes, names: Mapping[str, str], wanted: str) -> Bools:
    fitting = [code for code, text in enumerate(hosts.words.texts) if not text or _canonical(text, names) == wanted]
    return np.isin(column, fitting)
