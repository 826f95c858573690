"""The version documents, which clients read before anything else, and without a token."""

from starlette.responses import Response

from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.shapes import Shape
from virtfleet_api.context import Call
from virtfleet_api.microversions import MAXIMUM, MINIMUM

_MEDIA = "application/vnd.openstack.compute+json;version=2"


def _v20(base_url: str) -> Shape:
    return {
        "id": "v2.0", "status": "SUPPORTED", "version": "", "min_version": "", "updated": "2011-01-21T11:33:21Z",
        "links": [{"rel": "self", "href": f"{base_url}/v2/"}],
    }  # fmt: skip


def _v21(base_url: str) -> Shape:
    return {
        "id": "v2.1", "status": "CURRENT", "version": f"2.{MAXIMUM}", "min_version": f"2.{MINIMUM}",
        "updated": "2013-07-23T11:33:21Z", "links": [{"rel": "self", "href": f"{base_url}/v2.1/"}],
    }  # fmt: skip


def _alone(version: Shape, media: str) -> Shape:
    return {"version": version | {"media-types": [{"base": "application/json", "type": media}]}}


async def list_versions(call: Call) -> Response:
    """The versions of the Compute API; v2.0 first, as Tempest wants it."""
    return answer({"versions": [_v20(call.base_url), _v21(call.base_url)]})


async def show_v20(call: Call) -> Response:
    """The document of v2.0, kept because clients follow every link; requests go to v2.1."""
    return answer(_alone(_v20(call.base_url), _MEDIA))


async def show_v21(call: Call) -> Response:
    """The document of v2.1, with the microversions served."""
    return answer(_alone(_v21(call.base_url), f"{_MEDIA}.1"))
