"""Tokens, roles and projects."""

from datetime import UTC, datetime, timedelta

from .api import Api, error_of


async def test_no_token_and_a_wrong_token_get_the_401_of_keystones_middleware(api: Api) -> None:
    for headers in ({}, {"X-Auth-Token": "wrong"}, {"Authorization": "Bearer wrong"}):
        answer = await api.http.get("/v2.1/servers", headers=headers)
        assert error_of(answer)[:2] == (401, "error")
        assert answer.json()["error"]["title"] == "Unauthorized"


async def test_an_expired_token_is_no_token(api: Api) -> None:
    api.tokens["late"] = await api.token(api.project, "member", datetime.now(UTC) - timedelta(seconds=1))
    assert (await api.ask("GET", "/v2.1/servers", who="late")).status_code == 401


async def test_a_bearer_token_does_as_well(api: Api) -> None:
    answer = await api.http.get("/v2.1/servers", headers={"Authorization": f"Bearer {api.tokens['reader']}"})
    assert answer.status_code == 200


async def test_readers_only_read(api: Api) -> None:
    guest = await api.instance()
    assert (await api.ask("GET", f"/v2.1/servers/{guest.id}", who="reader")).status_code == 200
    assert error_of(await api.act(guest, {"os-stop": None}, who="reader"))[:2] == (403, "forbidden")
    assert (await api.ask("DELETE", f"/v2.1/servers/{guest.id}", who="reader")).status_code == 403
    assert (
        await api.ask("PUT", f"/v2.1/servers/{guest.id}", {"server": {"name": "x"}}, who="reader")
    ).status_code == 403
    assert (await api.ask("GET", "/v2.1/os-services", who="member")).status_code == 403
    assert await api.store.instances.get(guest.id) == guest


async def test_another_projects_server_is_not_there(api: Api) -> None:
    guest = await api.instance()
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/metadata"), ("GET", "/os-instance-actions")]:
        answer = await api.ask(method, f"/v2.1/servers/{guest.id}{path}", who="stranger", version="2.87")
        assert error_of(answer)[:2] == (404, "itemNotFound")
    assert (await api.act(guest, {"reboot": {"type": "HARD"}}, who="stranger")).status_code == 404
    assert await api.store.instances.get(guest.id) == guest
