"""The pure losses: against slow loops, by finite differences, and at their edges."""

import math

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy, normalize  # noqa: E402

from guardrail.trainer.losses import (  # noqa: E402
    UNSAFE_OF_UNKNOWN_LEVEL,
    false_negative_weights,
    level_loss,
    socially_aware_n_pair_loss,
    stance_loss,
    twin_loss,
    unsafe_log_odds,
    violation_logits,
)

pytest.importorskip("sentence_transformers")

from guardrail.trainer.objectives import RuleContrast  # noqa: E402

SIZES = [1, 2, 5]
D = 4


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def weights_like(*shape, seed=9):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def odds(row):
    casual, caution, intervention = (math.exp(value) for value in row)
    return math.log((caution + intervention) / casual)


# Slow references, written from the formulas


def slow_level(logits, classes, weights):
    total = 0.0
    for row, label, weight in zip(logits.tolist(), classes.tolist(), weights.tolist(), strict=True):
        p = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        total -= weight * math.log(p[1] + p[2] if label == UNSAFE_OF_UNKNOWN_LEVEL else p[label])
    return total / weights.sum().item()


def slow_n_pair(conversations, rules, weights, negative_weights, temperature):
    def cosine(a, b):
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    c, r, n = conversations.tolist(), rules.tolist(), len(rules)
    total = 0.0
    for i in range(n):
        own = math.exp(cosine(c[i], r[i]) / temperature)
        others = sum(
            float(negative_weights[i, j]) * math.exp(cosine(c[i], r[j]) / temperature)
            for j in range(n)
            if j != i
        )
        total -= float(weights[i]) * math.log(own / (own + others))
    return total / n


def slow_stance(unsafe, safe, negative_weights):
    n = len(unsafe)
    own = sum(softplus(-float(unsafe[i, i])) for i in range(n)) / n
    kept = sum(softplus(float(safe[i, i])) for i in range(n)) / n
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    weight = sum(float(negative_weights[i, j]) for i, j in pairs)
    other = sum(float(negative_weights[i, j]) * softplus(float(unsafe[i, j])) for i, j in pairs)
    return (own + kept + other / max(weight, 1.0)) / 3


@pytest.mark.parametrize("n", SIZES)
def test_unsafe_log_odds(n):
    logits = draw(n, 3, scale=3)
    assert unsafe_log_odds(logits).tolist() == pytest.approx([odds(row) for row in logits.tolist()])


def test_log_odds_of_the_trainer_are_those_of_the_runtime():
    from guardrail.calibration import unsafe_log_odds as runtime_log_odds

    logits = draw(20, 3, scale=10)
    assert unsafe_log_odds(logits).tolist() == pytest.approx(runtime_log_odds(logits.numpy()).tolist())


@pytest.mark.parametrize("n", [1, 4, 9])
def test_level_loss(n):
    logits, weights = draw(n, 3, scale=3), weights_like(n)
    classes = torch.arange(n) % 4
    expected = slow_level(logits, classes, weights)
    assert level_loss(logits, classes, weights).item() == pytest.approx(expected)


def test_level_loss_is_cross_entropy_where_the_level_is_known():
    logits, classes = draw(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    loss = level_loss(logits, classes, torch.full((6,), 0.3, dtype=torch.float64))
    assert loss.item() == pytest.approx(cross_entropy(logits, classes).item())


def test_unknown_level_counts_both_unsafe_levels():
    logits = draw(1, 3)
    p = logits.softmax(dim=1)[0]
    loss = level_loss(logits, torch.tensor([UNSAFE_OF_UNKNOWN_LEVEL]), torch.ones(1))
    assert loss.item() == pytest.approx(-math.log(p[1] + p[2]))
    # Moving mass between the two unsafe levels changes nothing.
    moved = torch.log(torch.stack([p[0], p[1] + 0.9 * p[2], 0.1 * p[2]]))[None]
    other = level_loss(moved, torch.tensor([UNSAFE_OF_UNKNOWN_LEVEL]), torch.ones(1))
    assert other.item() == pytest.approx(loss.item())


def test_level_loss_weighs_agreement():
    logits, classes = draw(2, 3), torch.tensor([0, 2])
    one, two = (level_loss(logits[i : i + 1], classes[i : i + 1], torch.ones(1)).item() for i in range(2))
    both = level_loss(logits, classes, torch.tensor([3.0, 1.0])).item()
    assert both == pytest.approx((3 * one + two) / 4)


@pytest.mark.parametrize("n", SIZES)
def test_twin_loss(n):
    unsafe, safe = draw(n, 3, scale=3), draw(n, 3, seed=1, scale=3)
    expected = sum(softplus(odds(s) - odds(u)) for u, s in zip(unsafe.tolist(), safe.tolist(), strict=True))
    assert twin_loss(unsafe, safe).item() == pytest.approx(expected / n)


def test_twin_loss_is_log_2_where_twins_look_alike():
    logits = draw(5, 3, scale=4)
    assert twin_loss(logits, logits).item() == pytest.approx(math.log(2))


def test_twin_loss_falls_when_the_unsafe_one_rises():
    safe = draw(1, 3)
    steps = [safe + torch.tensor([0.0, step, step]) for step in (-20.0, -2.0, 0.0, 2.0, 20.0)]
    values = [twin_loss(unsafe, safe).item() for unsafe in steps]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(20)
    assert values[-1] < 1e-8


def test_twin_loss_depends_on_the_difference_alone():
    unsafe, safe = draw(3, 3), draw(3, 3, seed=1)
    both_higher = torch.tensor([0.0, 5.0, 5.0])
    assert twin_loss(unsafe + both_higher, safe + both_higher).item() == pytest.approx(
        twin_loss(unsafe, safe).item()
    )


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_n_pair_loss(n, temperature):
    conversations, rules = draw(n, D), draw(n, D, seed=1)
    weights, negatives = weights_like(n), weights_like(n, n, seed=3)
    loss = socially_aware_n_pair_loss(
        conversations, rules, weights=weights, negative_weights=negatives, temperature=temperature
    )
    expected = slow_n_pair(conversations, rules, weights, negatives, temperature)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("n", SIZES)
def test_n_pair_loss_with_all_weights_1_is_info_nce(n):
    conversations, rules = draw(n, D), draw(n, D, seed=1)
    similarity = normalize(conversations, dim=1) @ normalize(rules, dim=1).T / 0.05
    expected = cross_entropy(similarity, torch.arange(n)).item()
    ones = {"weights": torch.ones(n), "negative_weights": torch.ones(n, n, dtype=torch.float64)}
    assert socially_aware_n_pair_loss(conversations, rules).item() == pytest.approx(expected)
    assert socially_aware_n_pair_loss(conversations, rules, **ones).item() == pytest.approx(expected)


def test_weight_0_takes_a_negative_out():
    conversations, rules = draw(3, D).requires_grad_(), draw(3, D, seed=1).requires_grad_()
    without = torch.ones(3, 3, dtype=torch.float64)
    without[0, 2] = without[1, 2] = 0
    only_first_two = torch.tensor([1.0, 1.0, 0.0])
    loss = socially_aware_n_pair_loss(conversations, rules, weights=only_first_two, negative_weights=without)
    loss.backward()
    assert rules.grad[2].abs().max() == 0
    assert rules.grad[:2].abs().min() > 0
    smaller = socially_aware_n_pair_loss(conversations[:2], rules[:2])
    assert loss.item() * 3 == pytest.approx(smaller.item() * 2)


def test_a_negative_with_less_weight_costs_less():
    conversations, rules = draw(3, D), draw(3, D, seed=1)
    values = [
        socially_aware_n_pair_loss(
            conversations, rules, negative_weights=torch.full((3, 3), w, dtype=torch.float64)
        ).item()
        for w in (0.0, 0.25, 0.5, 1.0)
    ]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[3] > values[1] > 0


def test_the_own_rule_counts_whatever_its_negative_weight():
    conversations, rules = draw(3, D), draw(3, D, seed=1)
    mask = torch.ones(3, 3, dtype=torch.float64)
    no_diagonal = mask - torch.eye(3, dtype=torch.float64)
    with_it, without = (
        socially_aware_n_pair_loss(conversations, rules, negative_weights=w).item()
        for w in (mask, no_diagonal)
    )
    assert with_it == without


def test_weight_of_an_example_scales_its_part():
    conversations, rules = draw(3, D), draw(3, D, seed=1)
    parts = [
        socially_aware_n_pair_loss(conversations, rules, weights=torch.eye(3)[i]).item() for i in range(3)
    ]
    weights = torch.tensor([0.2, 1.0, 3.0])
    loss = socially_aware_n_pair_loss(conversations, rules, weights=weights).item()
    assert loss == pytest.approx(0.2 * parts[0] + parts[1] + 3 * parts[2])
    assert min(parts) > 0


def test_n_pair_loss_ignores_lengths():
    conversations, rules = draw(3, D), draw(3, D, seed=1)
    scaled = socially_aware_n_pair_loss(7 * conversations, rules / 9)
    assert scaled.item() == pytest.approx(socially_aware_n_pair_loss(conversations, rules).item())


def test_rules_that_say_the_same_are_no_negatives():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    near = torch.tensor([0.9, 0.3])  # cosine with a: 0.95
    rules = torch.stack([a, b, 5 * a, near]).requires_grad_()
    mask = false_negative_weights(rules, rules)
    assert mask.tolist() == [[0, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert false_negative_weights(rules, rules, same=0.99).tolist()[0] == [0, 1, 0, 1]
    assert not mask.requires_grad
    assert mask.dtype == rules.dtype


def test_graded_weights_fall_with_likeness_and_with_a_common_foundation():
    angles = torch.tensor([0.0, 20.0, 53.13, 66.42, 90.0, 180.0], dtype=torch.float64).deg2rad()
    rules = torch.stack([angles.cos(), angles.sin()], dim=1)  # cosines 1, .94, .6, .4, 0, -1 with the first
    first = false_negative_weights(rules[:1], rules, graded=True)[0].tolist()
    assert first == pytest.approx([0, 0, 0.5, 1, 1, 1], abs=1e-3)
    foundations = torch.tensor([2.0, 2.0, 2.0, 2.0, -1.0, 3.0])
    known = false_negative_weights(
        rules[:1], rules, graded=True, anchor_foundations=foundations[:1], foundations=foundations
    )
    assert known[0].tolist() == pytest.approx([0, 0, 0.25, 0.5, 1, 1], abs=1e-3)
    unknown = false_negative_weights(
        rules[:1], rules, graded=True, anchor_foundations=-torch.ones(1), foundations=-torch.ones(6)
    )
    assert unknown[0].tolist() == pytest.approx(first)


def slow_hard(conversations, rules, hard, hard_weights, own, temperature):
    def score(i, other):
        cosine = torch.nn.functional.cosine_similarity(conversations[i], other, dim=0)
        return math.exp(float(cosine) / temperature)

    total = 0.0
    for i in range(len(conversations)):
        mine = score(i, rules[own[i]])
        others = sum(score(i, rules[j]) for j in range(len(rules)) if j != own[i])
        hards = sum(float(hard_weights[i, m]) * score(i, hard[i, m]) for m in range(hard.shape[1]))
        total -= math.log(mine / (mine + others + hards))
    return total / len(conversations)


def contrast(texts, rules, hard=None, social=False, labels=None):
    labels = torch.tensor([[0.0, 1.0, -1.0]] * len(texts)) if labels is None else labels
    return RuleContrast(temperature=0.3, social=social).loss(texts, rules, hard, labels).item()


@pytest.mark.parametrize("social", [False, True])
def test_the_own_rule_of_a_text_is_no_negative_where_another_row_has_it_too(social):
    texts, rules = draw(3, D), draw(1, D, seed=1).repeat(3, 1)
    assert contrast(texts, rules, social=social) == pytest.approx(0, abs=1e-6)
    # Nor where it fills the place of a hard negative.
    assert contrast(texts, rules, hard=rules[:, None], social=social) == pytest.approx(0, abs=1e-6)


def test_without_social_weights_it_is_info_nce():
    texts, rules = draw(3, D), torch.eye(D, dtype=torch.float64)[:3]
    labels = torch.tensor([[0.0, 0.2, 1.0], [0.0, 1.5, 1.0], [0.0, 1.0, 1.0]])
    similarity = normalize(texts, dim=1) @ rules.T / 0.3
    expected = cross_entropy(similarity, torch.arange(3)).item()
    assert contrast(texts, rules, labels=labels) == pytest.approx(expected)
    assert contrast(texts, rules, labels=labels, social=True) != pytest.approx(expected)


@pytest.mark.parametrize(("rules_count", "hard_count"), [(4, 1), (4, 3), (9, 2)])
def test_n_pair_loss_with_hard_negatives_and_rules_of_other_processes(rules_count, hard_count):
    conversations, rules = draw(4, D), draw(rules_count, D, seed=1)
    hard, hard_weights = draw(4, hard_count, D, seed=2), weights_like(4, hard_count)
    hard_weights[0, 0] = 0
    own = torch.arange(4) + rules_count - 4
    loss = socially_aware_n_pair_loss(
        conversations, rules, own=own, hard_negatives=hard, hard_weights=hard_weights, temperature=0.3
    )
    expected = slow_hard(conversations, rules, hard, hard_weights, own.tolist(), 0.3)
    assert loss.item() == pytest.approx(expected)


def test_hard_negatives_of_weight_0_change_nothing_and_get_no_gradient():
    conversations, rules = draw(3, D), draw(3, D, seed=1)
    hard = draw(3, 2, D, seed=2).requires_grad_()
    loss = socially_aware_n_pair_loss(
        conversations, rules, hard_negatives=hard, hard_weights=torch.zeros(3, 2, dtype=torch.float64)
    )
    assert loss.item() == pytest.approx(socially_aware_n_pair_loss(conversations, rules).item())
    loss.backward()
    assert hard.grad.abs().max() == 0


def test_a_weight_on_the_own_rule_is_not_read():
    conversations, rules = draw(3, D), draw(5, D, seed=1)
    own, weights = torch.tensor([4, 0, 2]), weights_like(3, 5)
    other = weights.clone()
    other[torch.arange(3), own] = 0
    losses = [
        socially_aware_n_pair_loss(conversations, rules, own=own, negative_weights=w).item()
        for w in (weights, other)
    ]
    assert losses[0] == losses[1]


def test_gradients_of_hard_negatives_by_finite_differences():
    def loss(c, r, h):
        return socially_aware_n_pair_loss(
            c, r, hard_negatives=h, hard_weights=weights_like(3, 2), negative_weights=weights_like(3, 3)
        )

    inputs = [draw(3, D), draw(3, D, seed=1), draw(3, 2, D, seed=2)]
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("n", SIZES)
def test_violation_logits(n):
    violation, rules, logits = draw(n, D), draw(n, D, seed=1), draw(n, 3, seed=2)
    found = violation_logits(violation, rules, logits)
    for i in range(n):
        for j in range(n):
            length = math.sqrt(sum(x * x for x in rules[j].tolist()))
            product = sum(x * y for x, y in zip(violation[i].tolist(), rules[j].tolist(), strict=True))
            assert found[i, j].item() == pytest.approx(product / length + odds(logits[i].tolist()))


@pytest.mark.parametrize("n", SIZES)
def test_stance_loss(n):
    unsafe, safe, negatives = draw(n, n, scale=3), draw(n, n, seed=1, scale=3), weights_like(n, n)
    negatives = 2 * negatives  # so that their sum is above 1 for n > 1
    assert stance_loss(unsafe, safe, negatives).item() == pytest.approx(slow_stance(unsafe, safe, negatives))


def test_stance_loss_wants_the_own_rule_broken_and_no_other():
    high, low = 9.0, -9.0
    right = torch.full((3, 3), low).fill_diagonal_(high)
    none = torch.full((3, 3), low)
    ones = torch.ones(3, 3)
    best = stance_loss(right, none, ones).item()
    assert best < 1e-3
    assert stance_loss(none, none, ones).item() == pytest.approx(3, abs=0.01)  # own rule missed
    assert stance_loss(right, right, ones).item() == pytest.approx(3, abs=0.01)  # safe twin accused
    every = torch.full((3, 3), high)
    assert stance_loss(every, none, ones).item() == pytest.approx(3, abs=0.01)  # other rules accused
    assert stance_loss(every, none, 0 * ones).item() == pytest.approx(best, abs=1e-3)  # they say the same


# Finite differences


def gradients_are_right(function, *inputs):
    return torch.autograd.gradcheck(function, [value.requires_grad_() for value in inputs])


@pytest.mark.parametrize("n", SIZES)
def test_gradients_of_level_losses(n):
    classes, weights = torch.arange(n) % 4, weights_like(n)
    assert gradients_are_right(lambda z: level_loss(z, classes, weights), draw(n, 3))
    assert gradients_are_right(twin_loss, draw(n, 3), draw(n, 3, seed=1))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("zeros", [False, True])
def test_gradients_of_the_n_pair_loss(n, zeros):
    weights, negatives = weights_like(n), weights_like(n, n)
    if zeros:
        negatives = (negatives > 0.5).double()

    def loss(conversations, rules):
        return socially_aware_n_pair_loss(
            conversations, rules, weights=weights, negative_weights=negatives, temperature=0.5
        )

    assert gradients_are_right(loss, draw(n, D), draw(n, D, seed=1))


@pytest.mark.parametrize("n", SIZES)
def test_gradients_of_the_stance_loss(n):
    negatives = weights_like(n, n)

    def loss(unsafe, safe, rules, unsafe_logits, safe_logits):
        return stance_loss(
            violation_logits(unsafe, rules, unsafe_logits),
            violation_logits(safe, rules, safe_logits),
            negatives,
        )

    inputs = [draw(n, D), draw(n, D, seed=1), draw(n, D, seed=2), draw(n, 3, seed=3), draw(n, 3, seed=4)]
    assert gradients_are_right(loss, *inputs)


# Edges: a loss and its gradients are finite, whatever the batch


def finite(loss, *inputs):
    """Assert that a loss and its gradients are finite; return the loss."""
    inputs = [value.float().requires_grad_() for value in inputs]
    value = loss(*inputs)
    assert value.shape == ()
    assert torch.isfinite(value)
    for gradient in torch.autograd.grad(value, inputs, allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()
    return value.item()


@pytest.mark.parametrize("label", [0, 1, 2, UNSAFE_OF_UNKNOWN_LEVEL])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("n", [1, 3])
def test_level_loss_of_one_class_is_finite(label, scale, n):
    classes, weights = torch.full((n,), label), torch.ones(n)
    assert finite(lambda z: level_loss(z, classes, weights), draw(n, 3, scale=scale)) >= 0


def test_level_loss_of_weights_0_is_0():
    assert finite(lambda z: level_loss(z, torch.tensor([0, 3]), torch.zeros(2)), draw(2, 3)) == 0


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("n", [1, 3])
def test_twin_loss_is_finite(scale, n):
    assert finite(twin_loss, draw(n, 3, scale=scale), draw(n, 3, seed=1, scale=scale)) >= 0


def test_n_pair_loss_of_one_is_0():
    assert finite(socially_aware_n_pair_loss, draw(1, D), draw(1, D, seed=1)) == 0
    loss = lambda c, r: socially_aware_n_pair_loss(c, r, negative_weights=torch.zeros(1, 1))  # noqa: E731
    assert finite(loss, draw(1, D), draw(1, D, seed=1)) == 0


def test_n_pair_loss_with_nothing_left_is_0():
    def no_examples(c, r):
        return socially_aware_n_pair_loss(c, r, weights=torch.zeros(3))

    def no_negatives(c, r):
        return socially_aware_n_pair_loss(c, r, negative_weights=torch.zeros(3, 3))

    assert finite(no_examples, draw(3, D), draw(3, D, seed=1)) == 0
    assert finite(no_negatives, draw(3, D), draw(3, D, seed=1)) == pytest.approx(0, abs=1e-6)


def test_batch_in_which_all_rules_are_the_same():
    def n_pair(c, r):
        return socially_aware_n_pair_loss(c, r, negative_weights=false_negative_weights(r, r))

    def stance(v, r, z):
        return stance_loss(
            violation_logits(v, r, z), violation_logits(-v, r, -z), false_negative_weights(r, r)
        )

    rules = draw(1, D).repeat(3, 1)
    assert finite(n_pair, draw(3, D), rules) == pytest.approx(0, abs=1e-6)
    assert finite(stance, draw(3, D), rules, draw(3, 3)) > 0


@pytest.mark.parametrize("where", ["conversations", "rules"])
def test_zero_vectors_are_finite(where):
    conversations, rules = draw(3, D), draw(3, D, seed=1)
    (conversations if where == "conversations" else rules)[1] = 0

    def loss(c, r):
        return socially_aware_n_pair_loss(c, r, negative_weights=false_negative_weights(r, r))

    assert finite(loss, conversations, rules) > 0


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_stance_loss_is_finite(n, weight):
    mask = torch.full((n, n), weight)
    assert finite(lambda u, s: stance_loss(u, s, mask), draw(n, n, scale=1e4), draw(n, n, scale=1e4)) >= 0
