"""The edge to the database: its errors become ours."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from pymongo.errors import PyMongoError

from virtfleet_common.errors import StoreUnavailable

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
