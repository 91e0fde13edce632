"""Structured logs, and what a service tells of itself: /healthz, /readyz and /metrics on one small server."""

import logging
import sys
import time
from typing import Literal

import structlog
from aiohttp import web
from prometheus_client import generate_latest

from services.platform.health import Health
from services.platform.metrics import REGISTRY

_MAX_LINES = 1_000


def configure_logging(service: str, instance: str, level: str, form: Literal["json", "console"]) -> None:
    """Send structured events to standard error, one a line; libraries' logs too, from WARNING on."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service, instance=instance)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(NowAndThen())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Its pool tells with a stack trace that it could not open a connection ahead of need; whoever needs one tells, too.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)


class NowAndThen(logging.Filter):
    """Lets the same line of a library through once in `seconds`.

    A client whose server is away repeats itself 60 times a second.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the line is new, or was not let through lately."""
        now, line = time.monotonic(), (record.name, record.getMessage())
        if now - self._last.get(line, -self._seconds) < self._seconds:
            return False
        if len(self._last) >= _MAX_LINES:
            self._last.clear()
        self._last[line] = now
        if record.levelno > logging.WARNING:
            # An error, which wakes somebody, is what we say ourselves.
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


async def start_health_server(health: Health, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serve the probes and the metrics; return the runner to clean up and the port really used."""

    async def healthz(_request: web.Request) -> web.Response:
        text = f"last progress {health.seconds_since_progress:.1f} s ago\n"
        return web.Response(text=text, status=200 if health.is_alive else 503)

    async def readyz(_request: web.Request) -> web.Response:
        if health.waiting_for is None:
            return web.Response(text="ready\n")
        return web.Response(text=f"waiting for {health.waiting_for}\n", status=503)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    return runner, runner.addresses[0][1]
