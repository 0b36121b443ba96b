"""``atlas-jax align --plan``, and the plan in one line before a run."""

from typing import TYPE_CHECKING, Any

from atlas_jax.cli._console import emit, note
from atlas_jax.cli._corpus import SENTENCES
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from atlas_jax.corpus import Corpus
    from atlas_jax.pipeline import AlignSettings, Pair

LONG = 60.0  # seconds from which a run is announced with its plan


def show_plan(
    subject: str | None,
    atlas: str,
    sites: list[str],
    methods: tuple[str, ...],
    settings: dict[str, Any],
    sentences: int | None,
    device: str | None,
    devices: int | None,
    *,
    as_json: bool,
    **more: Any,
) -> None:
    """Print the plan of an alignment.

    Raises:
      AtlasError: without --subject, or as :func:`atlas_jax.pipeline.read_setup` and ``known_device``.
    """
    import jax

    from atlas_jax import pipeline

    if subject is None:
        raise AtlasError("--plan needs --subject, whose config tells its shapes")
    kind = pipeline.known_device(device)
    count = devices or (jax.device_count() if device is None else 1)
    fit = sentences or SENTENCES
    asked = pipeline.AlignSettings(tuple(sites), methods, **settings)
    setup = pipeline.read_setup(subject, atlas, asked, (fit, fit // 2), kind, devices=count, **more)
    plan = pipeline.plan_alignment(setup)
    if device is None and count in (1, jax.device_count()):
        note("compiling for the devices here")
        plan = pipeline.compiled_plan(plan)
    emit(as_json, plan.to_dict(), *plan.tables())


def sites_at_once(
    pair: "Pair", settings: "AlignSettings", corpus: "Corpus", *, at_once: int | None, **more: Any
) -> int | None:
    """Return how many sites fit at once, and say in one line what a run of more than a minute will hold and take.

    None where all do, where nothing does, or where models are replaced by stored activations, of which no plan is made.
    """
    import jax
    import numpy as np

    from atlas_jax import pipeline
    from atlas_jax.models import LanguageModel
    from atlas_jax.sharding import gather

    subject, atlas = pair.subject, pair.atlas
    if not all(isinstance(space.model, LanguageModel) for space in (subject, atlas)):
        return at_once
    parts = subject.model.config, atlas.model.config, atlas.sae.config, atlas.site
    sentences = len(corpus.fit), len(corpus.eval)
    device = pipeline.known_device()
    setup = pipeline.Setup(*parts, settings, sentences, device, jax.device_count(), at_once=at_once, **more)
    plan = pipeline.plan_alignment(setup)
    if plan.seconds > LONG or not plan.fits or plan.setup.at_once != at_once:
        note(plan.line())
    return int(gather(np.array(plan.setup.at_once or 0))[0]) or None  # of the first process: all must do the same
