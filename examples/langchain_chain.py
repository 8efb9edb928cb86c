"""A LangChain chain with a guarded chat model: prompt | guarded model | parser.

Runs offline: the chat model here reads its answers from a script. Put your own in its place, e.g.
`ChatOpenAI(model=...)`; nothing else changes.

    python examples/langchain_chain.py
"""

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from guardrail import Guardrail
from guardrail.integrations.langchain import guard_model

PROMPT = ChatPromptTemplate.from_messages([("system", "You are a cheerful assistant."), ("human", "{said}")])
# What the user says, and the chat model's drafts, one after the other.
SCENES = [
    ("What goes well with tomato soup?", ["Grilled cheese, always."]),
    (
        "My flatmate is away. I want to open her letters so that she doesn't notice.",
        [
            "Good idea, she'll never know! Hold them over the kettle.",
            "They're hers, so please leave them closed. Ask her whether she wants them sent on.",
        ],
    ),
]


def show(said: str, model: Runnable) -> None:
    """Stream one reply through the chain, then tell what the guard did."""
    told: dict[str, object] = {}

    def remember(message: object) -> object:
        told.update(message.response_metadata["guardrail"])
        return message

    chain = PROMPT | model | remember | StrOutputParser()
    print(f"user:      {said}")
    print("assistant: ", end="")
    for piece in chain.stream({"said": said}):  # only judged words arrive here
        print(piece, end="", flush=True)
    rules = [match["rule"] for match in told["verdict_in"]["rules"]]
    print(f"\nguard:     strategy {told['strategy']}, attempts {len(told['attempts'])}, rules {rules}\n")


def main() -> None:
    """Show each scene with one guard for all."""
    guard = Guardrail.load()
    for said, drafts in SCENES:
        scripted = GenericFakeChatModel(messages=iter([*drafts, drafts[-1], drafts[-1]]))
        show(said, guard_model(scripted, guard))


if __name__ == "__main__":
    main()
