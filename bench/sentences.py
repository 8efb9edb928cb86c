"""What does it change to judge a reply sentence by sentence, besides as a whole?

    python bench/sentences.py --data ../shared/data

Assistant turns of more than one sentence, from the validation parts of public sets. Prints how many are
flagged as a whole, and how many if the ends of their sentences count too.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

from guardrail import Guardrail
from guardrail.sentences import next_cut
from guardrail.trainer.examples import Example
from guardrail.trainer.loaders import load_examples

LABELLED = ("bad", "diasafety", "toxichat")
CASUAL = ("msc", "persona", "self_dialogue", "topical_chat", "wow")
MOST = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    groups: dict[tuple[str, bool], list[Example]] = defaultdict(list)
    for item in load_examples(arguments.data, [*LABELLED, *CASUAL], "val"):
        if item.turns[-1].role == "assistant" and next_cut(item.turns[-1].text) is not None:
            source = item.source if item.source in LABELLED else "casual"
            groups[source, bool(item.unsafe)].append(item)
    guard = Guardrail.load()
    print(f"{'set':12} {'label':7} {'n':>5} {'whole':>7} {'sentences too':>14}")
    for (source, unsafe), items in sorted(groups.items()):
        chosen = random.Random(5).sample(items, min(MOST * 2, len(items)))
        whole = [flagged(guard, item, None) for item in chosen]
        either = [known or any_sentence(guard, item) for known, item in zip(whole, chosen, strict=True)]
        label = "unsafe" if unsafe else "safe"
        share = [100 * sum(found) / len(chosen) for found in (whole, either)]
        print(f"{source:12} {label:7} {len(chosen):5} {share[0]:6.1f}% {share[1]:13.1f}%")


def flagged(guard: Guardrail, item: Example, end: int | None) -> bool:
    messages = [{"role": turn.role, "content": turn.text} for turn in item.turns]
    messages[-1]["content"] = item.turns[-1].text[:end]
    return guard.check(messages).flagged


def any_sentence(guard: Guardrail, item: Example) -> bool:
    cut = next_cut(item.turns[-1].text)
    while cut is not None:
        if flagged(guard, item, cut):
            return True
        cut = next_cut(item.turns[-1].text, cut)
    return False


if __name__ == "__main__":
    main()
