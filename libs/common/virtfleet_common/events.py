"""Lifecycle events of instances: which ones there are and what they carry, as effects to commit with a transition."""

from collections.abc import Mapping
from typing import Any

from virtfleet_common.effects import Effect, event
from virtfleet_common.records import Fault, Instance
from virtfleet_common.states import PowerState, TaskState, VmState
from virtfleet_common.volumes import told

_STATES = ("vm_state", "task_state", "power_state")


def states_of(instance: Instance) -> dict[str, Any]:
    """The three states of an instance, as events carry them."""
    return {
        "vm_state": instance.vm_state,
        "task_state": instance.task_state,
        "power_state": instance.power_state.shown,
    }


def lifecycle(
    instance: Instance, action: str, phase: str, *, after: Mapping[str, Any], request_id: str | None,
    fault: Fault | None = None,
) -> Effect:  # fmt: skip
    """`instance.<action>.<phase>.<instance id>`: `after` are the fields that the transition sets."""
    states = states_of(instance)
    data = {
        "instance_id": instance.id,
        "name": instance.name,
        "project_id": instance.project_id,
        "user_id": instance.user_id,
        "action": action,
        "phase": phase,
        "request_id": request_id,
        "rev": instance.rev + 1,
        "host": after.get("host", instance.host),
        "epoch": after.get("epoch", instance.epoch),
        "before": states,
        "after": states | {name: after[name] for name in _STATES if name in after},
        "flavor": {"id": instance.flavor.id, "name": instance.flavor.name},
        "image": {"id": instance.image.id, "name": instance.image.name} if instance.image else None,
        "networks": [port.model_dump() for port in instance.networks],
        "block_devices": [told(device) for device in after.get("block_devices", instance.block_devices)],
        "fault": fault.model_dump(mode="json") if fault else None,
    }
    trace_id = instance.action.trace_id if instance.action else None
    return event(f"instance.{action}.{phase}.{instance.id}", data, trace_id=trace_id)


def power_changed(instance: Instance, word: str, *, after: Mapping[str, Any]) -> Effect:
    """`instance.power.<word>.<instance id>`: the record followed the hypervisor."""
    return lifecycle(instance, "power", word, after=after, request_id=None)


def settled(vm_state: VmState, power_state: PowerState, **more: Any) -> dict[str, Any]:
    """The fields of an instance whose action has ended well."""
    return {"vm_state": vm_state, "task_state": None, "power_state": power_state, "fault": None, "progress": 0, **more}


def moved(task_state: TaskState | None) -> dict[str, Any]:
    """The field of an instance whose work goes on."""
    return {"task_state": task_state}
