"""The service itself: health, errors, its own description."""

import httpx
from virtfleet_api.accept import Acceptor
from virtfleet_api.app import make_app
from virtfleet_common.clock import SystemClock
from virtfleet_common.relay import Relay
from virtfleet_common.settings import ApiSettings
from virtfleet_common.store import Store

from .api import Api, Deaf, error_of


async def test_the_service_says_how_it_is(api: Api) -> None:
    assert (await api.ask("GET", "/healthz", who="")).json() == {"status": "ok"}
    assert (await api.ask("GET", "/readyz", who="")).json() == {"status": "ready"}
    counted = (await api.ask("GET", "/metrics", who="")).text
    assert 'route="/healthz"' in counted


async def test_a_database_that_is_away_is_a_503_that_tells_nothing_of_it() -> None:
    nowhere = Store.connect(ApiSettings(mongodb_url="mongodb://127.0.0.1:1/", store_timeout=0.2))
    acceptor = Acceptor(nowhere, Relay(nowhere, Deaf(), "virtfleet/api"), SystemClock(), ApiSettings())
    app = make_app(nowhere, acceptor, ApiSettings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fleet.example") as http:
        answer = await http.get("/v2.1/servers", headers={"X-Auth-Token": "x"})
        assert error_of(answer)[:2] == (503, "serviceUnavailable")
        assert "127.0.0.1" not in answer.text
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200
    nowhere.close()


async def test_an_unknown_path_or_method_is_refused_in_novas_words(api: Api) -> None:
    assert error_of(await api.ask("GET", "/v2.1/os-fping"))[:2] == (404, "itemNotFound")
    assert error_of(await api.ask("PATCH", "/v2.1/servers"))[:2] == (405, "badMethod")


async def test_the_openapi_document_is_made_from_the_table_of_endpoints(api: Api) -> None:
    document = (await api.ask("GET", "/openapi.json", who="")).json()
    action = document["paths"]["/v2.1/servers/{id}/action"]["post"]
    assert action["x-virtfleet-role"] == "member"
    body = document["paths"]["/v2.1/flavors"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert body.removeprefix("#/components/schemas/") in document["components"]["schemas"]


async def test_a_host_that_vanished_from_the_record_harms_no_list(api: Api) -> None:
    await api.instance(host="gone")
    listed = (await api.ask("GET", "/v2.1/servers/detail", who="admin", version="2.87")).json()["servers"]
    assert listed[0]["host_status"] == "UNKNOWN"


async def test_a_body_that_is_too_large_is_refused(api: Api) -> None:
    headers = {"X-Auth-Token": api.tokens["admin"]}
    answer = await api.http.post("/v2.1/flavors", content=b"{" + b" " * 2**21 + b"}", headers=headers)
    assert error_of(answer)[:2] == (413, "overLimit")
