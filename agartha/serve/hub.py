"""What every endpoint needs: the models by name, the settings, the clocks."""

from dataclasses import dataclass, field

from fastapi import Request

from agartha.serve.errors import APIError
from agartha.serve.metrics import Timings
from agartha.serve.served import Served
from agartha.serve.settings import Settings
from agartha.serve.worker import Worker


@dataclass(frozen=True, slots=True)
class Hub:
    """One per application; the first model answers requests that name none."""

    models: dict[str, Served]
    settings: Settings
    timings: Timings = field(default_factory=Timings)

    @property
    def workers(self) -> list[Worker]:
        """Each once: a model and its adapters share one."""
        return list(dict.fromkeys(served.worker for served in self.models.values()))

    def model(self, name: str | None) -> Served:
        """Raises: APIError 404 for a name that is not served."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise APIError(
                404, f"the model {name[:200]!r} is not served here; there is: {known}.", "model_not_found", "model"
            )
        return self.models[name]


def hub_of(request: Request) -> Hub:
    return request.app.state.hub


def tenant_of(request: Request) -> str:
    """Whose cached prompts may be used: see `security.Guard`."""
    return request.state.tenant


def ignored_header(request: Request) -> dict[str, str]:
    """Names of fields that were not understood, for the reply."""
    names = getattr(request.state, "ignored", None)
    return {"x-agartha-ignored": ", ".join(names)} if names else {}
