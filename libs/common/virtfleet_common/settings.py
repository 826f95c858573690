"""Settings, read from the environment (`VIRTFLEET_<NAME>`). Durations are in seconds, sizes as their names say.

Each service reads the class of its own; what all share is in `CommonSettings`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_FILTERS = (
    "up", "enabled", "excluded", "zone", "vcpus", "ram", "disk", "instances", "io_ops", "isolated_hosts", "tenants",
    "aggregate_specs", "aggregate_images", "aggregate_flavors", "capabilities", "image", "same_host", "different_host",
    "affinity", "anti_affinity",
)  # fmt: skip
DEFAULT_WEIGHERS = {
    "ram": 1.0, "vcpus": 1.0, "disk": 1.0, "io_ops": -1.0, "instances": 0.0, "soft_affinity": 1.0,
    "soft_anti_affinity": 1.0, "failures": -10.0,
}  # fmt: skip


class CommonSettings(BaseSettings):
    """What every service needs."""

    model_config = SettingsConfigDict(env_prefix="VIRTFLEET_", extra="ignore", frozen=True)

    mongodb_url: str = Field(
        "mongodb://127.0.0.1:27017/?replicaSet=virtfleet", description="a replica set, of one member at least"
    )
    database: str = Field("virtfleet", description="the database of that replica set")
    amqp_url: str = Field("amqp://guest:guest@127.0.0.1:5672/", description="the broker, as the services' own user")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_format: Literal["json", "console"] = Field("json", description="one JSON object a line, or lines for people")
    health_host: str = Field("127.0.0.1", description="address of /healthz, /readyz and /metrics")
    health_port: int = Field(0, description="port of /healthz, /readyz and /metrics; 0: none (the api serves its own)")

    store_timeout: float = Field(10.0, description="the longest wait for one database call")
    publish_timeout: float = Field(10.0, description="the longest wait for one publisher confirm")
    prefetch: int = Field(64, description="commands a service takes before it has acknowledged the earlier ones")
    delivery_limit: int = Field(5, description="deliveries of one message before it is dead-lettered")
    heartbeat_interval: float = Field(5.0, description="how often an agent reports its host and all its guests")
    action_timeout: float = Field(900.0, description="an action without progress fails after so long")
    step_allowance: float = Field(15.0, description="a step without progress for so long is sent again")
    renew_interval: float = Field(5.0, description="how often an executor renews the progress of a long step")
    max_attempts: int = Field(3, description="hosts that one create or move is tried on")
    deleted_retention: float = Field(30 * 86400.0, description="how long the record of a deleted instance is kept")


class ApiSettings(CommonSettings):
    """The HTTP facade and the command intake."""

    api_host: str = Field("127.0.0.1", description="the address to serve on")
    api_port: int = Field(8774, description="the port to serve on")
    max_limit: int = Field(1000, description="the largest page of a list")
    quota_instances: int = Field(-1, description="instances that a project may have, unless it has its own limit")
    quota_vcpus: int = Field(-1, description="vCPUs that a project may have; -1: any number")
    quota_ram_mb: int = Field(-1, description="MiB of RAM that a project may have; -1: any number")


class SchedulerSettings(CommonSettings):
    """Placement."""

    filters: list[str] = Field(list(DEFAULT_FILTERS), description="filters by their entry points' names, in order")
    weighers: dict[str, float] = Field(
        dict(DEFAULT_WEIGHERS), description="weighers by their entry points' names, and their multipliers; 0: not asked"
    )
    host_subset_size: int = Field(1, ge=1, description="the host is chosen at random among so many of the best")
    claim_tries: int = Field(50, description="hosts tried for one guest when claims are refused")
    max_io_ops_per_host: int | None = Field(None, description="builds and moves at once; an aggregate may say less")
    max_instances_per_host: int | None = Field(None, description="guests; an aggregate may say less")
    isolated_images: list[str] = Field([], description="images (ids) that may run on isolated hosts alone")
    isolated_hosts: list[str] = []
    restrict_isolated_hosts_to_isolated_images: bool = True
    fence_timeout: float = Field(300.0, description="an evacuation waits so long for the proof that the host is off")
    failure_half_life: float = Field(600.0, description="after so long, a failed build on a host counts half")
    view_reload_interval: float = Field(60.0, description="how often all hosts are read anew")
    io_ops_interval: float = Field(5.0, description="how often builds and moves under way are counted")
    placement_seed: int | None = Field(None, description="makes what is random in placement repeatable (tests)")


class AgentSettings(CommonSettings):
    """One compute host."""

    host: str = Field("", description="the host's name in the fleet; empty: the machine's host name")
    hypervisor_uri: str = Field("qemu:///system", description="also qemu:///embed?root=FOLDER and test:///default")
    virt_type: Literal["auto", "kvm", "qemu"] = Field("auto", description="auto: kvm where /dev/kvm can be used")
    state_dir: Path = Field(
        Path("/var/lib/virtfleet"), description="disks, console logs, cached images and the host's identity"
    )
    host_ip: str = Field("127.0.0.1", description="the address that other hosts send disks to")
    instances_dir: Path | None = Field(
        None, description="the instances' directories; default: below state_dir. Shared storage: the same on every host"
    )
    transfer_ports: tuple[int, int] = Field((49600, 49999), description="the first and last port disks are received on")
    transfer_timeout: float = Field(6 * 3600.0, description="a disk that is not there after so long is not waited for")
    transfer_stall: float = Field(60.0, description="the sending of a disk without progress is given up after so long")
    transfer_rate_mb: int = Field(0, description="MiB per second that sending one disk may take; 0: no limit")
    libvirt_workers: int = Field(8, description="threads for step work on libvirt")
    libvirt_timeout: float = Field(60.0, description="the longest wait for one libvirt call")
    listing_timeout: float = Field(10.0, description="the longest wait for the listing of a heartbeat")
    start_timeout: float = Field(60.0, description="the longest wait for a started guest to run")
    soft_reboot_timeout: float = Field(120.0, description="a guest that has not shut down by then is rebooted hard")
    soft_reboot_retry: float = Field(10.0, description="how often the power button is pressed meanwhile")
    shutdown_timeout: float = Field(60.0, description="the longest wait for a guest to shut down before it is forced")
    shutdown_retry: float = Field(10.0, description="how often the power button is pressed meanwhile")
    detach_timeout: float = Field(60.0, description="the longest wait for a running guest to let go of a volume")
    detach_retry: float = Field(2.0, description="how often it is asked to meanwhile")
    cpu_allocation_ratio: float = Field(4.0, description="vCPUs that may be allocated for each processor")
    ram_allocation_ratio: float = Field(1.0, description="MiB that may be allocated for each MiB")
    disk_allocation_ratio: float = Field(1.0, description="GiB that may be allocated for each GiB")
    reserved_vcpus: int = Field(0, description="processors kept for the host itself")
    reserved_ram_mb: int = Field(512, description="MiB kept for the host itself")
    reserved_disk_gb: int = Field(0, description="GiB kept for the host itself")
    availability_zone: str = Field("nova", description="the zone this host is in")
    resize_confirm_window: float = Field(86400.0, description="a resize is confirmed by itself after so long; 0: never")
    isolation_policy: Literal["keep", "stop"] = Field(
        "keep",
        description="stop: guests are powered off when nobody hears this host any more, as they will be evacuated",
    )
    isolation_after: float = Field(
        20.0, description="unheard for so long, the host is isolated; less than host_down_after"
    )
    machine_boot_file: Path = Field(
        Path("/proc/sys/kernel/random/boot_id"), description="changes when the machine reboots, and its guests are gone"
    )
    start_parallelism: int = Field(4, ge=1, description="guests started at once after the machine has rebooted")
    cleanup_interval: float = Field(30.0, description="how often a host looks for what it owes")
    simulated_vcpus: int = Field(64, description="capacity that a test:/// host reports")
    simulated_ram_mb: int = Field(262144, description="as above")
    simulated_disk_gb: int = Field(4096, description="as above")


class PowerSyncSettings(CommonSettings):
    """The keeper of the record."""

    resend_interval: float = Field(1.0, description="how often unsent and overdue work is looked for")
    unsent_grace: float = Field(2.0, description="what was committed and not sent for so long is sent")
    liveness_interval: float = Field(1.0, description="how often the hosts' last_seen is judged")
    host_unknown_after: float = Field(15.0, description="three missed heartbeats")
    host_down_after: float = Field(30.0, description="a host that was silent for so long is down")
    mass_loss_fraction: float = Field(0.5, description="more hosts than this lost together: our own network is suspect")
    fencing: str = Field("none", description="how a lost host is proven to be off: none, command, manual, or a plug-in")
    fence_command: list[str] = Field(
        [], description="of `command`: the program and its arguments; {action} (off, status) and {host} are filled in"
    )
    fence_call_timeout: float = Field(20.0, description="the longest wait for one call of that program")
    fence_off_timeout: float = Field(60.0, description="a host not seen off so long after it was switched off: failed")
    fence_status_interval: float = Field(1.0, description="how often its status is asked for meanwhile")
    fence_attempt_timeout: float = Field(180.0, description="the longest that one attempt to fence a host may take")
    fence_retry: float = Field(30.0, description="the pause before the next attempt")
    auto_evacuate: Literal["off", "all"] = Field(
        "off", description="all: guests of a lost, fenced host are evacuated by themselves; metadata `ha` overrides it"
    )
    evacuation_parallelism: int = Field(20, ge=1, description="evacuations at once that begin by themselves")
    evacuation_retry: float = Field(60.0, description="a guest that found no shelter is tried again after so long")
    auto_loss_limit: int = Field(3, description="hosts lost within auto_loss_window that are dealt with by themselves")
    auto_loss_window: float = Field(600.0, description="further ones wait for so long, or for an admin's force-down")
    on_guest_poweroff: Literal["stop", "restart"] = Field(
        "stop", description="an active guest that is off: on record as stopped, or started again (metadata may differ)"
    )
    on_unexpected_running: Literal["adopt", "enforce"] = Field(
        "adopt", description="a stopped guest that runs: on record as active, or stopped again (metadata may differ)"
    )
    policy_pause: float = Field(10.0, description="the pause before a second restart; each further one doubles it")
    policy_memory: float = Field(3600.0, description="earlier restarts count towards the pause for so long")
    missing_confirmations: int = Field(3, description="complete listings that must miss a guest before it is missing")
    host_write_interval: float = Field(0.2, description="heartbeats are gathered for so long into one bulk write")
    confirm_interval: float = Field(5.0, description="how often overdue confirmations are looked for")
    quota_audit_interval: float = Field(600.0, description="how often the quotas are compared with the instances")
    quota_audit_patience: float = Field(300.0, description="what changed within so long is left alone by that audit")
    audit_interval: float = Field(300.0, description="how often the claims on hosts are compared with the instances")
    audit_grace: float = Field(10.0, description="a difference counts when it is still there after so long")
