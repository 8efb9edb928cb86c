"""A LangChain agent with a tool and a guarded model: one middleware more.

Runs offline: the chat model here reads its answers from a script. Put your own in its place, e.g.
`ChatOpenAI(model=...)`; nothing else changes.

    python examples/langchain_agent.py
"""

from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool

from guardrail import Guardrail
from guardrail.integrations.langchain_agent import GuardrailMiddleware


class ScriptedChatModel(GenericFakeChatModel):
    """LangChain's fake model; that it may call tools is all that it lacks."""

    def bind_tools(self, tools: object, **options: object) -> "ScriptedChatModel":
        return self


@tool
def write_message(to: str, text: str) -> str:
    """Write somebody a message."""
    return f"sent to {to}"


SAID = "My flatmate is away. I want to open her letters so that she doesn't notice."
ASK = {"to": "the flatmate", "text": "Letters have come for you. Shall I send them on?"}
DRAFTS = [
    "Good idea, she'll never know! Hold them over the kettle.",  # is seen by nobody
    AIMessage("", tool_calls=[{"name": "write_message", "args": ASK, "id": "call-1"}]),
    "They're hers, so please leave them closed. I've asked her whether you may send them on.",
]


def show(message: BaseMessage) -> None:
    """Print what a step of the agent added to the conversation, and what the guard did."""
    for call in getattr(message, "tool_calls", []):
        print(f"calls:     {call['name']}({call['args']})")
    if message.content:
        print(f"{message.type + ':':10} {message.content}")
    if told := message.response_metadata.get("guardrail"):
        tried = [attempt["strategy"] for attempt in told["attempts"] if attempt["flagged"]]
        print(f"guard:     strategy {told['strategy']}, rejected drafts {len(tried)}")


def main() -> None:
    """Let the agent answer; print each step."""
    model = ScriptedChatModel(messages=iter(DRAFTS))
    agent = create_agent(model, [write_message], middleware=[GuardrailMiddleware(guard=Guardrail.load())])
    print(f"user:      {SAID}")
    for step in agent.stream({"messages": [("user", SAID)]}, stream_mode="updates"):
        for update in step.values():
            for message in update["messages"]:
                show(message)


if __name__ == "__main__":
    main()
