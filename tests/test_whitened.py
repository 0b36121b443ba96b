"""The whitened family against powers taken in float64 from the activations themselves."""

import numpy as np
import pytest
from helpers.float64 import distance

from atlas_jax import translators
from atlas_jax.errors import AtlasError
from atlas_jax.statistics import Statistics, update
from atlas_jax.translators import Member, Spectrum, Whitening

N, D_S, D_C = 260, 40, 300  # fewer sentences than atlas features: the atlas Gram matrix has rank N at most
NEEDS = [prefix + need for prefix in ("", "unit_") for need in ("cross", "subject_gram", "atlas_gram")]
VIEWS = [(unit, centre) for unit in (True, False) for centre in (True, False)]


@pytest.fixture(scope="module")
def pair():
    """Activations with dead features on both sides, copies, and a column that is the sum of two others."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(N, 30))
    a_s = hidden @ rng.normal(size=(30, D_S)) + 0.3 * rng.normal(size=(N, D_S)) + 1.0
    a_c = np.maximum(hidden @ rng.normal(size=(30, D_C)) + rng.normal(size=(N, D_C)) - 2, 0)
    a_s[:, 3], a_s[:, 5], a_s[:, 6] = 0, a_s[:, 4], a_s[:, 7] + a_s[:, 8]
    a_c[:, [2, 11]] = 0
    a_c[:, 20] = a_c[:, 21]
    a_s, a_c = a_s.astype(np.float32), a_c.astype(np.float32)
    stats = Statistics.init(NEEDS, D_S, D_C)
    for half in np.array_split(np.arange(N), 4):
        stats = update(stats, a_s[half], a_c[half])
    return a_s, a_c, stats


def view_of(a, unit, centre):
    a = a.astype(np.float64)
    a = a / np.linalg.norm(a, axis=1, keepdims=True) if unit else a
    return a - a.mean(0) if centre else a


def power_of(a, power, ridge):
    """``(a^T a + ridge mean)^-power`` on the range of ``a``, from its singular values; and its rank."""
    _, s, vt = np.linalg.svd(a, full_matrices=False)
    keep = s > 1e-6 * s[0]
    shift = ridge * (s**2).sum() / a.any(axis=0).sum()
    return (vt[keep].T * (s[keep] ** 2 + shift) ** -power) @ vt[keep], int(keep.sum())


@pytest.mark.parametrize(("unit", "centre"), VIEWS)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_every_member_is_its_definition_on_rank_deficient_grams(pair, unit, centre, ridge):
    a_s, a_c, stats = pair
    s, c = (view_of(a, unit, centre) for a in (a_s, a_c))
    powers = [(0, 0), (0.5, 0), (1, 0), (0, 1), (0.5, 0.5), (1, 1)]
    family = translators.whitened_family(stats, powers, normalize_rows=unit, centre=centre, ridge=ridge)
    for (a, b), (matrix, certificate) in family.items():
        left, rank_s = power_of(s, a, ridge)
        right, rank_c = power_of(c, b, ridge)
        left, right = (left if a else np.eye(D_S)), (right if b else np.eye(D_C))
        assert distance(matrix, left @ s.T @ c @ right) < 1e-4, (a, b)
        assert certificate.get("rank_subject", rank_s) == rank_s
        assert certificate.get("rank_atlas", rank_c) == rank_c
        assert not np.asarray(matrix)[3].any()
        assert not np.asarray(matrix)[:, [2, 11]].any()
        assert (certificate["ridge"], certificate["centre"], certificate["normalize_rows"]) == (ridge, centre, unit)


def test_noise_of_float32_is_not_whitened(pair):
    """With the cut at zero the copies and the missing samples pass for directions of their own, and blow up."""
    a_s, a_c, stats = pair
    sound = translators.whitened(stats, alpha=0.0, beta=1.0, normalize_rows=False, centre=True)
    noisy = translators.whitened(stats, alpha=0.0, beta=1.0, normalize_rows=False, centre=True, cut=0.0)
    truth = np.linalg.lstsq(view_of(a_c, False, True), view_of(a_s, False, True), rcond=1e-6)[0].T
    assert distance(sound.matrix, truth) < 1e-4
    assert noisy.certificate["rank_atlas"] > sound.certificate["rank_atlas"]
    assert distance(noisy.matrix, truth) > 1e-2


def test_which_side_is_which(pair):
    """(0, 1) is Eq. 8, the regression of the subject on the atlas; (1, 0) regresses the atlas on the subject."""
    a_s, a_c, stats = pair
    s, c = a_s.astype(np.float64), a_c.astype(np.float64)
    family = translators.whitened_family(stats, [(0, 1), (1, 0)], normalize_rows=False)
    assert distance(family[0, 1].matrix, translators.least_squares(stats).matrix) < 1e-4
    assert distance(family[0, 1].matrix, np.linalg.lstsq(c, s, rcond=1e-6)[0].T) < 1e-4
    assert distance(family[1, 0].matrix, np.linalg.lstsq(s, c, rcond=1e-6)[0]) < 1e-4


@pytest.mark.parametrize(("unit", "centre"), VIEWS)
def test_turned_rows_give_the_cosines_of_the_matrix(pair, rng, unit, centre):
    stats = pair[2]
    members = [Member(a, b, unit, centre, r) for a in (0, 0.5, 1) for b in (0, 0.5, 1) for r in (0.0, 0.1)]
    whitening = Whitening.from_statistics(stats, members)
    turned, q = whitening.in_eigenbasis(), rng.normal(size=(5, D_C)).astype(np.float32)
    cosine = lambda t, q: (q @ t.T / np.maximum(np.linalg.norm(t, axis=1), 1e-30)).astype(np.float64)
    for member in members:
        rows, matrix = np.array(turned.rows(member)), np.asarray(whitening.solve(member).matrix)
        rows[3] = 0  # dead: rounding of zero there, exactly zero in the matrix
        assert distance(cosine(rows, np.asarray(turned.queries(q))), cosine(matrix, q)) < 3e-3, member


def test_one_eigendecomposition_a_side_serves_the_grid(pair, monkeypatch):
    calls = []
    of = Spectrum.from_statistics.__func__
    monkeypatch.setattr(
        Spectrum, "from_statistics", classmethod(lambda cls, *a, **k: calls.append(a[1]) or of(cls, *a, **k))
    )
    grid = [(a, b) for a in (0, 0.5, 1) for b in (0, 0.5, 1)]
    translators.whitened_family(pair[2], grid, ridge=0.1)
    assert calls == ["subject", "atlas"]
    known = Spectrum.from_statistics(pair[2], "atlas", normalize_rows=True, centre=False, cut=3e-7)
    calls.clear()
    Whitening.from_statistics(pair[2], [Member(1.0, 1.0)], atlas=known)
    assert calls == ["subject"]


def test_a_member_names_what_it_needs(pair):
    member = Member(0.0, 0.5, normalize_rows=True)
    assert member.needs == {"unit_cross", "unit_atlas_gram"}
    stats = update(Statistics.init(member.needs, D_S, D_C), pair[0], pair[1])
    translators.whitened(stats, **member._asdict())
    with pytest.raises(AtlasError, match="lack 'unit_subject_gram'"):
        translators.whitened(stats, alpha=1.0)
    with pytest.raises(ValueError, match="one view"):
        Whitening.from_statistics(stats, [Member(centre=True), Member(centre=False)])
