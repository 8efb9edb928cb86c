"""The guard as a middleware of LangChain's agents.

from langchain.agents import create_agent
from guardrail.integrations.langchain_agent import GuardrailMiddleware

agent = create_agent(model, tools, middleware=[GuardrailMiddleware(guard=guard)])
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from guardrail.errors import ConfigError, MissingDependencyError
from guardrail.pipeline import Guardrail
from guardrail.types import Verdict

try:
    from langchain.agents.middleware import AgentMiddleware
    from langchain.agents.middleware.types import ModelRequest, ModelResponse
    from langchain.agents.structured_output import StructuredOutputError
except ImportError as error:
    raise MissingDependencyError("langchain", "agent") from error
from langchain_core.messages import AIMessage

from .langchain import GuardedChatModel
from .langchain_inner import innermost
from .langchain_messages import FACTS, is_replaced

__all__ = ["GuardrailMiddleware"]


class GuardrailMiddleware(AgentMiddleware):
    """Puts a guarded model in the place of an agent's model, whichever way the agent is read.

    Make it the **last** in the list of middlewares, the innermost one: then every call of the model goes
    through it, also calls that others repeat or send to another model. What a middleware outside of it says
    itself, or makes of a reply, is not judged; nor is what it has from a model of its own (a summary, say):
    wrap such a model with `guard_model`. One inside of it that takes another model, or answers in its place,
    is an error.

    Replies keep their ids, so the agent's state holds one message each. A replaced reply calls no tools and
    holds no structured output: the agent ends its turn with it, and `structured_response` is None or missing
    in the state, as the version of LangChain has it.

    Attributes:
        guard: judges.
        on_intervention: as in `GuardedChatModel`.
    """

    def __init__(
        self,
        guard: Guardrail | None = None,
        *,
        on_intervention: Callable[[Any, Verdict], str] | None = None,
    ) -> None:
        """Make it.

        Args:
            guard: None loads the model that ships.
            on_intervention: gets the messages and the verdict and returns the text to show when the user's
                turn asks for intervention.

        Raises:
            ArtifactError: `guard` is None and the model that ships is missing or altered.
        """
        super().__init__()
        self.guard = Guardrail.load() if guard is None else guard
        self.on_intervention = on_intervention

    def wrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
    ) -> ModelResponse:
        """Call the guarded model.

        Raises:
            ConfigError: the reply does not come from it.
        """
        try:
            return _guarded(handler(self._with_guard(request)))
        except StructuredOutputError as error:
            return _without_structure(error)

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Call the guarded model.

        Raises:
            ConfigError: the reply does not come from it.
        """
        try:
            return _guarded(await handler(self._with_guard(request)))
        except StructuredOutputError as error:
            return _without_structure(error)

    def _with_guard(self, request: ModelRequest) -> ModelRequest:
        if isinstance(innermost(request.model), GuardedChatModel):
            return request
        model = GuardedChatModel(model=request.model, guard=self.guard, on_intervention=self.on_intervention)
        return request.override(model=model)


def _guarded(response: ModelResponse) -> ModelResponse:
    """Return the response, if it is a guarded model's."""
    for message in response.result:
        if isinstance(message, AIMessage) and FACTS not in message.response_metadata:
            raise ConfigError(
                "expected the reply of the guarded model, got another one: a middleware behind "
                "GuardrailMiddleware takes another model or answers itself; make GuardrailMiddleware the last"
            )
    return response


def _without_structure(error: StructuredOutputError) -> ModelResponse:
    """Return a replaced reply, which is none of the model's failures to keep to a schema.

    Raises:
        StructuredOutputError: the reply is the model's own, or this version does not tell whose it is.
    """
    message = getattr(error, "ai_message", None)
    if isinstance(message, AIMessage) and is_replaced(message):
        return ModelResponse(result=[message])
    raise error
