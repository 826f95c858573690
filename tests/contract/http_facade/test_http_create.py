"""Creating servers."""

from typing import Any

import pytest

from .api import Api, error_of, new_server


async def test_a_created_server_can_be_read_at_once(api: Api) -> None:
    mapping = [{"uuid": api.image.id, "boot_index": 0, "source_type": "image", "destination_type": "local",
                "delete_on_termination": True}]  # fmt: skip
    body = new_server(api, networks=[{"uuid": "lan"}, {"uuid": "bridge:br0"}], block_device_mapping_v2=mapping)
    answer = await api.ask("POST", "/v2.1/servers", body, version="2.87")
    assert answer.status_code == 202
    assert set(answer.json()["server"]) == {"id", "links", "OS-DCF:diskConfig", "security_groups", "adminPass"}
    shown = (await api.ask("GET", answer.headers["location"], version="2.87")).json()["server"]
    assert (shown["status"], shown["OS-EXT-STS:task_state"]) == ("BUILD", "scheduling")
    assert shown["addresses"] == {"lan": [], "br0": []}


async def test_several_servers_share_a_reservation(api: Api) -> None:
    body = new_server(api, min_count="2", max_count=3, return_reservation_id=True)
    reservation = (await api.ask("POST", "/v2.1/servers", body)).json()["reservation_id"]
    listed = (await api.ask("GET", "/v2.1/servers", params={"reservation_id": reservation})).json()["servers"]
    assert sorted(server["name"] for server in listed) == ["new-1", "new-2", "new-3"]


@pytest.mark.parametrize(
    ("fields", "version", "says"),
    [
        ({"flavorRef": "nothing"}, "2.1", "nothing"),
        ({"imageRef": "nothing"}, "2.1", "nothing"),
        ({"name": ""}, "2.1", "Invalid input for field/attribute server/name"),
        ({"name": 7}, "2.1", "server/name. Value: 7."),
        ({"networks": [{"port": "p"}]}, "2.37", "networks"),
        ({}, "2.37", "'networks' is a required property"),
        ({"tags": ["x"]}, "2.51", "'tags' was unexpected"),
        ({"min_count": 3, "max_count": 2}, "2.1", "min_count must be <= max_count"),
        ({"min_count": 0}, "2.1", "server/min_count"),
        ({"metadata": {"k": 1}}, "2.1", "server/metadata/k"),
        ({"colour": "red"}, "2.1", "'colour' was unexpected"),
        ({"key_name": "mine"}, "2.1", "'key_name' was unexpected"),
    ],
)
async def test_a_create_that_is_not_sound_creates_nothing(api: Api, fields: Any, version: str, says: str) -> None:
    status, key, message = error_of(await api.ask("POST", "/v2.1/servers", new_server(api, **fields), version=version))
    assert (status, key) == (400, "badRequest")
    assert says in message
    assert (await api.ask("GET", "/v2.1/servers")).json()["servers"] == []
