"""The api: serves HTTP, and takes commands from AMQP."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import uvicorn
from virtfleet_common.clock import SystemClock
from virtfleet_common.service import Backbone, backbone, run, until_stopped
from virtfleet_common.settings import ApiSettings

from virtfleet_api import intake
from virtfleet_api.accept import Acceptor
from virtfleet_api.amqp_sources import BusConsoles, BusEvents, BusPlacements
from virtfleet_api.app import make_app


class _Server(uvicorn.Server):
    """Leaves the signals to the service."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Capture none."""
        return nullcontext()


async def serve(settings: ApiSettings) -> None:
    """Answer until stopped."""
    async with backbone("api", settings) as base:
        clock = SystemClock()
        acceptor = Acceptor(base.store, base.relay, clock, settings)
        commands = intake.Intake(base.store, base.bus, acceptor, clock)
        async with base.bus.consume(intake.queue(settings), commands.take):
            await until_stopped(_serve_http(_server(base, acceptor, settings)))


async def _serve_http(server: _Server) -> None:
    try:
        await server.serve()
    finally:
        await server.shutdown()


def _server(base: Backbone, acceptor: Acceptor, settings: ApiSettings) -> _Server:
    app = make_app(
        base.store,
        acceptor,
        settings,
        events=BusEvents(base.bus),
        consoles=BusConsoles(base.bus),
        placements=BusPlacements(base.bus),
        is_ready=base.why_not_ready,
    )
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
        lifespan="off",
        # Longer than clients keep an idle connection: else they send into one that is just being closed.
        timeout_keep_alive=75,
    )
    return _Server(config)


def main() -> None:
    """The command `virtfleet-api`."""
    settings = ApiSettings()
    run("api", settings, partial(serve, settings))


if __name__ == "__main__":
    main()
