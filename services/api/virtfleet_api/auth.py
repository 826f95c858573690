"""Tokens: `X-Auth-Token` or `Authorization: Bearer`, looked up by their SHA-256, since the token is stored nowhere.

A token that was found is believed for a few seconds; one that was not is asked for again, so that a new token works at
once and a revoked one soon does not.
"""

from collections.abc import Iterable
from hashlib import sha256
from time import monotonic

from virtfleet_common.errors import Unauthorized
from virtfleet_common.ports import Clock
from virtfleet_common.records import Token
from virtfleet_common.store import Store

from virtfleet_api.identity import Identity

_BELIEVED = 5.0
_MOST = 10_000
_UNAUTHORIZED = "The request you have made requires authentication."


def token_hash(token: str) -> str:
    """The id under which a token is stored."""
    return sha256(token.encode()).hexdigest()


def presented(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The token that a request carries."""
    bearer = None
    for name, value in headers:
        if name == b"x-auth-token":
            return value.decode("latin-1")
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip().decode("latin-1")
    return bearer


class Authenticator:
    """From a token to who presents it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, tuple[float, Token, Identity]] = {}

    async def identify(self, token: str | None) -> Identity:
        """Who presents a token. Raises Unauthorized if it is unknown or has expired."""
        if not token:
            raise Unauthorized(_UNAUTHORIZED, rule="token.missing")
        hashed = token_hash(token)
        known = self._known.get(hashed)
        if known is None or known[0] < monotonic():
            known = self._remember(hashed, await self._look_up(hashed))
        self._check_expiry(known[1])
        return known[2]

    async def find(self, token: str) -> Token:
        """The record of a token. Raises Unauthorized if it is unknown or has expired."""
        record = await self._look_up(token_hash(token))
        self._check_expiry(record)
        return record

    async def _look_up(self, hashed: str) -> Token:
        record = await self._store.tokens.get(hashed)
        if record is None:
            self._known.pop(hashed, None)
            raise Unauthorized(_UNAUTHORIZED, rule="token.unknown")
        return record

    def _remember(self, hashed: str, record: Token) -> tuple[float, Token, Identity]:
        if len(self._known) >= _MOST:
            self._known.clear()
        who = Identity(record.user_id, record.project_id, frozenset(record.roles))
        known = self._known[hashed] = (monotonic() + _BELIEVED, record, who)
        return known

    def _check_expiry(self, record: Token) -> None:
        if record.expires_at is not None and record.expires_at <= self._clock.now():
            raise Unauthorized(_UNAUTHORIZED, rule="token.expired")
