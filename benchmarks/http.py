"""The leanest HTTP client that will do: one kept-alive connection, small JSON requests. What the load generator spends
is taken from the services it measures, and a comfortable client spends as much as they do."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One connection to the api."""

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        self._url = urlsplit(base_url)
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def post(self, path: str, content: object) -> Answer:
        """Send JSON, and read the answer. Raises RuntimeError on a status of 400 or more."""
        body = json.dumps(content).encode()
        head = f"POST {self._url.path}{path} HTTP/1.1\r\nHost: {self._url.netloc}\r\n{self._headers}"
        self._writer.write(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        answer = await self._read()
        if answer.status >= 400:
            raise RuntimeError(f"{path}: {answer.status} {answer.body.decode()}")
        return answer

    async def _read(self) -> Answer:
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(status.split(" ")[1]), headers, body)


def parsed(answer: Answer) -> Any:
    """The JSON of an answer."""
    return json.loads(answer.body)
