"""Gradient caching: same loss, same gradients as the plain batch."""

import pytest

torch = pytest.importorskip("torch")

from guardrail.trainer.gradcache import cached_loss  # noqa: E402
from guardrail.trainer.losses import socially_aware_n_pair_loss  # noqa: E402


def network(dropout=0.0):
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 4)
    ).double()


def batch(rows, seed):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def n_pair(embeddings):
    texts, rules = embeddings.chunk(2)
    return socially_aware_n_pair_loss(texts, rules, temperature=0.1)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_same_loss_and_gradients_as_the_plain_batch(size):
    model, texts, rules = network(), batch(8, 0), batch(8, 1)
    plain = n_pair(torch.cat([model(texts), model(rules)]))
    plain.backward()
    expected = gradients(model)
    model.zero_grad()
    chunks = [*texts.split(size), *rules.split(size)]
    cached = cached_loss(chunks, model, n_pair)
    cached.backward()
    assert cached.item() == pytest.approx(plain.item(), abs=1e-12)
    for ours, theirs in zip(gradients(model), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_a_factor_on_the_loss_reaches_the_gradients():
    model, texts = network(), batch(6, 0)
    cached_loss(list(texts.split(2)), model, n_pair).backward()
    once = gradients(model)
    model.zero_grad()
    (3 * cached_loss(list(texts.split(2)), model, n_pair)).backward()
    for ours, theirs in zip(gradients(model), once, strict=True):
        assert torch.allclose(ours, 3 * theirs)


def test_both_passes_see_the_same_dropout():
    """With the same masks a step against the gradient lowers that very loss."""
    model, texts = network(dropout=0.5), batch(8, 0)
    torch.manual_seed(11)
    loss = cached_loss([texts], model, n_pair)
    loss.backward()
    cached = gradients(model)
    model.zero_grad()
    torch.manual_seed(11)
    plain = n_pair(model(texts))
    plain.backward()
    assert loss.item() == pytest.approx(plain.item())
    for ours, theirs in zip(cached, gradients(model), strict=True):
        assert torch.allclose(ours, theirs)


def test_the_second_pass_does_not_disturb_the_random_numbers_of_others():
    model, texts = network(dropout=0.5), batch(8, 0)
    loss = cached_loss(list(texts.split(2)), model, n_pair)
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_without_gradients_it_is_the_loss():
    model, texts = network(), batch(6, 0)
    with torch.no_grad():
        loss = cached_loss(list(texts.split(2)), model, n_pair)
    assert loss.item() == pytest.approx(n_pair(model(texts)).item())
    assert not loss.requires_grad
