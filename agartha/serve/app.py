"""The application: endpoints, guard, page. What runs it is `program`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Match, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from agartha.serve import chat_completions, completions, embeddings, monitoring, responses
from agartha.serve.bodies import document
from agartha.serve.errors import add_handlers
from agartha.serve.hub import Hub
from agartha.serve.protocol import BODIES
from agartha.serve.responses_protocol import Responses
from agartha.serve.security import Guard
from agartha.serve.served import Served
from agartha.serve.settings import Settings

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml", ".woff2": "font/woff2", ".json": "application/json", ".webmanifest": "application/manifest+json",
}  # fmt: skip


def build_app(models: dict[str, Served], settings: Settings) -> FastAPI:
    """Serve these models; the first answers requests that name none. Starts their workers, and ends them with itself."""
    hub = Hub(models, settings)
    hub.timings.watch(models.values())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for worker in hub.workers:
            worker.start()
        yield
        for worker in hub.workers:
            worker.stop()

    app = FastAPI(
        title="Agartha", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.hub = hub
    for router in (chat_completions.router, completions.router, responses.router, embeddings.router, monitoring.router):
        app.include_router(router)
    add_handlers(app)
    document(app, (*BODIES, Responses))
    if (PAGE / "index.html").exists():
        app.router.routes.append(PageMount("/", Page(directory=PAGE, html=True)))
    app.add_middleware(Guard, settings=settings)
    return app


class PageMount(Mount):
    """The page has every path that is not the API's."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        is_api = scope["path"].startswith("/v1/") or any(
            scope["path"] == route.path for route in api_routes(scope["app"])
        )
        return (Match.NONE, {}) if is_api else super().matches(scope)


def api_routes(app: FastAPI) -> list[Route]:
    return [route for route in app.router.routes if isinstance(route, Route)]


class Page(StaticFiles):
    """The chat page's files. Types are ours, because a machine's registry may call a script anything."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        kind = TYPES.get(Path(path if Path(path).suffix else "index.html").suffix)
        if kind and response.status_code == 200:
            response.headers["content-type"] = kind
        response.headers["cache-control"] = "no-cache"  # ask whether it changed, so that an update is seen at once
        return response
