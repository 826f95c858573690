"""Documents in memory: rounded as BSON rounds them, changed as MongoDB's updates change them."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import bson
from bson.codec_options import CodecOptions

from virtfleet_common.records import (
    Record,
)

R = TypeVar("R", bound=Record)
BSON: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)


async def round_trip() -> None:
    await asyncio.sleep(0)


def is_older(at: datetime, seconds: float) -> bool:
    return at < datetime.now(UTC) - timedelta(seconds=seconds)


def stored(record: R) -> R:
    """The record as the database gives it back: times in milliseconds, sequences as lists."""
    return type(record).model_validate(bson.decode(bson.encode(record.document()), BSON))


def updated(record: R, update: Mapping[str, Any]) -> R:
    """The record after a MongoDB update, of the operators that the store uses."""
    document = record.document()
    now = datetime.now(UTC)
    for path, value in update.get("$set", {}).items():
        _put(document, path, value)
    for path in update.get("$currentDate", {}):
        _put(document, path, now)
    for path, amount in update.get("$inc", {}).items():
        _put(document, path, _at(document, path) + amount)
    for path, pushed in update.get("$push", {}).items():
        _put(document, path, [*_at(document, path), *pushed.get("$each", [pushed])])
    for path, unwanted in update.get("$pull", {}).items():
        _put(document, path, [one for one in _at(document, path) if not _is_pulled(one, unwanted)])
    return type(record).model_validate(bson.decode(bson.encode(document), BSON))


def _is_pulled(one: Mapping[str, Any], unwanted: Mapping[str, Any]) -> bool:
    return all(one[name] in (v["$in"] if isinstance(v, Mapping) else [v]) for name, v in unwanted.items())


def has_fields(document: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(_at(document, path) in (v if isinstance(v, list) else [v]) for path, v in fields.items())


def _at(document: Mapping[str, Any], path: str) -> Any:
    found: Any = document
    for name in path.split("."):
        found = found.get(name) if found is not None else None
    return found


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        document = document.setdefault(name, {})
    document[last] = value
