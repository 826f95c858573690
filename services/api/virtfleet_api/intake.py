"""Commands from programs: `instance.<action>` on `virtfleet.commands`, answered on `reply_to`.

The sender is the AMQP `user_id` that the broker verified. The first answer to a message id is kept, and a message that
comes again gets it again; the action id is made from the message id, so that even an intake that died between accepting
and answering accepts once.
"""

import time
from typing import Any
from uuid import uuid5

import structlog
from virtfleet_common.bus import COMMANDS as EXCHANGE
from virtfleet_common.bus import DIRECT, Bus, Delivery, Outgoing, QueueSpec
from virtfleet_common.errors import BadMessage, Faulty, Refused, Unauthorized
from virtfleet_common.failpoints import reach
from virtfleet_common.messages import (
    COMMANDS,
    Command,
    CommandAccepted,
    CommandRejected,
    CreateInstance,
    InstanceCommand,
    RebootInstance,
)
from virtfleet_common.ports import Clock
from virtfleet_common.records import Reply
from virtfleet_common.settings import ApiSettings
from virtfleet_common.store import Store

from virtfleet_api.accept import Acceptor
from virtfleet_api.begin import NAMESPACE
from virtfleet_api.create import CreateRequest
from virtfleet_api.identity import Identity

log = structlog.get_logger()
_USER_KEPT = 5.0


def queue(settings: ApiSettings) -> QueueSpec:
    """The queue that every replica of the api takes commands from."""
    return QueueSpec(
        "virtfleet.api.commands",
        [(EXCHANGE, "instance.#")],
        prefetch=settings.prefetch,
        delivery_limit=settings.delivery_limit,
    )


class Intake:
    """See the module's text."""

    def __init__(self, store: Store, bus: Bus, acceptor: Acceptor, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._acceptor = acceptor
        self._clock = clock
        self._users: dict[str, tuple[float, Identity]] = {}

    async def take(self, delivery: Delivery) -> None:
        """The consumer's handler: accept or refuse a command, answer, acknowledge.

        What is no valid command is answered too, where it says where to, and dead-lettered with the reason.
        """
        try:
            command, message_id = self._read(delivery)
        except BadMessage as error:
            rejected = CommandRejected(code=error.code, rule="valid_command", message=error.message)
            await self._answer(delivery, self._reply(delivery.key, rejected))
            raise
        await self._answer(delivery, await self._first_answer(delivery, command, message_id))
        reach("intake.before_ack")
        await delivery.settler.ack()

    def _read(self, delivery: Delivery) -> tuple[Command, str]:
        model = COMMANDS.get(delivery.key)
        if model is None:
            raise BadMessage(f"There is no such command: {delivery.key}. Known: {', '.join(sorted(COMMANDS))}.")
        message_id = delivery.message_id or str(delivery.event.get_id())
        return delivery.read(model), f"{delivery.user_id}:{message_id}"

    async def _first_answer(self, delivery: Delivery, command: Command, message_id: str) -> Reply:
        kept = await self._store.replies.get(message_id)
        if kept is not None:
            return kept
        answer = await self._decide(delivery, command, message_id)
        reach("intake.before_keep")
        if await self._store.replies.add(answer):
            return answer
        return await self._store.replies.get(message_id) or answer

    async def _decide(self, delivery: Delivery, command: Command, message_id: str) -> Reply:
        action_id = f"req-{uuid5(NAMESPACE, message_id)}"
        try:
            who = await self._identify(delivery.user_id)
            accepted = await self._accept(who, command, delivery.key, action_id)
        except Refused as refusal:
            rejected = CommandRejected(code=refusal.code, rule=refusal.rule, message=refusal.message, hint=refusal.hint)
            return self._reply(message_id, rejected)
        return self._reply(message_id, accepted)

    def _reply(self, message_id: str, answer: CommandAccepted | CommandRejected) -> Reply:
        word = "accepted" if isinstance(answer, CommandAccepted) else "rejected"
        data = answer.model_dump(mode="json")
        return Reply(id=message_id, type=f"virtfleet.command.{word}", data=data, at=self._clock.now())

    async def _accept(self, who: Identity, command: Command, key: str, action_id: str) -> CommandAccepted:
        if isinstance(command, CreateInstance):
            fields = command.model_dump()
            created = await self._acceptor.create(who, CreateRequest(**fields), action_id=action_id)
            return CommandAccepted(action_id=action_id, instance_ids=[instance.id for instance in created])
        if not isinstance(command, InstanceCommand):
            raise BadMessage(f"{key} is not a command about an instance")
        action, args = _as_action(command, key)
        instance = await self._acceptor.act(who, command.instance_id, action, args, action_id=action_id)
        if action == "delete" and instance.action is not None:  # ours, or the one that it joins
            action_id = instance.action.id
        return CommandAccepted(action_id=action_id, instance_ids=[command.instance_id])

    async def _identify(self, user_id: str | None) -> Identity:
        if user_id is None:
            raise Unauthorized("The message has no user_id.", rule="user_id", hint="Set user_id to your broker user.")
        known = self._users.get(user_id)
        if known is None or time.monotonic() - known[0] > _USER_KEPT:
            user = await self._store.amqp_users.get(user_id)
            if user is None:
                raise Unauthorized(f"The broker user {user_id} speaks for nobody.", rule="user_known")
            identity = Identity(user.user_id, user.project_id, frozenset(user.roles))
            known = self._users[user_id] = (time.monotonic(), identity)
        return known[1]

    async def _answer(self, delivery: Delivery, reply: Reply) -> None:
        if not delivery.reply_to:
            return
        message = Outgoing(
            DIRECT, delivery.reply_to, reply.type, reply.data, "virtfleet/api",
            correlation_id=delivery.correlation_id or delivery.message_id, mandatory=True,
        )  # fmt: skip
        try:
            await self._bus.publish(message)
        except Faulty as error:  # whoever asked is gone; the answer is kept for when they ask again
            log.info("reply.not_delivered", reply_to=delivery.reply_to, error=error.message)


def _as_action(command: InstanceCommand, key: str) -> tuple[str, dict[str, Any]]:
    """The row of the action table, and the arguments."""
    if isinstance(command, RebootInstance):
        return f"reboot_{command.type.lower()}", {}
    return key.removeprefix("instance."), command.model_dump(exclude={"instance_id"}, exclude_none=True)
