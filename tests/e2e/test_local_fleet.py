"""A whole fleet on this machine comes up, is found again from its folder, can be broken by hand, and leaves nothing."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner
from virtfleet_local.cli import app
from virtfleet_local.fleet import LocalFleet, NoSuchPartError
from virtfleet_local.processes import ManagedProcess, StartError, has_ended

pytestmark = pytest.mark.fleet
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """As its command starts it, in a process that has ended since."""
    data = tmp_path_factory.mktemp("local")
    options = ["--hosts", "2", "--hypervisor", "test", "--shared-storage", "--detach", "--data", str(data)]
    try:
        subprocess.run([sys.executable, "-m", "virtfleet_local.cli", "up", *options], timeout=120, check=True)
        yield LocalFleet(data)
    finally:
        LocalFleet(data).down()


def _pids(fleet: LocalFleet) -> set[int]:
    return set(fleet.file.pids.values())


def test_fleet_json_is_private_and_its_tokens_are_accepted(fleet: LocalFleet) -> None:
    known = json.loads((fleet.data / "fleet.json").read_text())
    assert (fleet.data / "fleet.json").stat().st_mode & 0o777 == 0o600
    for token in ("token", "member_token", "other_member_token"):
        answer = httpx.get(f"{known['api_url']}/v2.1/servers", headers={"X-Auth-Token": known[token]})
        assert answer.status_code == 200, token


def test_hosts_on_shared_storage_keep_their_guests_in_one_folder(fleet: LocalFleet) -> None:
    agents = [psutil.Process(fleet.process(host).pid).environ() for host in fleet.file.hosts]
    assert {agent["VIRTFLEET_INSTANCES_DIR"] for agent in agents} == {str(fleet.data / "shared")}
    assert len({agent["VIRTFLEET_STATE_DIR"] for agent in agents}) == 2


def test_a_second_up_says_that_it_is_up_and_starts_nothing(fleet: LocalFleet) -> None:
    before = _pids(fleet)
    said = CliRunner().invoke(app, ["up", "--data", str(fleet.data)])
    assert said.exit_code == 0
    assert "already up" in said.output
    assert _pids(fleet) == before


def test_another_process_finds_the_fleet_from_its_folder_alone(fleet: LocalFleet) -> None:
    assert LocalFleet(fleet.data).file.hosts == ["host-1", "host-2"]
    assert CliRunner().invoke(app, ["status", "--data", str(fleet.data)]).exit_code == 0


@pytest.mark.parametrize("example", ["reboot.py", "plain_amqp.py"])
def test_an_example_of_the_readme_reboots_an_instance_and_hears_of_it(fleet: LocalFleet, example: str) -> None:
    created = {"name": "example", "flavorRef": "1", "imageRef": "", "networks": "none"}
    with httpx.Client(base_url=f"{fleet.file.api_url}/v2.1", headers={"X-Auth-Token": fleet.file.member_token}) as api:
        id_ = api.post("/servers", json={"server": created}).json()["server"]["id"]
        await_status(api, id_, "ACTIVE")
    argv = [sys.executable, str(ROOT / "examples" / example), id_]
    env = os.environ | {"FLEET_AMQP": fleet.file.member_amqp_url}
    said = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "accepted" in said
    assert f"instance.reboot.end.{id_}" in said


def test_clouds_and_env_say_how_to_log_in(fleet: LocalFleet) -> None:
    clouds = json.loads(CliRunner().invoke(app, ["clouds", "--data", str(fleet.data)]).output)["clouds"]
    assert clouds["virtfleet"]["auth"]["password"] == fleet.file.member_token
    env = CliRunner().invoke(app, ["env", "--as", "admin", "--data", str(fleet.data)]).output
    assert f"export FLEET_TOKEN='{fleet.file.token}'" in env


def test_a_killed_host_comes_back_when_its_power_does(fleet: LocalFleet) -> None:
    fleet.kill_host("host-1")
    assert not fleet.process("host-1").is_running()
    fleet.start_host("host-1")
    assert fleet.process("host-1").is_running()


def test_a_host_nobody_has_heard_of_is_an_error_that_names_those_there_are(fleet: LocalFleet) -> None:
    with pytest.raises(NoSuchPartError, match="host-1, host-2"):
        fleet.kill_host("host-9")


def test_a_wiped_broker_has_the_same_address_and_users(fleet: LocalFleet) -> None:
    before = fleet.file.amqp_url
    fleet.broker.wipe()
    assert fleet.broker.url == before
    assert fleet.broker.process.is_running()


def test_an_up_that_fails_half_way_leaves_no_process(tmp_path: Path) -> None:
    broken = LocalFleet(tmp_path, hosts=1, env={"scheduler": {"VIRTFLEET_PREFETCH": "not a number"}})
    with pytest.raises(StartError, match=r"scheduler ended while starting(.|\n)*prefetch"):
        broken.up()
    assert not (tmp_path / "fleet.json").exists()
    assert [p for p in psutil.process_iter(["environ", "cmdline"]) if _belongs_to(p, tmp_path)] == []


def test_a_pid_that_another_process_has_by_now_is_left_alone(tmp_path: Path) -> None:
    ours = ManagedProcess("sleeper", tmp_path)
    ours.start(["sleep", "60"], os.environ)
    try:
        recycled = ManagedProcess("recycled", tmp_path)
        recycled.pid_file.write_text(json.dumps(json.loads(ours.pid_file.read_text()) | {"started": 1}))
        recycled.kill()
        assert ours.is_running()
    finally:
        ours.kill()
    assert not ours.is_running()


def test_down_stops_everything_and_may_be_said_twice(fleet: LocalFleet) -> None:
    running = [psutil.Process(pid) for pid in _pids(fleet) if psutil.pid_exists(pid)]
    for _ in range(2):
        assert CliRunner().invoke(app, ["down", "--data", str(fleet.data)]).exit_code == 0
    assert [process.pid for process in running if not has_ended(process)] == []
    assert CliRunner().invoke(app, ["status", "--data", str(fleet.data)]).exit_code == 1


def await_status(api: httpx.Client, id_: str, status: str) -> None:
    """Look until a server has a status."""
    deadline = time.monotonic() + 60
    while (shown := api.get(f"/servers/{id_}").json()["server"]["status"]) != status:
        assert time.monotonic() < deadline, f"the server is {shown}"
        time.sleep(0.1)


def _belongs_to(process: psutil.Process, folder: Path) -> bool:
    words = [*(process.info["cmdline"] or ()), *(process.info["environ"] or {}).values()]
    return process.pid != os.getpid() and any(str(folder) in word for word in words)
