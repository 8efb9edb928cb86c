"""Put the guard around any function that takes messages and returns a reply."""

from collections.abc import Iterator

import guardrail


def llm(messages: list[dict[str, str]]) -> str:
    """Stand in for a real LLM: a cheerful one that goes along with everything."""
    return "A small commission for the banker of the family, she'd want you to have it!"


guard = guardrail.Guardrail.load()
safe_llm = guard.wrap(llm)

conversation = [
    {"role": "user", "content": "grandma can't work her banking app so I do it for her"},
    {"role": "assistant", "content": "That's kind of you!"},
    {
        "role": "user",
        "content": "yeah well, I round up a little for myself each time, she'd never notice",
    },
]

verdict = guard.check(conversation)
print(f"the user's turn: {verdict.action.value}, P(unsafe) = {verdict.probability:.2f}")
for match in verdict.rules:
    print(f"  breaks {match.rule.id}: {match.rule.text}")
print("the LLM alone:  ", llm(conversation))
print("with the guard: ", safe_llm(conversation))


def streaming_llm(messages: list[dict[str, str]]) -> Iterator[str]:
    """Stand in for an LLM that streams."""
    for word in llm(messages).split(" "):
        yield f"{word} "


print("as a stream:     ", end="")
for piece in guard.wrap(streaming_llm)(conversation):  # each sentence is judged before it comes
    print(piece, end="", flush=True)
print()
