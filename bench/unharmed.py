"""Casual talk must come through as it is: how often is a fine draft shown byte for byte?

    python bench/unharmed.py [--data ../shared/data] [--count 500]

The next turn of a harmless conversation plays the LLM's draft. Conversations: our own harmless talk of
the validation and test splits; with --data also the test splits of Persona-Chat and Wizard of
Wikipedia. Prints the share that came through, how often the LLM was guided, and the time added.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from guardrail import Guardrail
from guardrail.trainer.data import load_own
from guardrail.trainer.loaders import load_examples
from guardrail.types import Turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=4)
    arguments = parser.parse_args()
    own = [
        item.turns for split in ("val", "test") for item in load_own(split)[0] if item.source == "own_casual"
    ]  # type: ignore[arg-type]
    talks = [turns for turns in own if len(turns) > 1]
    if arguments.data:
        items = load_examples(arguments.data, ["persona", "wow"], "test")
        talks += [item.turns for item in items if len(item.turns) > 1]
    chosen = random.Random(arguments.seed).sample(talks, min(arguments.count, len(talks)))
    guard = Guardrail.load()
    same, ways, times = 0, Counter[str](), []
    for turns in chosen:
        draft = turns[-1].text
        start = time.perf_counter()
        reply = guard.generate(lambda _, text=draft: text, messages(turns[:-1]))
        times.append(time.perf_counter() - start)
        same += reply.text == draft
        ways[reply.strategy] += 1
    print(f"{len(chosen)} conversations: {same / len(chosen):.3f} came through byte for byte")
    print(f"p50 {1000 * median(times):.1f} ms added; {dict(ways)}")


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return turns as messages that alternate and end on the user, who is answered by the draft."""
    last = len(turns) - 1
    return [
        {"role": "assistant" if (last - place) % 2 else "user", "content": turn.text}
        for place, turn in enumerate(turns)
    ]


if __name__ == "__main__":
    main()
