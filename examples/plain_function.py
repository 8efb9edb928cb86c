"""Put the guard around any function that takes messages and returns a reply."""

import guardrail


def llm(messages: list[dict[str, str]]) -> str:
    """Stand in for a real LLM: a cheerful one that goes along with everything."""
    return "Empty roads at night are lovely! Put on a good playlist and you'll be home in no time."


guard = guardrail.Guardrail.load()
safe_llm = guard.wrap(llm)

conversation = [
    {"role": "user", "content": "That was the best leaving party ever, I lost count of the gin and tonics"},
    {"role": "assistant", "content": "Sounds like a proper send-off! How are you getting back?"},
    {"role": "user", "content": "car's right outside and it's twenty minutes on empty roads, I'll be fine"},
]

verdict = guard.check(conversation)
print(f"the user's turn: {verdict.action.value}, P(unsafe) = {verdict.probability:.2f}")
for match in verdict.rules:
    print(f"  breaks {match.rule.id}: {match.rule.text}")
print("the LLM alone:  ", llm(conversation))
print("with the guard: ", safe_llm(conversation))
