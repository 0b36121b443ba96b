"""Names of sites, and which edits go where."""

import pickle

import numpy as np
import pytest

from atlas_jax.bundled import SUBJECT
from atlas_jax.errors import AtlasError
from atlas_jax.models import LanguageModel
from atlas_jax.subject import Subject
from atlas_jax.types import Site, edits_by_site, sites_of


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Site.parse("mlp_acts.3"), "unknown site 'mlp_acts.3'; write POINT.LAYER with a point of resid_pre"),
        (lambda: Site.parse("mlp_act"), "unknown site 'mlp_act'"),
        (lambda: Site.parse("mlp_act.-1"), "unknown site 'mlp_act.-1'"),
        (lambda: Site.parse("blocks.3.hook_nothing"), "unknown TransformerLens hook 'hook_nothing'"),
        (lambda: Site.parse(3), "a site is text such as mlp_act.3, or a Site, not 3"),
        (lambda: Site.parse(None), "a site is text such as mlp_act.3, or a Site, not None"),
        (lambda: Site("mlp_acts", 3), "unknown point 'mlp_acts' of a site; known are resid_pre"),
        (lambda: Site("mlp_act", -1), "the layer of a site must be a whole number from 0 up, not -1"),
        (lambda: Site("mlp_act", 1.5), "the layer of a site must be a whole number from 0 up, not 1.5"),
        (lambda: Site("mlp_act", "3"), "the layer of a site must be a whole number from 0 up, not '3'"),
        (lambda: sites_of(5), "sites are a list of names such as mlp_act.3, not 5"),
        (lambda: sites_of(["mlp_act.3", None]), "a site is text"),
        (lambda: edits_by_site([("mlp_act.3", 1)]), "edits are a mapping from sites to edits, .*, not a list"),
        (lambda: edits_by_site("mlp_act.3"), "edits are a mapping from sites to edits, .*, not a str"),
        (lambda: edits_by_site({"mlp_act.3": 1, Site("mlp_act", 3): 2}), "mlp_act.3 is named twice among the edits"),
        (lambda: edits_by_site({"z.0": 1, "blocks.0.attn.hook_z": 2}), "z.0 is named twice among the edits"),
    ],
)
def test_sites_and_edits_that_make_no_sense(as_for_users, call, message):
    with pytest.raises(AtlasError, match=message):
        call()


def test_sites_are_read_once_each_in_their_order(as_for_users):
    sites = (Site("mlp_act", 3), Site("z", 0))
    assert sites_of(["mlp_act.3", sites[1], Site("mlp_act", np.int64(3)), "blocks.0.attn.hook_z"]) == sites
    assert sites_of("mlp_act.3") == sites_of(sites[0]) == sites[:1]
    assert edits_by_site({"mlp_act.3": 1, sites[1]: [2, 3]}) == {sites[0]: 1, sites[1]: [2, 3]}
    assert edits_by_site(None) == {}
    assert pickle.loads(pickle.dumps(sites)) == sites


def test_sites_of_a_subject(as_for_users):
    model = LanguageModel.from_pretrained(SUBJECT)
    assert (
        Subject.from_model(model, "mlp_act.1").sites
        == Subject.from_model(model, ["mlp_act.1", Site("mlp_act", 1)]).sites
    )
    for sites, pooling, message in (
        ([], "max", "no site was given"),
        ("mlp_act.99", "max", "past the last layer"),
        ("mlp_act.1", "median", "unknown pooling 'median'"),
        ("mlp_act.1", ["max"], "unknown pooling"),
    ):
        with pytest.raises(AtlasError, match=message):
            Subject.from_model(model, sites, pooling)
