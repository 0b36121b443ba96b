"""Results show as small HTML tables in notebooks, whatever text they hold; what they are elsewhere stays."""

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import Alignment, Labels, Site, Translation
from atlas_jax.experiments import ConceptQuery, Peak, Steered, identified_table, identify, steered_table
from atlas_jax.experiments._identify import Identified
from atlas_jax.labels import Hit, Label, TextIndex, hits_table
from atlas_jax.table import Column, Shown, Table
from atlas_jax.translation import Named, Ranked

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a\x00b\u202ec & d", "</td></table><b>"]
T = Translation(
    jnp.eye(2), jnp.zeros(2), jnp.zeros(2), "covariance", Site("resid_post", 2), {"method": "x"}, token_norm=5.0
)


def _results(text):
    yield ConceptQuery(jnp.ones(1), [Hit(1, text, 9.0, 1.0)])
    yield Named(jnp.array([1]), jnp.array([0.5]), [text])
    yield Shown([Identified(7, 0.9, [Peak(4, 2.5, text, text, text)])], lambda x: identified_table(text, x))
    yield Shown([Steered(text, 0.5, text, 1.2, 9.0)], lambda x: steered_table(text, x, "norm"))
    yield Shown([Hit(3, text, 9.0, 1.0)], lambda x: hits_table(text, x))
    yield Translation(jnp.eye(2), jnp.zeros(2), jnp.zeros(2), text, certificate={text: text}, pooling=text)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_escaped(text):
    for result in _results(text):
        shown = result._repr_html_()
        assert shown.startswith("<table>")
        assert shown.count("<table>") == shown.count("</table>") == 1
        assert not any(bad in shown for bad in ("<script", "<img", "<b>", "\x00", "\u202e"))


@pytest.mark.parametrize(
    ("result", "parts"),
    [
        (T, ["covariance", "resid_post.2", "mean token norm", ">5<"]),
        (T.top_features(jnp.array([0.0, 1.0]), 1), [">1<", ">1.000<"]),
        (T.name_feature(0, 1, Labels.from_rows([Label(0, "dogs"), Label(1, "cats")])), [">0<", "dogs"]),
        (TextIndex.from_labels(Labels.from_rows([Label(3, "dogs bark")])).search("dogs"), [">3<", "dogs bark"]),
    ],
    ids=["translation", "ranked", "named", "search"],
)
def test_a_result_shows_its_values(result, parts):
    shown = result._repr_html_()
    assert all(part in shown.replace("<bdi>", "").replace("</bdi>", "") for part in parts)
    assert "<table" not in repr(result)


def test_a_list_stays_a_list():
    items = Shown([Hit(1, "a", 1.0, 1.0)], lambda hits: hits_table("", hits))
    assert items == [Hit(1, "a", 1.0, 1.0)]
    assert repr(items) == repr(list(items))
    assert type(items[:1]) is list
    assert Shown([1])._repr_html_() is None


def test_rankings_of_several_queries_have_no_table():
    assert Ranked(jnp.array([[1]]), jnp.array([[0.5]]))._repr_html_() is None


def test_a_table_shows_itself():
    assert "<td" in Table("", (Column("x"), Column("y", "d")), [("a", np.int64(3))])._repr_html_()


def test_an_alignment_shows_its_translations(bundled_run):
    run = Alignment.load(bundled_run, verify=False)
    shown = run._repr_html_()
    assert all(str(site) in shown for site in run.subject.sites)
    assert all(method.partition(":")[0] in shown for method in run.methods)
    assert str(bundled_run) not in shown
    found = identify(T, jnp.array([0.0, 1.0]), None, str, run.subject.model.tokenizer, k=1)
    assert all(part in found._repr_html_() for part in ("resid_post.2", ">1<", "none known"))
