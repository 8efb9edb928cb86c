"""Gradient caching: the gradients of one large batch, in the memory of a small one.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
The contrastive loss needs all embeddings at once, but not all activations: embed in chunks without a
graph, take the loss's gradients with respect to the embeddings, then embed each chunk again with a
graph and push those gradients through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Chunk = TypeVar("Chunk")


def cached_loss(
    chunks: Sequence[Chunk],
    embed: Callable[[Chunk], Tensor],
    loss_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return a loss over all chunks whose `backward()` gives the gradients of the plain batch.

    The random numbers of the first pass (dropout) are drawn again in the second, so both see the
    same network.

    Args:
        chunks: parts of the batch.
        embed: from a chunk to its embeddings, (rows of the chunk, d).
        loss_of: from all embeddings, (rows, d), to a scalar.

    Returns:
        Scalar with the loss's value; call `backward()` on it as on any other, once.
    """
    states: list[_RandomState] = []
    parts: list[Tensor] = []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_RandomState())
            parts.append(embed(chunk))
    leaves = torch.cat(parts).detach().requires_grad_()
    if not torch.is_grad_enabled():
        return loss_of(leaves)
    with torch.enable_grad():
        loss = loss_of(leaves)
        (gradient,) = torch.autograd.grad(loss, leaves)
    sizes = [len(part) for part in parts]
    handle = loss.detach().requires_grad_()
    autocast = torch.is_autocast_enabled(leaves.device.type)
    dtype = torch.get_autocast_dtype(leaves.device.type)

    def push(scale: Tensor) -> None:
        parts = torch.split(gradient, sizes)
        for chunk, state, part in zip(chunks, states, parts, strict=True):
            mixed = torch.autocast(leaves.device.type, dtype, enabled=autocast)
            with torch.enable_grad(), state.again(), mixed:
                embeddings = embed(chunk)
            torch.autograd.backward(embeddings, part.to(embeddings.dtype) * scale)

    handle.register_hook(push)  # type: ignore[no-untyped-call]
    return handle


class _RandomState:
    """The state of the random number generators at one moment."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        self.gpu = [torch.cuda.get_rng_state(device) for device in self.devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw from this state inside `with`, and leave the generators as they were."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu)
            for device, state in zip(self.devices, self.gpu, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
