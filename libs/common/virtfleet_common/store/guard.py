"""The edge to the database: its errors become ours, and who cannot go on without it waits for it."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import structlog
from pymongo.errors import PyMongoError

from virtfleet_common.errors import StoreUnavailable

log = structlog.get_logger()
_LONGEST_RETRY = 5.0
P = ParamSpec("P")
R = TypeVar("R")


def guarded(call: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn the driver's errors into StoreUnavailable. The client's own time limit (CSOT) bounds the call."""

    @functools.wraps(call)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await call(*args, **kwargs)
        except PyMongoError as error:
            raise StoreUnavailable(f"the database did not confirm: {error}") from error

    return wrapper


async def answered(ask: Callable[[], Awaitable[R]]) -> R:
    """What the database answers; asked again while it is away."""
    delay = 0.1
    while True:
        try:
            return await ask()
        except StoreUnavailable as error:
            log.warning("store.unavailable", error=error.message)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_RETRY)
