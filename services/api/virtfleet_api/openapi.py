"""The OpenAPI document, generated from the tables of endpoints and the models of their bodies."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from virtfleet_api.microversions import MAXIMUM
from virtfleet_api.policy import RULES
from virtfleet_api.routing import Dialect, Endpoint

_REFERENCE = "#/components/schemas/{model}"
_HEADER = {
    "name": "OpenStack-API-Version", "in": "header", "required": False, "schema": {"type": "string"},
    "example": f"compute 2.{MAXIMUM}", "description": "The microversion asked for; without it, 2.1.",
}  # fmt: skip


def openapi_of(dialects: Iterable[Dialect], version: str) -> dict[str, Any]:
    """The document for some dialects; of a dialect with several prefixes, the first."""
    rows = [(dialect, endpoint) for dialect in dialects for endpoint in dialect.endpoints]
    models = {endpoint.body for _, endpoint in rows if endpoint.body}
    schemas = _schemas(sorted(models, key=lambda model: model.__name__))
    paths: dict[str, dict[str, Any]] = {}
    for dialect, endpoint in rows:
        path = dialect.prefixes[0] + endpoint.path or "/"
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(dialect, endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Virtfleet", "version": version},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
    }


_SECURITY = {
    "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def _schemas(models: list[type[BaseModel]]) -> dict[str, Any]:
    _, document = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    schemas: dict[str, Any] = document.get("$defs", {})
    return schemas


def _operation(dialect: Dialect, endpoint: Endpoint) -> dict[str, Any]:
    summary = (endpoint.handler.__doc__ or "").strip().partition("\n")[0]
    operation: dict[str, Any] = {
        "tags": [dialect.name],
        "summary": summary,
        "parameters": [_path_parameter(name) for name in re.findall(r"{(\w+)}", endpoint.path)],
        "responses": {"default": {"description": "As the Compute API answers; errors name what refused."}},
    }
    if dialect.name == "compute":
        operation["parameters"].append(_HEADER)
        operation["x-openstack-microversions"] = [f"2.{endpoint.since}", f"2.{endpoint.until}"]
    if endpoint.policy is not None:
        operation["security"] = [{"token": []}, {"bearer": []}]
        operation["x-virtfleet-role"] = RULES[endpoint.policy]
    if endpoint.body is not None:
        schema = {"$ref": _REFERENCE.format(model=endpoint.body.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
