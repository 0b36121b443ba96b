"""The static description of a sparse autoencoder."""

import dataclasses
from typing import Literal

from atlas_jax.types import Site

Kind = Literal["jumprelu", "topk", "batchtopk", "relu", "gated", "groupmax"]
Normalization = Literal["none", "constant_norm_rescale", "layer_norm"]


@dataclasses.dataclass(frozen=True)
class SAEConfig:
    """Static description of a sparse autoencoder: all but its parameters.

    Attributes:
      kind: function from pre-activations to features; see :meth:`SparseAutoencoder.encode`.
      d_in: width of the activations that are encoded.
      d_sae: number of features.
      d_out: width of the reconstruction where it differs from ``d_in``, as it may for transcoders.
      k: features kept per row (topk, groupmax), or the target mean number of active features (batchtopk).
      transcoder: the reconstruction is of another site than the input, never subtracted from or normalised.
      apply_b_dec_to_input: subtract ``b_dec`` from the input before encoding.
      normalization: normalisation of each row before encoding, undone after decoding.
      site: site of the activations, None where the files do not state it.
      site_out: site of a transcoder's reconstruction, None for an autoencoder.
      model: name of the model the SAE was trained on, as the files write it.
      format: the on-disk layout it was read from.
      advertised_l0: the mean number of active features its release states, None where it states none.
      advertised_fvu: the fraction of variance unexplained its release states.
      advertised_dead: the share of dead features its release states.

    Example:
      >>> from atlas_jax.sae import SAEConfig
      >>> from atlas_jax.types import Site
      >>> SAEConfig("topk", d_in=64, d_sae=512, k=8, site=Site("resid_post", 3)).width_out
      64
    """

    kind: Kind
    d_in: int
    d_sae: int
    d_out: int | None = None
    k: int | None = None
    transcoder: bool = False
    apply_b_dec_to_input: bool = False
    normalization: Normalization = "none"
    site: Site | None = None
    site_out: Site | None = None
    model: str | None = None
    format: str | None = None
    advertised_l0: float | None = None
    advertised_fvu: float | None = None
    advertised_dead: float | None = None

    @property
    def width_out(self) -> int:
        """Width of the reconstruction."""
        return self.d_in if self.d_out is None else self.d_out
