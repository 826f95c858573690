"""Each filter: which hosts it lets pass."""

from typing import Any

import pytest
from virtfleet_common.plugins import NoSuchPlugin
from virtfleet_common.settings import DEFAULT_FILTERS, SchedulerSettings
from virtfleet_scheduler.filters.condition import HostEnabled, HostUp
from virtfleet_scheduler.filters.groups import Affinity, AntiAffinity
from virtfleet_scheduler.filters.image import ImageFits
from virtfleet_scheduler.filters.isolation import AggregateFlavors, AggregateImages, IsolatedHosts, Tenants
from virtfleet_scheduler.filters.load import FewInstances, FewIoOps
from virtfleet_scheduler.filters.named import DifferentHost, NotExcluded, SameHost
from virtfleet_scheduler.filters.room import EnoughDisk, EnoughRam, EnoughVcpus
from virtfleet_scheduler.filters.specs import AggregateSpecs, Capabilities
from virtfleet_scheduler.filters.zone import InZone
from virtfleet_scheduler.operators import matches
from virtfleet_scheduler.rules import Rules

from tests.placement import a_fleet, a_group, a_request, an_aggregate, passing


def test_a_host_that_is_down_unknown_or_hung_is_refused() -> None:
    hosts = a_fleet(a={}, b={"state": "down"}, c={"state": "unknown"}, d={"is_responsive": False})
    assert passing(HostUp, hosts, a_request()) == {"a"}


def test_a_disabled_host_is_refused() -> None:
    assert passing(HostEnabled, a_fleet(a={}, b={"is_enabled": False}), a_request()) == {"a"}


@pytest.mark.parametrize(("rule", "kind"), [(EnoughVcpus, "vcpus"), (EnoughRam, "ram_mb"), (EnoughDisk, "disk_gb")])
def test_exactly_enough_is_enough_and_less_is_not(rule: type, kind: str) -> None:
    hosts = a_fleet(exact={kind: 4}, less={kind: 3}, more={kind: 5})
    assert passing(rule, hosts, a_request(**{kind: 4})) == {"exact", "more"}


@pytest.mark.parametrize("rule", [EnoughVcpus, EnoughRam, EnoughDisk])
def test_who_needs_nothing_fits_an_overcommitted_host(rule: type) -> None:
    hosts = a_fleet(a={"vcpus": -1, "ram_mb": -1, "disk_gb": -1})
    assert passing(rule, hosts, a_request(vcpus=0, ram_mb=0, disk_gb=0)) == {"a"}


def test_excluded_hosts_are_refused() -> None:
    assert passing(NotExcluded, a_fleet(a={}, b={}), a_request(excluded=frozenset({"b", "gone"}))) == {"a"}


def test_same_host_and_different_host_are_opposites() -> None:
    hosts, named = a_fleet(a={}, b={}), frozenset({"a"})
    assert passing(SameHost, hosts, a_request(same_host=named)) == {"a"}
    assert passing(DifferentHost, hosts, a_request(different_host=named)) == {"b"}


def test_same_host_of_an_instance_that_is_nowhere_is_no_host() -> None:
    assert passing(SameHost, a_fleet(a={}), a_request(same_host=frozenset())) == set()
    assert passing(DifferentHost, a_fleet(a={}), a_request(different_host=frozenset())) == {"a"}


def test_the_zone_of_an_aggregate_comes_before_the_hosts_own() -> None:
    hosts = a_fleet(a={}, b={"availability_zone": "west"}, c={"availability_zone": "west"})
    hosts.set_aggregates([an_aggregate("east", ["c"], availability_zone="east")])
    assert passing(InZone, hosts, a_request(availability_zone="west")) == {"b"}
    assert passing(InZone, hosts, a_request(availability_zone="east")) == {"c"}
    assert passing(InZone, hosts, a_request(availability_zone="nowhere")) == set()
    assert passing(InZone, hosts, a_request()) == {"a", "b", "c"}


def test_limits_of_instances_and_io_ops() -> None:
    hosts = a_fleet(a={"placed": 2}, b={"placed": 3})
    hosts.set_io_ops({"a": 3, "gone": 9})
    assert passing(FewInstances, hosts, a_request()) == {"a", "b"}
    assert passing(FewInstances, hosts, a_request(), max_instances_per_host=3) == {"a"}
    assert passing(FewIoOps, hosts, a_request(), max_io_ops_per_host=3) == {"b"}


def test_the_least_limit_of_a_hosts_aggregates_counts() -> None:
    hosts = a_fleet(a={"placed": 2}, b={"placed": 2})
    hosts.set_aggregates(
        [
            an_aggregate("loose", ["a"], max_instances_per_host="9"),
            an_aggregate("tight", ["a"], max_instances_per_host="2"),
        ]
    )
    assert passing(FewInstances, hosts, a_request()) == {"b"}


def test_an_aggregate_for_tenants_takes_those_it_lists() -> None:
    hosts = a_fleet(a={}, b={}, c={})
    hosts.set_aggregates(
        [an_aggregate("ours", ["a"], filter_tenant_id="p1, p2"), an_aggregate("theirs", ["b"], filter_tenant_id2="p3")]
    )
    assert passing(Tenants, hosts, a_request(project_id="p1")) == {"a", "c"}
    assert passing(Tenants, hosts, a_request(project_id="p3")) == {"b", "c"}


def test_an_aggregate_for_flavors_takes_those_it_names() -> None:
    hosts = a_fleet(a={}, b={})
    hosts.set_aggregates([an_aggregate("big", ["a"], instance_type="large,huge")])
    assert passing(AggregateFlavors, hosts, a_request(flavor_name="huge")) == {"a", "b"}
    assert passing(AggregateFlavors, hosts, a_request(flavor_name="small")) == {"b"}


def test_an_aggregate_for_images_takes_those_that_do_not_contradict() -> None:
    hosts = a_fleet(a={}, b={}, c={})
    hosts.set_aggregates([an_aggregate("win", ["a"], os="windows"), an_aggregate("lin", ["b"], os="linux,bsd")])
    assert passing(AggregateImages, hosts, a_request(image_properties={"os": "bsd"})) == {"b", "c"}
    assert passing(AggregateImages, hosts, a_request(image_properties={"color": "red"})) == {"a", "b", "c"}


def test_isolated_images_and_hosts_keep_to_each_other() -> None:
    hosts = a_fleet(a={}, b={})
    apart: dict[str, Any] = {"isolated_images": ["secret"], "isolated_hosts": ["a"]}
    assert passing(IsolatedHosts, hosts, a_request(image_id="secret"), **apart) == {"a"}
    assert passing(IsolatedHosts, hosts, a_request(image_id="other"), **apart) == {"b"}
    open_to_all = {**apart, "restrict_isolated_hosts_to_isolated_images": False}
    assert passing(IsolatedHosts, hosts, a_request(image_id="other"), **open_to_all) == {"a", "b"}
    assert passing(IsolatedHosts, hosts, a_request(image_id="other")) == {"a", "b"}


def test_aggregate_extra_specs_have_all_to_be_matched() -> None:
    hosts = a_fleet(a={}, b={}, c={})
    hosts.set_aggregates([an_aggregate("ssd", ["a", "b"], disk="ssd"), an_aggregate("gpu", ["b"], gpus="4")])
    scope = "aggregate_instance_extra_specs"
    assert passing(AggregateSpecs, hosts, a_request(extra_specs={f"{scope}:disk": "ssd"})) == {"a", "b"}
    both = {f"{scope}:disk": "ssd", "gpus": ">= 2"}
    assert passing(AggregateSpecs, hosts, a_request(extra_specs=both)) == {"b"}
    assert passing(AggregateSpecs, hosts, a_request(extra_specs={"hw:cpu_policy": "dedicated"})) == {"a", "b", "c"}


def test_capabilities_are_compared_with_what_hosts_are() -> None:
    hosts = a_fleet(a={"hypervisor_version": 8_000_000}, b={"hypervisor_version": 9_001_000, "hypervisor_type": "TEST"})
    wanted = {"capabilities:hypervisor_version": ">= 9000000", "hypervisor_type": "s== TEST"}
    assert passing(Capabilities, hosts, a_request(extra_specs=wanted)) == {"b"}
    assert passing(Capabilities, hosts, a_request(extra_specs={"capabilities:num_gpus": "1"})) == set()
    assert passing(Capabilities, hosts, a_request(extra_specs={"color": "red"})) == {"a", "b"}


def test_an_image_runs_on_its_architecture_and_hypervisor() -> None:
    hosts = a_fleet(a={}, b={"arch": "aarch64"}, c={"arch": ""}, d={"hypervisor_type": "TEST"})
    amd = {"hw_architecture": "amd64"}
    assert passing(ImageFits, hosts, a_request(image_properties=amd)) == {"a", "c", "d"}
    kvm = {"architecture": "x86_64", "hypervisor_type": "kvm"}
    assert passing(ImageFits, hosts, a_request(image_properties=kvm)) == {"a", "c"}


def test_an_affinity_group_stays_where_it_is_tied() -> None:
    hosts = a_fleet(a={}, b={})
    assert passing(Affinity, hosts, a_request(group=a_group("affinity"))) == {"a", "b"}
    assert passing(Affinity, hosts, a_request(group=a_group("affinity", tied_to=frozenset({"a"})))) == {"a"}
    moving = a_group("affinity", tied_to=frozenset({"a", "b"}))
    assert passing(Affinity, hosts, a_request(group=moving)) == set()
    assert passing(Affinity, hosts, a_request(group=a_group("soft-affinity", {"a": 1}))) == {"a", "b"}


def test_an_anti_affinity_group_spreads_up_to_its_limit() -> None:
    hosts, members = a_fleet(a={}, b={}, c={}), {"a": 1, "b": 2}
    assert passing(AntiAffinity, hosts, a_request(group=a_group("anti-affinity", members))) == {"c"}
    assert passing(AntiAffinity, hosts, a_request(group=a_group("anti-affinity", members, max_per_host=2))) == {
        "a",
        "c",
    }
    assert passing(AntiAffinity, hosts, a_request(group=a_group("affinity", members))) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("value", "wanted", "is_match"),
    [
        ("5", "= 4", True), ("3", "= 4", False), ("4", "== 4.0", True), ("4", "!= 4", False), ("4", ">= 5", False),
        ("4", "<= 5", True), ("abc", ">= 1", False), ("abc", "s== abc", True), ("abc", "s!= abc", False),
        ("abc", "s< abd", True), ("abd", "s<= abc", False), ("abd", "s> abc", True), ("abc", "s>= abc", True),
        ("avx,sse", "<in> avx", True), ("avx,sse", "<all-in> avx sse", True), ("avx", "<all-in> avx sse", False),
        ("b", "<or> a <or> b", True), ("c", "<or> a <or> b", False), ("plain", "plain", True),
        ("plain", "other", False), ("", "", True),
    ],
)  # fmt: skip
def test_the_operators_of_extra_specs(value: str, wanted: str, is_match: bool) -> None:
    assert matches(value, wanted) is is_match


def test_every_default_rule_is_installed_and_in_order() -> None:
    rules = Rules.of(SchedulerSettings())
    assert len(rules.filters) == len(DEFAULT_FILTERS)
    assert [rule.code for rule in rules.filters][:4] == [
        "host_not_up", "host_disabled", "host_tried_before", "zone_differs",
    ]  # fmt: skip


def test_a_rule_that_nobody_offers_is_refused_by_name() -> None:
    with pytest.raises(NoSuchPlugin, match="moon_phase"):
        Rules.of(SchedulerSettings(filters=["moon_phase"]))
    with pytest.raises(NoSuchPlugin, match="moon_phase"):
        Rules.of(SchedulerSettings(weighers={"moon_phase": 1.0}))
