"""An OpenAI-compatible server with the guard in front of any LLM; needs the proxy extra.

from guardrail.integrations.proxy import ProxySettings, create_app, serve

serve(guard, ProxySettings.of(upstream="http://127.0.0.1:11434/v1"))
"""

from guardrail.errors import MissingDependencyError

from .settings import ProxySettings, read_keys

try:
    import httpx  # noqa: F401
    import prometheus_client  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingDependencyError((error.name or "starlette").replace("_", "-"), "proxy") from error

from .app import create_app
from .second_opinion import upstream_judge
from .server import serve

__all__ = ["ProxySettings", "create_app", "read_keys", "serve", "upstream_judge"]
