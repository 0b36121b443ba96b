"""The plan of an alignment: exact where shapes decide, and a change that does make it fit."""

import dataclasses
import json

import jax
import pytest
import transformers
from helpers.commands import command_line

from atlas_jax import AlignSettings, load_pair
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.errors import AtlasError
from atlas_jax.models import ModelConfig
from atlas_jax.pipeline import Setup, compiled_plan, known_device, model_config, plan_alignment, read_setup
from atlas_jax.sae import SAEConfig
from atlas_jax.statistics import PassStatistics
from atlas_jax.translators import needs_of
from atlas_jax.types import Site

PAPER = ("procrustes", "covariance", "correlation", "least_squares", "semantic_lens", "random")


def _setup(width=16384, sites=5, device="h100", devices=1, layers=4, **settings):
    """A pair as wide as the paper's, of fewer layers."""
    llama = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    gemma = ModelConfig.from_hf(transformers.Gemma2Config(num_hidden_layers=layers))
    names = tuple(f"mlp_act.{min(i, layers - 1)}" if i < layers else f"mlp_gate_act.{i % layers}" for i in range(sites))
    asked = AlignSettings(names, settings.pop("methods", PAPER), **settings)
    sae, site = SAEConfig("jumprelu", 2304, width), Site("resid_post", layers - 1)
    sentences = 500_000, 500_000
    return Setup(ModelConfig.from_hf(llama), gemma, sae, site, asked, sentences, known_device(device), devices)


@pytest.mark.parametrize("methods", [("covariance",), ("procrustes", "ridge"), PAPER])
def test_parameters_and_statistics_are_exact(methods):
    settings = AlignSettings(("mlp_act.1", "resid_post.2"), methods)
    pair = load_pair(SUBJECT, ATLAS, settings)
    plan = plan_alignment(read_setup(SUBJECT, ATLAS, settings, (200, 100), known_device("cpu")))
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    assert plan.held["subject's parameters"] == size(pair.subject)
    assert plan.held["parameters of the atlas's model"] == size(pair.atlas.model)
    state = PassStatistics.init(needs_of(methods), pair.subject.widths, pair.atlas.width)
    counted = sum(v for k, v in plan.held.items() if "max" in k and "statistics" in k)
    assert counted == pytest.approx(size((state.sums, state.compensation)), abs=100)


@pytest.mark.parametrize(("devices", "model_parallel"), [(8, 1), (8, 2), (8, 8)])
def test_devices_share_statistics_and_parameters(devices, model_parallel):
    one = plan_alignment(_setup())
    at_once = one.setup.at_once
    many = plan_alignment(
        dataclasses.replace(_setup(), devices=devices, model_parallel=model_parallel, at_once=at_once)
    )
    name = "statistics of mlp_act.0, max-pooled"
    assert many.held[name] == pytest.approx(one.held[name] / devices, rel=1e-2)
    parameters = "subject's parameters"
    assert many.held[parameters] == pytest.approx(one.held[parameters] / model_parallel, rel=1e-2)


@pytest.mark.parametrize(
    "setup",
    [
        {"width": 16384, "sites": 5, "device": "v5e"},
        {"width": 65536, "sites": 5},
        {"width": 16384, "sites": 4, "device": "v5e", "devices": 2, "layers": 4, "methods": ("covariance",)},
        {"width": 65536, "sites": 1, "methods": ("covariance", "least_squares"), "device": "h200"},
    ],
)
def test_the_change_makes_it_fit(setup):
    plan = plan_alignment(_setup(**setup))
    assert not plan.fits
    assert "GiB to give; it would fit with" in plan.line()
    changed = plan.setup
    for words in plan.change.split(" and "):
        settings = changed.settings
        if "bfloat16" in words:
            changed = dataclasses.replace(changed, settings=dataclasses.replace(settings, dtype="bfloat16"))
        elif "budget" in words:
            budget = int(words.split()[-1])
            changed = dataclasses.replace(changed, settings=dataclasses.replace(settings, token_budget=budget))
        elif "model-parallel" in words:
            changed = dataclasses.replace(changed, model_parallel=int(words.split()[-1]))
        elif "at-once" in words:
            changed = dataclasses.replace(changed, at_once=int(words.split()[-1]))
        elif "host" in words:
            changed = dataclasses.replace(changed, host_statistics=True)
        else:
            left = tuple(m for m in settings.methods if m != "least_squares")
            changed = dataclasses.replace(changed, settings=dataclasses.replace(settings, methods=left))
    assert plan_alignment(changed).fits


def test_what_does_not_fit_is_read_in_several_passes():
    """As few as will do, each for as many sites as the others."""
    setup = _setup(sites=8, layers=32, dtype="bfloat16", methods=("covariance", "procrustes"))
    plan = plan_alignment(setup)
    assert plan.fits
    assert (plan.setup.at_once, plan.setup.passes) == (4, 2)
    assert "in 2 passes over the text for 4 sites at once" in plan.line()
    assert not plan_alignment(dataclasses.replace(setup, at_once=8)).fits
    reading = [p.stages[0] for p in (plan, plan_alignment(dataclasses.replace(setup, at_once=1)))]
    assert reading[1].peak < reading[0].peak
    assert reading[1].seconds > 2 * reading[0].seconds


def test_statistics_on_the_host_leave_the_device_to_the_models():
    setup = _setup(width=65536, sites=1, layers=32, dtype="bfloat16")
    on_device, on_host = (plan_alignment(dataclasses.replace(setup, host_statistics=h)) for h in (False, True))
    assert not on_device.fits
    assert on_host.fits
    assert on_host.host > 8 * 65536**2  # the Gram matrix of the atlas, with its rounding errors
    assert "GiB in the memory of the host" in on_host.line()
    assert not any("statistics" in name for name in on_host.held)
    assert on_host.seconds > on_device.seconds


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize(("devices", "model_parallel"), [(1, 1), (8, 2)])
def test_the_pass_is_what_xla_says(devices, model_parallel, host):
    """Compiled from shapes at real widths; a plan for twice the features must not pass for it."""
    setup = dataclasses.replace(_setup(sites=2), devices=devices, model_parallel=model_parallel, at_once=2)
    setup = dataclasses.replace(setup, host_statistics=host)
    plan = plan_alignment(setup)
    compiled = compiled_plan(plan)
    held = {"held": sum(size for name, size in plan.held.items() if "a batch" not in name)}
    assert compiled.compiled["held"] == pytest.approx(held["held"], rel=2e-3)
    assert compiled.stages[0].peak == pytest.approx(plan.stages[0].peak, rel=0.15)
    assert compiled.stages[1:] == plan.stages[1:]
    assert "XLA's own analysis" in compiled.tables()[1].caption
    if not host:
        wider = plan_alignment(dataclasses.replace(_setup(width=32768, sites=2), **_devices(setup)))
        assert wider.stages[0].peak > 1.15 * compiled.stages[0].peak


def _devices(setup):
    return {"devices": setup.devices, "model_parallel": setup.model_parallel, "at_once": setup.at_once}


def test_a_preset_is_planned_before_it_is_downloaded(tmp_path, monkeypatch):
    asked = []

    def from_hub(name, **_):
        asked.append(name)
        transformers.Gemma2Config().save_pretrained(tmp_path)
        return tmp_path

    monkeypatch.setattr("atlas_jax.pipeline._setup.from_hub", from_hub)
    settings = AlignSettings(("mlp_act.1",), ("covariance",))
    setup = read_setup(SUBJECT, "gemma-scope-2b-65k", settings, (200, 100), known_device("h100"))
    assert asked == ["google/gemma-2-2b"]
    assert (setup.sae.d_in, setup.sae.d_sae, str(setup.site)) == (2304, 65536, "resid_post.20")
    with pytest.raises(AtlasError, match="gemma-scope"):
        read_setup(SUBJECT, "gemma-scope", settings, (200, 100), known_device("h100"))


def test_more_of_anything_takes_more():
    base = plan_alignment(_setup(sites=2))
    for more in ({"sites": 3}, {"sites": 2, "width": 65536}, {"sites": 2, "token_budget": 65536}):
        assert plan_alignment(_setup(**more)).stages[0].peak > base.stages[0].peak
    assert plan_alignment(_setup(sites=2, device="a100-80gb")).seconds > base.seconds
    assert plan_alignment(_setup(sites=2, dtype="bfloat16")).seconds < base.seconds


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(AtlasError, match="unknown device 'tpu9'; known are cpu, h100, h200, a100-80gb, v5e, v5p"):
        known_device("tpu9")
    settings = AlignSettings(("mlp_act.1",), ("covariance",))
    for options, said in (({"devices": 8, "model_parallel": 3}, "--model-parallel 3 does not divide the 8 devices"),):
        with pytest.raises(AtlasError, match=said):
            read_setup(SUBJECT, ATLAS, settings, (200, 100), known_device("h100"), **options)
    with pytest.raises(AtlasError, match="site mlp_act.9 is past the last layer"):
        read_setup(SUBJECT, ATLAS, AlignSettings(("mlp_act.9",), ("covariance",)), (2, 1), known_device("h100"))
    with pytest.raises(AtlasError, match="'none' is not a directory"):
        model_config("none")


def test_the_command_reads_no_weights(tmp_path):
    for name in ("config.json", "generation_config.json"):
        if (SUBJECT / name).is_file():
            (tmp_path / name).write_bytes((SUBJECT / name).read_bytes())
    given = ["--subject", tmp_path, "--atlas", ATLAS, "--site", "mlp_act.1", "--plan", "--device", "h100", "--json"]
    done = command_line("align", *given)
    plan = json.loads(done.stdout)
    assert plan["fits"], done.stderr
    assert [stage["name"] for stage in plan["stages"]][0] == "read the fit half"
    assert not plan["compiled"]
    done = command_line("align", *given[:7], "--json")
    assert json.loads(done.stdout)["compiled"]["held"], done.stderr
