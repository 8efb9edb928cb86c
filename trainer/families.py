"""Groups whose rules of thumb say nearly the same, so that they stay in one split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

# Share of common words from which two rules are taken for one.
ALIKE = 0.6


def families(groups: Sequence[str], rules: Sequence[str], alike: float = ALIKE) -> dict[str, str]:
    """Return the family of every group: the first, by name, of the groups that it hangs together with.

    Two groups hang together if rules of theirs have at least `alike` of their words in common
    (Jaccard index of the sets of words), directly or by way of others.

    Args:
        groups: n names, in any order, repeated where a group has several rules.
        rules: n texts.
        alike: (0, 1].
    """
    if not groups:
        return {}
    pairs = sorted(set(zip(groups, rules, strict=True)))
    names = sorted({group for group, _ in pairs})
    place = {name: number for number, name in enumerate(names)}
    words = CountVectorizer(binary=True, token_pattern=r"[A-Za-z0-9']+")
    table = words.fit_transform([rule for _, rule in pairs]).astype(np.int32)
    sizes = np.asarray(table.sum(1)).ravel()
    common = (table @ table.T).tocoo()
    union = sizes[common.row] + sizes[common.col] - common.data
    near = common.data >= alike * union
    own = np.array([place[group] for group, _ in pairs])
    links = np.zeros(near.sum(), np.int8) + 1
    graph_shape = (len(names), len(names))
    graph = coo_matrix((links, (own[common.row[near]], own[common.col[near]])), shape=graph_shape)
    _, labels = connected_components(graph, directed=False)
    first: dict[int, str] = {}
    for name, label in zip(names, labels, strict=True):
        first.setdefault(int(label), name)
    return {name: first[int(label)] for name, label in zip(names, labels, strict=True)}
