"""Microversions by Nova's rules. The major is always 2, so that a microversion is handled as its minor number alone.

`OpenStack-API-Version: compute 2.X` counts; the older `X-OpenStack-Nova-API-Version: 2.X` where the first is absent;
`latest` is the maximum; no header is 2.1, not the maximum.
"""

import re
from collections.abc import Iterable

from virtfleet_common.errors import BadRequest, Refused

MINIMUM = 1
MAXIMUM = 87
"""2.88 takes the capacity out of os-hypervisors (it is in Placement there), 2.95 leaves evacuated servers stopped."""

_HEADER = b"openstack-api-version"
_LEGACY = b"x-openstack-nova-api-version"
_FORM = re.compile(r"([1-9]\d*)\.(0|[1-9]\d*)")
VARY = ((b"vary", b"OpenStack-API-Version"), (b"vary", b"X-OpenStack-Nova-API-Version"))


class NotAcceptable(Refused):
    """The version asked for is well formed and not served."""

    code, status = "not_acceptable", 406


def negotiate(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The minor version that a request's headers ask for. Raises BadRequest, NotAcceptable."""
    found = {name: value for name, value in headers if name in (_HEADER, _LEGACY)}
    if not found:
        return MINIMUM
    asked = _for_compute(found.get(_HEADER, b"").decode("latin-1"))
    return parse(asked or found.get(_LEGACY, b"").decode("latin-1").strip() or f"2.{MINIMUM}")


def _for_compute(header: str) -> str | None:
    asked = [part.split() for part in header.lower().split(",")]
    versions = ["".join(words[1:]) for words in asked if words and words[0] == "compute"]
    return versions[-1] if versions else None


def parse(version: str) -> int:
    """The minor number of a version within the limits. Raises BadRequest, NotAcceptable."""
    if version == "latest":
        return MAXIMUM
    form = _FORM.fullmatch(version)
    if form is None:
        message = f"API Version String {version} is of invalid format. Must be of format MajorNum.MinorNum."
        raise BadRequest(message, rule="microversion.form")
    major, minor = int(form[1]), int(form[2])
    if major != 2 or not MINIMUM <= minor <= MAXIMUM:
        message = f"Version {version} is not supported by the API. Minimum is 2.{MINIMUM} and maximum is 2.{MAXIMUM}."
        raise NotAcceptable(message, rule="microversion.range")
    return minor


_ANSWERS = tuple(
    (
        (b"openstack-api-version", b"compute 2.%d" % minor),
        (b"x-openstack-nova-api-version", b"2.%d" % minor),
        *VARY,
    )
    for minor in range(MAXIMUM + 1)
)


def answer_headers(minor: int) -> tuple[tuple[bytes, bytes], ...]:
    """What an answer says of the version that was used."""
    return _ANSWERS[minor]
