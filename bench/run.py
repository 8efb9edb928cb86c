"""Measure speed, memory and size of the guard against the budgets, in one run on this machine.

Ratios to sentence-transformers are taken in the same run, on the same texts, alternating, so that
a busy neighbour hits both alike. Run it with `make bench`; `--rules 160000` adds the large index.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil

import guardrail
from guardrail.artifact import DEFAULT_FOLDER
from guardrail.compose import Composer
from guardrail.quote import quote_of
from guardrail.rule_index import RuleIndex
from guardrail.types import Turn

WORDS = (
    "my neighbour asked me whether i could water her plants while she visits her sister in the mountains "
    "and i said yes of course but then i remembered that we will be away too so now i wonder whom else she "
    "could ask maybe the family downstairs they have a small garden and two friendly dogs that bark at the "
    "postman every single morning"
).split()


def text_of(guard: guardrail.Guardrail, tokens: int) -> str:
    """Return words that make a window of this many tokens, special ones included."""
    words: list[str] = []
    while guard.check(" ".join(words) or "a").coverage.tokens_read + 2 < tokens:
        words.append(WORDS[len(words) % len(WORDS)])
    return " ".join(words)


def timed(function, *args) -> float:
    started = time.perf_counter()
    function(*args)
    return 1000 * (time.perf_counter() - started)


def latency(guard, encode, rounds: int) -> dict[str, float]:
    figures = {}
    for tokens in (32, 128):
        text = text_of(guard, tokens)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(timed(guard.check, text))
            if encode is not None:
                theirs.append(timed(encode, text))
        figures[f"check_{tokens}_p50_ms"] = statistics.median(ours)
        figures[f"check_{tokens}_p99_ms"] = float(np.percentile(ours, 99))
        if theirs:
            figures[f"sentence_transformers_{tokens}_p50_ms"] = statistics.median(theirs)
            figures[f"check_{tokens}_speedup"] = statistics.median(theirs) / statistics.median(ours)
    return figures


def repair(guard, rounds: int) -> dict[str, float]:
    """Time the composing of a reply alone, and a whole repair with rules read and the reply judged."""
    rules = [rule for rule in guard.rules if rule.violations][:: max(1, len(guard.rules) // rounds)]
    talks = [(rule, list(rule.violations[0].turns)) for rule in rules]
    talks = [(rule, turns if len(turns) % 2 else turns[:-1]) for rule, turns in talks]
    composer = Composer(guard.rules)
    said = [tuple(Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(t)) for _, t in talks]
    alone = [
        timed(
            lambda r=rule, t=turns, s=spoken: (composer.compose(r, t), composer.general(t, quote=quote_of(s)))
        )
        for (rule, turns), spoken in zip(talks, said, strict=True)
    ]
    guard.repair(talks[0][1])  # its model is loaded by the first repair
    whole = [timed(guard.repair, turns) for _, turns in talks]
    return {
        "composed_reply_p50_ms": statistics.median(alone),
        "composed_reply_p99_ms": float(np.percentile(alone, 99)),
        "whole_repair_p50_ms": statistics.median(whole),
        "whole_repair_p99_ms": float(np.percentile(whole, 99)),
    }


def throughput(guard, encode, n: int) -> dict[str, float]:
    texts = [" ".join(WORDS[i % 30 : i % 30 + 8 + i % 24]) for i in range(n)]
    guard.check_batch(texts[:50])
    ours, theirs = [], []
    for _ in range(3):
        ours.append(timed(guard.check_batch, texts))
        if encode is not None:
            theirs.append(timed(encode, texts))
    figures = {"check_batch_per_s": 1000 * n / min(ours)}
    if theirs:
        figures["sentence_transformers_per_s"] = 1000 * n / min(theirs)
        figures["check_batch_speedup"] = min(theirs) / min(ours)
    return figures


def fresh_process(code: str, runs: int = 5) -> float:
    """Return the shortest time of a fresh interpreter that runs the code, seconds."""
    return min(timed(subprocess.check_output, [sys.executable, "-c", code]) for _ in range(runs)) / 1000


def resident_memory() -> float:
    """Return MB resident after 1,000 checks of different texts in a fresh process."""
    code = (
        "import guardrail, os;"
        "[guardrail.check('we had %d cups of tea and talked about the weather' % i) for i in range(1000)];"
        "print(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))"
    )
    return int(subprocess.check_output([sys.executable, "-c", code])) / 1e6


def packages() -> int:
    """Return how many packages the core install brings, itself not counted."""
    seen: set[str] = set()
    queue = ["prosocial-guardrail"]
    while queue:
        for requirement in metadata.requires(queue.pop()) or []:
            name = requirement.split(";")[0].strip().split("[")[0]
            name = "".join(c for c in name.split(" ")[0] if c.isalnum() or c in "-_.").rstrip("0123456789.")
            wanted = ";" not in requirement or "extra ==" not in requirement
            if wanted and name.lower() not in seen and installed(name):
                seen.add(name.lower())
                queue.append(name)
    return len(seen)


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def index_search(size: int) -> dict[str, float]:
    """Return search time and recall of an index of clustered vectors, like rules on common themes."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((size // 40, 384), dtype=np.float32)
    vectors = centres[rng.integers(len(centres), size=size)] + 0.7 * rng.standard_normal(
        (size, 384), dtype=np.float32
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:300] + 0.3 / np.sqrt(384) * rng.standard_normal((300, 384), dtype=np.float32)
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    index = RuleIndex(384)
    built = timed(index.add, vectors) / 1000
    times, found = [], []
    for query in queries:
        started = time.perf_counter()
        found.append({position for position, _ in index.search(query[None], 10)[0]})
        times.append(1000 * (time.perf_counter() - started))
    exact = np.argpartition(-(queries @ vectors.T), 10, axis=1)[:, :10]
    recall = np.mean([len(set(row) & hits) / 10 for row, hits in zip(exact.tolist(), found, strict=True)])
    return {
        f"search_{size}_p99_ms": float(np.percentile(times, 99)),
        f"search_{size}_recall_at_10": float(recall),
        f"search_{size}_build_s": built,
    }


def sentence_transformers_encode():
    """Return `encode` of the untuned base as sentence-transformers runs it, or None without the extra."""
    try:
        from sentence_transformers import SentenceTransformer

        from guardrail.trainer.encoder import base_folder
    except ImportError:
        return None
    return SentenceTransformer(base_folder("minilm"), device="cpu").encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument(
        "--rules", type=int, action="append", default=[], help="also an index of so many vectors"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    guard = guardrail.Guardrail.load()
    guard.check("hello")
    encode = sentence_transformers_encode()
    figures = latency(guard, encode, options.rounds) | repair(guard, options.rounds)
    figures |= throughput(guard, encode, 1000)
    figures["fresh_process_s"] = fresh_process("import guardrail; guardrail.check('hi')")
    figures["import_s"] = fresh_process("import guardrail")
    figures["resident_mb"] = resident_memory()
    figures["model_mb"] = sum(path.stat().st_size for path in Path(DEFAULT_FOLDER).iterdir()) / 1e6
    figures["core_packages"] = packages()
    figures["cores"] = psutil.cpu_count() or 0
    for size in options.rules:
        figures |= index_search(size)
    if options.json:
        print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
        return
    for name, value in figures.items():
        print(f"{name:38} {value:12.3f}")


if __name__ == "__main__":
    main()
