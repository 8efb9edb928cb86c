"""Run by torchrun in `test_trainer.py`: shared negatives and a tiny training, in every process."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from guardrail.trainer.config import EncoderConfig
from guardrail.trainer.encoder import build_model, train
from guardrail.trainer.losses import false_negative_weights, socially_aware_n_pair_loss
from guardrail.trainer.mix import TrainingRows
from guardrail.trainer.objectives import RuleContrast
from guardrail.trainer.processes import last_to_work


def shared_negatives(rank: int) -> dict[str, object]:
    torch.manual_seed(0)
    x = torch.randn(8, 5)
    network = torch.nn.Linear(5, 4)
    rules = network(x[4:])
    weights = false_negative_weights(rules, rules)
    whole = socially_aware_n_pair_loss(network(x[:4]), rules, negative_weights=weights)
    whole_gradient = torch.autograd.grad(whole, list(network.parameters()))
    parallel = DistributedDataParallel(network)
    mine = slice(2 * rank, 2 * rank + 2)
    embeddings = parallel(torch.cat([x[:4][mine], x[4:][mine]]))
    labels = torch.tensor([[0.0, 1.0, -1.0]] * 2)
    loss = RuleContrast(social=False).loss(embeddings[:2], embeddings[2:], None, labels)
    loss.backward()
    mean = loss.detach().clone()
    distributed.all_reduce(mean)
    return {
        "loss": float(mean) / 2,
        "whole_loss": float(whole),
        "gradient": torch.cat([p.grad.flatten() for p in network.parameters()]).tolist(),
        "whole_gradient": torch.cat([g.flatten() for g in whole_gradient]).tolist(),
    }


def tiny_training(base: str, run: Path) -> dict[str, object]:
    """Train one epoch on four sets of different sizes, the last smaller than the number of processes."""
    rows = TrainingRows(
        level=[{"text": f"user: drive {i}", "label": [i % 3, 1.0, -1]} for i in range(11)],
        twins=[
            {"unsafe": f"user: beer {i}", "safe": f"user: taxi {i}", "label": [1, 1.0, -1]} for i in range(5)
        ],
        rules=[
            {"unsafe": f"user: kids {i}", "safe": "user: tea", "rule": f"rule {i}", "label": [1, 1.0, 0]}
            for i in range(3)
        ],
        norms=[{"text": "user: bread", "rule": "share it", "label": [0, 1.0, 1]}],
    )
    config = EncoderConfig(base=base, batch_size=4, max_tokens=32, bf16=False, epochs=1)
    torch.manual_seed(5)
    model = build_model(base, max_tokens=32)
    read: list[list[str]] = []
    model.register_forward_pre_hook(
        lambda _, features: read.append(
            model.tokenizer.batch_decode(features[0]["input_ids"], skip_special_tokens=True)
        )
    )
    model = train(model, rows, config, run)
    weights = torch.cat([p.detach().flatten()[:3] for p in model.parameters()]).tolist()
    return {"weights": weights, "read": read}


def main() -> None:
    base, folder = sys.argv[1], Path(sys.argv[2])
    report = tiny_training(base, folder / "run")
    assert (folder / "run" / "model" / "modules.json").is_file()  # in every process, as soon as it is done
    rank = distributed.get_rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(report | shared_negatives(rank)))
    assert last_to_work() == (rank == 0)
    assert not distributed.is_initialized()


if __name__ == "__main__":
    main()
