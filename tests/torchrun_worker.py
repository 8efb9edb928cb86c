"""Run by torchrun in `test_trainer.py`: shared negatives and a tiny training, in every process."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from guardrail.trainer.config import EncoderConfig
from guardrail.trainer.encoder import build_model, train
from guardrail.trainer.losses import socially_aware_n_pair_loss
from guardrail.trainer.mix import TrainingRows
from guardrail.trainer.objectives import RuleContrast


def shared_negatives(rank: int) -> dict[str, object]:
    torch.manual_seed(0)
    x = torch.randn(8, 5)
    network = torch.nn.Linear(5, 4)
    whole = socially_aware_n_pair_loss(network(x[:4]), network(x[4:]))
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


def tiny_training(base: str, run: Path) -> list[float]:
    ids = range(6)
    rows = TrainingRows(
        level=[{"text": f"user: drive {i}", "label": [i % 3, 1.0, -1]} for i in ids],
        twins=[{"unsafe": f"user: beer {i}", "safe": f"user: tea {i}", "label": [1, 1.0, -1]} for i in ids],
        rules=[
            {"unsafe": f"user: beer {i}", "safe": "user: tea", "rule": f"rule {i}", "label": [1, 1.0, 0]}
            for i in ids
        ],
        norms=[{"text": f"user: bread {i}", "rule": f"rule {i}", "label": [0, 1.0, 1]} for i in ids],
    )
    config = EncoderConfig(base=base, batch_size=4, max_tokens=32, bf16=False, max_steps=3)
    torch.manual_seed(5)
    model = train(build_model(base, max_tokens=32), rows, config, run)
    return torch.cat([p.detach().flatten()[:3] for p in model.parameters()]).tolist()


def main() -> None:
    base, folder = sys.argv[1], Path(sys.argv[2])
    weights = tiny_training(base, folder / "run")
    rank = distributed.get_rank()
    report = {**shared_negatives(rank), "weights": weights}
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
