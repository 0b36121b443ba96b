"""What a pass takes by XLA's own analysis: its programs compiled from shapes alone, for devices that are here."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.labels import Labels
from atlas_jax.models import LanguageModel
from atlas_jax.pipeline._abstract import abstract_decoder, abstract_sae, abstract_state, device_bytes
from atlas_jax.pipeline._fit import Fitted, empty_fitted, fit_step
from atlas_jax.pipeline._plan_costs import Setup, rows_of, widths_of
from atlas_jax.pipeline._run import encode_batch, encode_poolings
from atlas_jax.sharding import make_mesh
from atlas_jax.statistics import NormSums
from atlas_jax.subject import Subject
from atlas_jax.translators import needs_of
from atlas_jax.types import Tokens


def compiled_bytes(setup: Setup) -> dict[str, int]:
    """Compile the steps of a pass and return the bytes of each device that are ``held``, and that each step adds.

    Example:
      >>> from atlas_jax import AlignSettings
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import compiled_bytes, known_device, read_setup
      >>> settings = AlignSettings(("mlp_act.1",), ("covariance",))
      >>> sorted(compiled_bytes(read_setup(SUBJECT, ATLAS, settings, (200, 100), known_device("cpu"))))
      ['atlas', 'held', 'statistics', 'subject']
    """
    mesh = None if setup.devices == 1 else make_mesh(model=setup.model_parallel)
    settings = setup.settings
    model = lambda config: LanguageModel(config, None, abstract_decoder(config, settings.dtype, mesh), {})
    further = [settings.steer_pooling] if settings.steer_pooling else []
    subject = Subject.from_model(model(setup.subject), setup.sites, pooling=settings.pooling, further=further)
    labels = Labels.empty(setup.sae.d_sae)
    atlas = ConceptAtlas(model(setup.foundation), abstract_sae(setup.sae, mesh), setup.site, labels)
    tokens = _tokens(setup, mesh)
    size = device_bytes(tokens)
    held = {"held": device_bytes((subject, atlas)), "statistics": 0}
    held["subject"] = _bytes_of(encode_poolings.lower(subject, tokens).compile(), size)
    held["atlas"] = _bytes_of(encode_batch.lower(atlas, tokens).compile(), size)
    if not setup.host_statistics:
        state = _state(setup, mesh)
        held["held"] += device_bytes(state)
        held["statistics"] = _bytes_of(fit_step.lower(state, *_pooled(setup, mesh), mesh=mesh).compile(), 0)
    return held


def _bytes_of(compiled: Any, arguments: int) -> int:
    """What a program needs beside what is held, with the arguments that it is given, used or not."""
    m = compiled.memory_analysis()
    return arguments + m.temp_size_in_bytes + max(0, m.output_size_in_bytes - m.alias_size_in_bytes)


def _tokens(setup: Setup, mesh: Mesh | None) -> Tokens:
    """A batch of the longest sentences."""
    length = min(setup.settings.max_length, setup.subject.max_positions, setup.foundation.max_positions)
    rows = max(1, setup.settings.token_budget // length) * (setup.devices // setup.model_parallel)
    make, wide = _maker(mesh), (rows, length)
    return Tokens(make(jnp.int32, *wide), make(bool, *wide), make(jnp.int32, rows), make(bool, *wide))


def _pooled(setup: Setup, mesh: Mesh | None) -> tuple[Any, ...]:
    """Pooled activations of a batch of the shortest sentences, as a step of the statistics takes them."""
    rows, make = rows_of(setup), _maker(mesh)
    acts = {site: make(jnp.float32, rows, width) for site, width in widths_of(setup).items()}
    norms = NormSums({site: make(jnp.float32, rows) for site in setup.sites}, make(jnp.float32, rows))
    others = {setup.settings.steer_pooling: acts} if setup.settings.steer_pooling else {}
    return acts, others, make(jnp.float32, rows, setup.sae.d_sae), norms, make(jnp.int32, rows)


def _maker(mesh: Mesh | None) -> Any:
    sharding = None if mesh is None else NamedSharding(mesh, P("data"))
    return lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _state(setup: Setup, mesh: Mesh | None) -> Fitted:
    """What a pass keeps."""
    settings, widths = setup.settings, widths_of(setup)
    further = {settings.steer_pooling: needs_of(settings.steer_methods)} if settings.steer_pooling else {}
    empty = lambda: empty_fitted(needs_of(settings.methods), widths, setup.sae.d_sae, further, top_k=settings.top_k)
    return abstract_state(empty, mesh)
