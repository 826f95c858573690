"""The small Keystone."""

from .api import Api


async def test_a_token_logs_in_as_token_password_or_credential(api: Api) -> None:
    token = api.tokens["member"]
    for identity in (
        {"methods": ["token"], "token": {"id": token}},
        {"methods": ["password"], "password": {"user": {"name": "member", "domain": {"id": "x"}, "password": token}}},
        {"methods": ["application_credential"], "application_credential": {"id": "any", "secret": token}},
    ):
        scope = {"project": {"id": api.project}}
        answer = await api.http.post("/identity/v3/auth/tokens", json={"auth": {"identity": identity, "scope": scope}})
        assert (answer.status_code, answer.headers["x-subject-token"]) == (201, token)
        catalog = {service["type"]: service["endpoints"][0]["url"] for service in answer.json()["token"]["catalog"]}
        assert catalog["compute"] == "http://fleet.example/v2.1"
        assert (await api.http.get(f"{catalog['image']}/v2/images", headers={"X-Auth-Token": token})).status_code == 200


async def test_a_token_does_not_log_in_as_somebody_else_or_elsewhere(api: Api) -> None:
    token = api.tokens["member"]
    mine = {"name": "member", "password": token}
    for user, project in [({"name": "admin", "password": token}, api.project), (mine, "other"),
                          ({"name": "member", "password": "guess"}, api.project)]:  # fmt: skip
        identity = {"methods": ["password"], "password": {"user": user}}
        body = {"auth": {"identity": identity, "scope": {"project": {"id": project}}}}
        assert (await api.http.post("/identity/v3/auth/tokens", json=body)).status_code == 401
