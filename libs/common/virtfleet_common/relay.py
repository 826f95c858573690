"""From a committed transition to the world: sends the step, carries out the effects, notes what was delivered.

Good path: the writer of a transition delivers what it committed, at once. Bad path: it crashes before, or the broker
is away; then outbox and unsent step stay in the document, where `power_sync` finds them by index and delivers them.
Why it is safe: every effect is idempotent, and a step is only a wake-up.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from virtfleet_common.bus import COMMANDS, EVENTS, Bus, Outgoing, try_publish
from virtfleet_common.effects import Effect
from virtfleet_common.errors import Faulty
from virtfleet_common.failpoints import reach
from virtfleet_common.messages import DoCleanups, PerformStep
from virtfleet_common.records import Cleanup, Instance
from virtfleet_common.records.volume import Attachment
from virtfleet_common.store import Delivered, Store

log = structlog.get_logger()


class Relay:
    """The way every service writes instances. `source` names the service in what it publishes, and its failpoints."""

    def __init__(self, store: Store, bus: Bus, source: str) -> None:
        self._store = store
        self._bus = bus
        self._source = source
        self._points = source.removeprefix("virtfleet/")
        self._deliveries: set[asyncio.Task[None]] = set()

    async def commit(
        self,
        instance_id: str,
        *,
        effects: Sequence[Effect] = (),
        carried: Sequence[Effect] = (),
        wait: float = 0.0,
        **change: Any,
    ) -> Instance:
        """`Instances.transition`, and the delivery of what it committed, waited for up to `wait` seconds.

        `carried` effects were committed before with `commit_quietly`, and are delivered together with these.
        Raises what `transition` raises.
        """
        written = await self._store.instances.transition(instance_id, effects=effects, **change)
        if effects or carried or _is_unsent(written):
            await self._start(written, [*carried, *effects], wait)
        return written

    async def commit_quietly(self, instance_id: str, **change: Any) -> Instance:
        """`Instances.transition` alone: its effects wait in the outbox for the next `commit`, or for `power_sync`."""
        return await self._store.instances.transition(instance_id, **change)

    async def insert(self, instance: Instance, effects: Sequence[Effect], *, wait: float = 0.0) -> Instance:
        """`Instances.insert`, and the delivery of what it committed, waited for up to `wait` seconds."""
        written = await self._store.instances.insert(instance, effects)
        await self._start(written, effects, wait)
        return written

    async def delivered(self, timeout: float = 10.0) -> None:
        """Wait for the deliveries under way now, `timeout` seconds at the most."""
        if self._deliveries:
            await asyncio.wait(set(self._deliveries), timeout=timeout)

    async def _start(self, written: Instance, effects: Sequence[Mapping[str, Any]], wait: float) -> None:
        reach(f"{self._points}.after_commit")
        task = asyncio.create_task(self.deliver(written, effects))
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)
        if wait:
            await asyncio.wait({task}, timeout=wait)

    async def deliver(self, written: Instance, effects: Sequence[Mapping[str, Any]]) -> None:
        """Send the step if it was not sent, carry out `effects`, and note both. Never raises: what fails stays in the
        document."""
        grouped = _grouped(effects)
        sent, *outcomes = await asyncio.gather(
            self._send_unsent(written), *(self._carry_out(written, effect) for effect, _ in grouped)
        )
        done = [id_ for (_, ids), ok in zip(grouped, outcomes, strict=True) if ok for id_ in ids]
        action = written.action if sent else None
        reach(f"{self._points}.before_mark")
        delivered = Delivered(written.id, done, action.id if action else None, action.step.seq if action else None)
        try:
            await self._store.instances.mark_delivered(delivered)
        except Faulty as error:
            log.warning("outbox.not_marked", instance_id=written.id, error=error.message)

    async def send_step(self, instance: Instance) -> bool:
        """Publish the wake-up for the current step of an instance; False if the broker did not take it."""
        action = instance.action
        if action is None:
            return False
        step = action.step
        wake_up = PerformStep(instance_id=instance.id, action_id=action.id, step=step.name, seq=step.seq)
        message = Outgoing(
            COMMANDS, step.target, f"virtfleet.step.{step.name}", wake_up, self._source,
            subject=instance.id, trace_id=action.trace_id, mandatory=True,
        )  # fmt: skip
        is_sent = await try_publish(self._bus, message)
        reach(f"{self._points}.after_send")
        return is_sent

    async def _send_unsent(self, written: Instance) -> bool:
        return _is_unsent(written) and await self.send_step(written)

    async def _carry_out(self, written: Instance, effect: Mapping[str, Any]) -> bool:
        try:
            match effect["kind"]:
                case "event":
                    return await try_publish(self._bus, self._as_event(written.id, effect))
                case "record":
                    await self._store.actions.put(effect["action_id"], effect["fields"])
                case "release":
                    await self._store.hosts.release(effect["instance_id"], effect["claim"])
                case "host_failed":
                    await self._store.hosts.note_failure(effect["host"], effect["attempt"])
                case "migration":
                    await self._store.migrations.put(effect["migration_id"], effect["fields"], effect["rank"])
                case "quota":
                    await self._count(effect)
                case "cleanup":
                    await self._owe(Cleanup.model_validate(effect["cleanup"]))
                case "volume_held":
                    await self._store.volumes.settle(
                        effect["volume_id"], Attachment.model_validate(effect["attachment"])
                    )
                case "volume_released":
                    await self._store.volumes.release(effect["volume_id"], effect["attachment_id"])
                case "volumes_released":
                    await self._store.volumes.release_all(effect["instance_id"])
                case unknown:
                    log.error("effect.unknown", kind=unknown, instance_id=written.id)
                    return False
        except Faulty as error:
            log.warning("effect.failed", kind=effect["kind"], instance_id=written.id, error=error.message)
            return False
        return True

    async def _count(self, effect: Mapping[str, Any]) -> None:
        project_id, instance_id, amounts = effect["project_id"], effect["instance_id"], effect["amounts"]
        if amounts is None:
            await self._store.quotas.release(project_id, instance_id)
        else:
            await self._store.quotas.settle(project_id, instance_id, amounts, rank=effect["rank"])

    async def _owe(self, cleanup: Cleanup) -> None:
        """Remember the clean-up, and wake its host; one that is away looks when it is back."""
        await self._store.cleanups.add(cleanup)
        wake_up = Outgoing(
            COMMANDS, f"cleanup.{cleanup.host}", "virtfleet.cleanup", DoCleanups(host=cleanup.host), self._source
        )
        await try_publish(self._bus, wake_up)

    def _as_event(self, instance_id: str, effect: Mapping[str, Any]) -> Outgoing:
        key: str = effect["key"]
        return Outgoing(
            EVENTS, key, "virtfleet." + key.removesuffix(f".{instance_id}"), effect["data"], self._source,
            id=effect["id"], subject=instance_id, trace_id=effect["trace_id"],
        )  # fmt: skip


def _grouped(effects: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Effects to carry out, each with the ids it settles: what is recorded of one action is recorded in one write."""
    records: dict[str, tuple[dict[str, Any], list[str]]] = {}
    grouped: list[tuple[Mapping[str, Any], list[str]]] = []
    for effect in effects:
        if effect["kind"] != "record":
            grouped.append((effect, [effect["id"]]))
            continue
        merged, ids = records.setdefault(effect["action_id"], ({**effect, "fields": {}}, []))
        merged["fields"].update(effect["fields"])
        ids.append(effect["id"])
    return [*grouped, *records.values()]


def _is_unsent(instance: Instance) -> bool:
    action = instance.action
    return action is not None and action.sent_at is None and action.claimed_by is None
