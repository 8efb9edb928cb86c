"""Add rules of your own to the guard: they guide your LLM, and are named, from the next call on.

Runs offline: the LLM here is a function that shows what it was told.

    python examples/custom_rules.py
"""

from guardrail import Guardrail

HOUSE_RULES = [
    "You shouldn't promise a refund before the warehouse has confirmed the return.",
    {
        "id": "shop-002",
        "rule": "You shouldn't share another customer's order details, not even with a family member.",
        "domain": "shop",
        "severity": "needs_caution",
    },
]
QUESTIONS = [
    "Can you promise me the refund for the return that I sent back today?",
    "My sister ordered from you too. Can you share her order details with me?",
    "Do you ship to Norway?",
]


def show_guidance(messages: list[dict[str, str]]) -> str:
    """Stand in for an LLM, and show the rules that it was told."""
    told = [line for message in messages if message["role"] == "system" for line in rules_in(message)]
    print("  the LLM is told:", *(told or ["nothing more"]), sep="\n    ")
    return "Let me look into that for you."


def rules_in(message: dict[str, str]) -> list[str]:
    """Return the lines of a system message that name rules."""
    return [line for line in message["content"].splitlines() if line.startswith("- ")]


def main() -> None:
    """Ask three questions with the house rules in force."""
    guard = Guardrail.load()
    added = guard.add_rules(HOUSE_RULES)
    names = ", ".join(rule.id for rule in added)
    print(f"{len(guard.rules)} rules in force, {len(added)} of them the shop's own: {names}\n")
    safe_llm = guard.wrap(show_guidance)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        verdict = guard.check(messages)
        print(f"user: {question}")
        print(f"  {verdict.action.value}, P(unsafe) = {verdict.probability:.2f}, touched:")
        for match in verdict.touched:
            print(f"    {match.similarity:.2f} {match.rule.text}")
        print(f"assistant: {safe_llm(messages)}\n")


if __name__ == "__main__":
    main()
