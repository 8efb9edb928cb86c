"""The rule index against brute force, at its borders, and with broken input."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail import ArtifactError, ConfigError, ModelError
from guardrail.rule_index import FLAT_LIMIT, RuleIndex


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_unit(n, dimension, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(n, dimension)))


def clustered(n, dimension, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(200, dimension))
    return unit(centres[rng.integers(200, size=n)] + 0.3 * rng.normal(size=(n, dimension)))


def filled(vectors):
    index = RuleIndex(vectors.shape[1])
    index.add(vectors)
    return index


def brute_force(vectors, query, k):
    cosines = vectors @ query
    best = np.argsort(-cosines, kind="stable")[:k]
    return best.tolist(), cosines[best]


@pytest.fixture(scope="module")
def large():
    """Vectors just above the limit, and their index, grown in three steps across it."""
    vectors = clustered(FLAT_LIMIT + 300, 16)
    index = RuleIndex(16)
    for part in np.split(vectors, [100, FLAT_LIMIT]):
        index.add(part)
    return vectors, index


# ---------------------------------------------------------------- search


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_search_equals_brute_force(n, dimension, k, seed):
    vectors = random_unit(n, dimension, seed)
    queries = random_unit(3, dimension, seed + 1)
    found = filled(vectors).search(queries, k)

    assert len(found) == 3
    for query, hits in zip(queries, found, strict=True):
        _, cosines = brute_force(vectors, query, k)
        assert len(hits) == min(k, n)
        assert len({position for position, _ in hits}) == len(hits)
        np.testing.assert_allclose([cosine for _, cosine in hits], cosines, atol=1e-5)
        for position, cosine in hits:
            assert cosine == pytest.approx(float(vectors[position] @ query), abs=1e-5)


def test_positions_count_in_the_order_of_adding():
    vectors = random_unit(20, 8)
    index = RuleIndex(8)
    for part in np.split(vectors, [1, 7]):
        index.add(part)

    assert len(index) == 20
    assert [hits[0][0] for hits in index.search(vectors, 1)] == list(range(20))
    np.testing.assert_array_equal(index.vectors([3, 0, 19]), vectors[[3, 0, 19]])


def test_more_hits_than_vectors_gives_all_of_them():
    vectors = random_unit(3, 8)
    (hits,) = filled(vectors).search(vectors[:1], 1000)

    assert sorted(position for position, _ in hits) == [0, 1, 2]


def test_an_empty_index_finds_nothing():
    index = RuleIndex(8)

    assert len(index) == 0
    assert index.search(random_unit(2, 8), 5) == [[], []]
    assert index.vectors([]).shape == (0, 8)


def test_no_query_gives_no_result():
    assert filled(random_unit(3, 8)).search(np.zeros((0, 8), np.float32), 2) == []


def test_adding_nothing_changes_nothing():
    index = filled(random_unit(3, 8))
    index.add(np.zeros((0, 8), np.float32))

    assert len(index) == 3


def test_other_layouts_and_types_are_taken():
    vectors = random_unit(6, 8)
    index = RuleIndex(8)
    index.add(np.asfortranarray(vectors.astype(np.float64)))

    assert [hits[0][0] for hits in index.search(vectors[::-2], 1)] == [5, 3, 1]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("shape", [(2, 5), (2, 9), (8,), (1, 2, 8), (8, 2)])
def test_another_shape_is_refused_with_both_shapes(shape):
    index = filled(random_unit(3, 8))
    vectors = np.ones(shape, np.float32)
    got = str(shape).replace("(", r"\(").replace(")", r"\)")

    for act in (index.add, lambda vectors: index.search(vectors, 1)):
        with pytest.raises(ModelError, match=rf"expected vectors of shape \(n, 8\), got {got}") as caught:
            act(vectors)
        assert caught.value.stage == "index"
    assert len(index) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    index = filled(random_unit(3, 8))
    vectors = random_unit(2, 8)
    vectors[1, 3] = value

    for act in (index.add, lambda vectors: index.search(vectors, 1)):
        with pytest.raises(ModelError, match="expected finite vectors, got NaN or infinity"):
            act(vectors)
    assert len(index) == 3


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, 1.02])
def test_rows_not_of_unit_length_are_refused(factor):
    index = filled(random_unit(3, 8))
    vectors = random_unit(2, 8)
    vectors[1] *= factor

    with pytest.raises(ModelError, match="expected rows of unit length, got length"):
        index.add(vectors)
    assert len(index) == 3


@pytest.mark.parametrize("dimension", [0, -1])
def test_a_dimension_below_one_is_refused(dimension):
    with pytest.raises(ConfigError, match=f"expected dimension >= 1, got {dimension}"):
        RuleIndex(dimension)


@pytest.mark.parametrize("k", [0, -1])
def test_a_k_below_one_is_refused(k):
    with pytest.raises(ConfigError, match=f"expected k >= 1, got {k}"):
        filled(random_unit(3, 8)).search(random_unit(1, 8), k)


# ---------------------------------------------------------------- copy, save, load


def test_a_copy_is_independent():
    vectors = random_unit(10, 8)
    index = filled(vectors[:5])
    twin = index.copy()
    twin.add(vectors[5:])

    assert (len(index), len(twin)) == (5, 10)
    assert index.search(vectors[7:8], 10) == filled(vectors[:5]).search(vectors[7:8], 10)
    assert twin.search(vectors[7:8], 1)[0][0][0] == 7
    index.add(vectors[9:])
    assert (len(index), len(twin)) == (6, 10)


@pytest.mark.parametrize("n", [0, 1, 50])
def test_save_and_load_give_equal_results(tmp_path, n):
    vectors = random_unit(n, 8)
    index = filled(vectors)
    index.save(tmp_path / "rules.faiss")
    loaded = RuleIndex.load(tmp_path / "rules.faiss", 8)
    queries = random_unit(4, 8, seed=9)

    assert len(loaded) == n
    assert loaded.search(queries, 7) == index.search(queries, 7)
    loaded.add(vectors)
    assert (len(loaded), len(index)) == (2 * n, n)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"expected a rule index at .*none\.faiss, found none"):
        RuleIndex.load(tmp_path / "none.faiss", 8)
    with pytest.raises(ArtifactError, match="found none"):
        RuleIndex.load(tmp_path, 8)


@pytest.mark.parametrize("body", [b"", b"x", b"garbage" * 100, bytes(4000)])
def test_a_file_that_is_no_index_is_refused(tmp_path, body):
    path = tmp_path / "rules.faiss"
    path.write_bytes(body)
    with pytest.raises(ArtifactError, match="expected a FAISS index at .*rules.faiss, FAISS cannot read it"):
        RuleIndex.load(path, 8)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "rules.faiss"
    filled(random_unit(50, 8)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match="FAISS cannot read it"):
        RuleIndex.load(path, 8)


def test_an_index_of_another_dimension_is_refused(tmp_path):
    filled(random_unit(5, 8)).save(tmp_path / "rules.faiss")
    with pytest.raises(ArtifactError, match="expected an index of dimension 16 at .+, got 8; it was built"):
        RuleIndex.load(tmp_path / "rules.faiss", 16)


def test_an_index_that_does_not_measure_cosines_is_refused(tmp_path):
    foreign = faiss.IndexFlatL2(8)
    foreign.add(random_unit(5, 8))
    faiss.write_index(foreign, str(tmp_path / "rules.faiss"))
    with pytest.raises(ArtifactError, match="expected"):
        RuleIndex.load(tmp_path / "rules.faiss", 8)


# ---------------------------------------------------------------- many vectors


def kind_on_disk(index, path):
    index.save(path)
    return type(faiss.read_index(str(path)))


def test_above_the_limit_the_index_is_a_graph(large, tmp_path):
    vectors, index = large
    at_limit = filled(vectors[:FLAT_LIMIT])

    assert kind_on_disk(at_limit, tmp_path / "a") is faiss.IndexFlatIP
    assert kind_on_disk(index, tmp_path / "b") is faiss.IndexHNSWFlat
    assert len(index) == len(vectors)


def test_above_the_limit_search_still_finds_the_nearest(large):
    vectors, index = large
    queries = clustered(200, 16, seed=5)
    found = index.search(queries, 10)
    hit = 0
    for query, hits in zip(queries, found, strict=True):
        positions, _ = brute_force(vectors, query, 10)
        hit += len(set(positions) & {position for position, _ in hits})
        cosines = [cosine for _, cosine in hits]
        assert cosines == sorted(cosines, reverse=True)
        for position, cosine in hits:
            assert cosine == pytest.approx(float(vectors[position] @ query), abs=1e-5)

    assert hit / 2000 >= 0.95


@pytest.mark.parametrize("k", [1, 10, 500, 3000])
def test_no_position_is_ever_negative(large, k):
    vectors, index = large
    for hits in index.search(random_unit(20, 16, seed=3), k):
        positions = [position for position, _ in hits]
        assert 0 < len(positions) <= k
        assert min(positions) >= 0
        assert max(positions) < len(vectors)
        assert len(set(positions)) == len(positions)


def test_vectors_added_to_a_graph_are_found_at_once(large):
    vectors, index = large
    twin = index.copy()
    new = random_unit(5, 16, seed=11)
    twin.add(new)

    assert (len(index), len(twin)) == (len(vectors), len(vectors) + 5)
    assert [hits[0][0] for hits in twin.search(new, 1)] == list(range(len(vectors), len(vectors) + 5))
    np.testing.assert_array_equal(twin.vectors([0, len(vectors)]), np.stack([vectors[0], new[0]]))


def test_a_graph_survives_saving(large, tmp_path):
    _, index = large
    index.save(tmp_path / "rules.faiss")
    queries = random_unit(10, 16, seed=4)

    assert RuleIndex.load(tmp_path / "rules.faiss", 16).search(queries, 10) == index.search(queries, 10)
