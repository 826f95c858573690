"""Dead letters: messages that could not be handled, kept to be read, and to be sent again once the cause is mended.

    python -m virtfleet_common.dead_letters list
    python -m virtfleet_common.dead_letters replay ID...      (or --all)
    python -m virtfleet_common.dead_letters drop ID...

Reads `VIRTFLEET_AMQP_URL`, as the services do. A letter that is replayed leaves the queue when the broker has confirmed
its second life, so it may come twice and is never lost. A program's command cannot be replayed: it carries the identity
of its sender, which the broker lets nobody else claim; the sender may send it again.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import PublishError

from virtfleet_common.bus import COMMANDS, DEAD_LETTERS, EVENTS, REASON
from virtfleet_common.errors import BadRequest, Unroutable
from virtfleet_common.rabbit import connect
from virtfleet_common.settings import CommonSettings

_TIMEOUT = 30.0
_FROM_DEATH = ("x-death", "x-first-death", "x-last-death", REASON, "x-delivery-count")


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `key` is the routing key it was first sent with; `reason` says why it ended here."""

    id: str
    key: str
    reason: str
    at: datetime | None
    body: str

    @property
    def exchange(self) -> str:
        """Where it was first sent to."""
        return EVENTS if self.key.startswith("host.") else COMMANDS

    @property
    def is_of_program(self) -> bool:
        """Whether it is a command, which only its sender may send."""
        return self.key.startswith("instance.")


class DeadLetters:
    """The dead-letter queue of the broker at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def read(self) -> list[Letter]:
        """Every letter, oldest first; all stay where they are."""
        async with self._opened() as (_, messages):
            return [_as_letter(message) for message in messages]

    async def replay(self, is_wanted: Callable[[Letter], bool]) -> list[Letter]:
        """Send letters again, to where they were first sent. Raises BadRequest for a program's command, and Unroutable
        when nobody takes one; those before it have gone."""
        sent = []
        async with self._opened() as (channel, messages):
            for message in messages:
                letter = _as_letter(message)
                if is_wanted(letter):
                    await _send_again(channel, letter, message)
                    sent.append(letter)
        return sent

    async def drop(self, is_wanted: Callable[[Letter], bool]) -> list[Letter]:
        """Take letters away for good."""
        dropped = []
        async with self._opened() as (_, messages):
            for message in messages:
                letter = _as_letter(message)
                if is_wanted(letter):
                    await message.ack()
                    dropped.append(letter)
        return dropped

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[AbstractChannel, list[AbstractIncomingMessage]]]:
        """A channel, and every message of the queue; those that nobody acknowledges are given back at the end."""
        async with asyncio.timeout(_TIMEOUT):
            connection = await connect(self._url, "virtfleet/dead-letters")
            async with connection:
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                queue = await channel.get_queue(DEAD_LETTERS)
                messages = []
                while (message := await queue.get(fail=False)) is not None:
                    messages.append(message)
                try:
                    yield channel, messages
                finally:
                    for message in messages:
                        if not message.processed:
                            await message.nack(requeue=True)


async def _send_again(channel: AbstractChannel, letter: Letter, message: AbstractIncomingMessage) -> None:
    if letter.is_of_program:
        hint = "Its sender may send it again."
        raise BadRequest(f"{letter.id} is a program's command ({letter.key}).", rule="replayable", hint=hint)
    again = aio_pika.Message(
        message.body,
        headers={name: value for name, value in message.headers.items() if name not in _FROM_DEATH},
        content_type=message.content_type,
        message_id=message.message_id,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
    )
    exchange = await channel.get_exchange(letter.exchange, ensure=False)
    try:
        await exchange.publish(again, letter.key, mandatory=True)
    except PublishError as error:
        raise Unroutable(f"nobody takes {letter.key}", key=letter.key) from error
    await message.ack()


def _as_letter(message: AbstractIncomingMessage) -> Letter:
    deaths: Any = message.headers.get("x-death")
    death: dict[str, Any] = deaths[0] if isinstance(deaths, list) and deaths else {}
    by_broker = f"{death.get('reason')} of queue {death.get('queue')}" if death else "unknown"
    return Letter(
        id=str(message.message_id or message.headers.get("ce-id")),
        key=message.routing_key or "",
        reason=str(message.headers.get(REASON) or by_broker),
        at=death.get("time") or message.timestamp,
        body=message.body.decode(errors="replace"),
    )


async def run(url: str, command: str, ids: Sequence[str] = (), *, everything: bool = False) -> list[str]:
    """One of the commands; returns the lines to show. Raises BadRequest for an id that no letter has."""
    letters = DeadLetters(url)
    known = await letters.read()
    if unknown := set(ids) - {letter.id for letter in known}:
        raise BadRequest(f"There is no letter {', '.join(sorted(unknown))}.", rule="letter_exists")
    if command == "list":
        return [_shown(letter) for letter in known] or ["There are no dead letters."]
    do = letters.replay if command == "replay" else letters.drop
    done = await do(lambda letter: everything or letter.id in ids)
    return [f"{command}: {letter.id} {letter.key}" for letter in done] or ["Nothing to do: name letters by their ids."]


def _shown(letter: Letter) -> str:
    at = letter.at.isoformat() if letter.at else None
    facts = {"id": letter.id, "key": letter.key, "reason": letter.reason, "at": at, "body": letter.body}
    return json.dumps(facts, ensure_ascii=False)


def main() -> None:
    """The commands of the module's text."""
    parser = argparse.ArgumentParser(prog="python -m virtfleet_common.dead_letters")
    parser.add_argument("command", choices=["list", "replay", "drop"])
    parser.add_argument("id", nargs="*")
    parser.add_argument("--all", action="store_true", help="every letter")
    given = parser.parse_args()
    try:
        lines = asyncio.run(run(CommonSettings().amqp_url, given.command, given.id, everything=given.all))
    except (BadRequest, Unroutable) as error:
        sys.exit(f"{error.message} {getattr(error, 'hint', None) or ''}".rstrip())
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
