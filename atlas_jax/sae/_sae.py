"""The sparse autoencoder: a pytree of float32 parameters and a static description."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from atlas_jax.errors import AtlasError
from atlas_jax.files import writable
from atlas_jax.sae import _activation as activation, _formats as formats, _normalize as normalize
from atlas_jax.sae._config import Kind, SAEConfig
from atlas_jax.sharding import device_put
from atlas_jax.types import Site

AXES = {
    "W_enc": (None, "model"),
    "b_enc": ("model",),
    "W_dec": ("model", None),
    "threshold": ("model",),
    "b_gate": ("model",),
    "r_mag": ("model",),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseAutoencoder:
    """A dictionary of ``m`` features over activations of width ``d``, the SAE of the paper's section 3.1.

    Rows are samples: ``pre = x @ W_enc + b_enc``, ``f = activation(pre)``, ``x_hat = f @ W_dec + b_dec``. All
    parameters are float32 and every product runs at the highest precision, because features switch on and off at a
    threshold. The object is a pytree whose ``config`` is static, so it passes through ``jax.jit`` as an ordinary
    argument. Build one with :meth:`build`, which checks shapes, or :meth:`from_pretrained`.

    Attributes:
      config: the static description.
      W_enc: encoder, ``[d, m]``.
      b_enc: encoder bias, ``[m]``; the magnitude bias of a gated SAE.
      W_dec: decoder, one row per feature, ``[m, d_out]``.
      b_dec: decoder bias, ``[d_out]``.
      threshold: jump per feature, ``[m]``, in units of ``pre`` (jumprelu, batchtopk).
      b_gate: gate bias, ``[m]`` (gated).
      r_mag: logarithm of the gated SAE's magnitude scale, ``[m]`` (gated).
      W_skip: linear path from input to output, ``[d, d_out]`` (skip transcoders).

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from atlas_jax.sae import SAEConfig, SparseAutoencoder
      >>> config = SAEConfig("jumprelu", d_in=2, d_sae=3)
      >>> W, half = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]), np.full(3, 0.5)
      >>> biases = {"b_enc": np.zeros(3), "b_dec": np.zeros(2)}
      >>> sae = SparseAutoencoder.build(config, W_enc=W, W_dec=W.T, threshold=half, **biases)
      >>> sae.encode(jnp.array([2.0, 0.25])).tolist()
      [2.0, 0.0, 0.0]
      >>> sae.decode(sae.encode(jnp.array([2.0, 0.25]))).tolist()
      [2.0, 0.0]
    """

    # jax rebuilds pytrees with leaves that are no arrays, so construction stays unchecked; the methods are checked.
    __no_type_check__ = True

    config: SAEConfig = dataclasses.field(metadata={"static": True})
    W_enc: Array
    b_enc: Array
    W_dec: Array
    b_dec: Array
    threshold: Array | None = None
    b_gate: Array | None = None
    r_mag: Array | None = None
    W_skip: Array | None = None

    @classmethod
    def build(cls, config: SAEConfig, *, mesh: Mesh | None = None, **parameters: Any) -> "SparseAutoencoder":
        """Make an SAE of parameters, checked against ``config`` and as float32; the example is that of the class.

        Args:
          config: the static description.
          mesh: spread the features over this mesh's ``"model"`` axis.
          parameters: the arrays that the attributes of the class describe.

        Raises:
          AtlasError: for a missing, unexpected, mis-shaped or non-finite parameter.
        """
        formats.check(config, parameters)
        arrays = {name: np.asarray(value, np.float32) for name, value in parameters.items()}
        return cls(config, **{name: device_put(value, mesh, *AXES.get(name, ())) for name, value in arrays.items()})

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        format: str | None = None,
        norm_scaling_factor: float | None = None,
        mesh: Mesh | None = None,
    ) -> "SparseAutoencoder":
        """Load from a directory, a file, or ``owner/repo/folder`` on the Hugging Face hub.

        Args:
          path: the directory, file or hub folder. A path that exists is never looked up on the hub.
          format: a layout's name, such as ``"saelens"``; detected from the files when None.
          norm_scaling_factor: factor by which activations were multiplied in training, for the releases whose files
            leave it out.
          mesh: spread the features over this mesh's ``"model"`` axis.

        Raises:
          AtlasError: when nothing is there, the layout is unknown, or the files are incomplete or contradict each
            other.

        Example:
          >>> from atlas_jax.bundled import ATLAS
          >>> from atlas_jax.sae import SparseAutoencoder
          >>> sae = SparseAutoencoder.from_pretrained(ATLAS / "sae")
          >>> sae.config.kind, sae.W_enc.shape, sae.config.site
          ('jumprelu', (160, 1536), Site('resid_post.3'))
        """
        config, parameters = formats.load(path, format, norm_scaling_factor)
        return cls.build(config, mesh=mesh, **parameters)

    @classmethod
    def from_state_dict(
        cls, file: str | Path, *, kind: Kind, apply_b_dec_to_input: bool, k: int | None = None, site: Site | None = None
    ) -> "SparseAutoencoder":
        """Load bare parameters (torch, safetensors or npz) of an SAE in no known layout, described by the caller.

        Args:
          file: a file with ``W_enc b_enc W_dec b_dec`` or ``encoder.weight encoder.bias decoder.weight decoder.bias``,
            the matrices either way round, and ``threshold``, ``b_gate``, ``r_mag`` where the kind has them.
          kind: function from pre-activations to features.
          apply_b_dec_to_input: subtract ``b_dec`` from the input before encoding.
          k: features kept per row, for topk.
          site: site of its activations.

        Raises:
          AtlasError: if a parameter is missing, unknown, or of a shape that leaves its meaning open.

        Example:
          >>> import tempfile
          >>> import jax.numpy as jnp
          >>> import numpy as np
          >>> from atlas_jax.sae import SparseAutoencoder
          >>> arrays = {"W_enc": np.ones((2, 3)), "b_enc": np.zeros(3), "W_dec": np.ones((3, 2)), "b_dec": np.zeros(2)}
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     np.savez(f"{directory}/mine.npz", **arrays)
          ...     sae = SparseAutoencoder.from_state_dict(
          ...         f"{directory}/mine.npz", kind="topk", k=1, apply_b_dec_to_input=False
          ...     )
          >>> sae.encode(jnp.array([1.0, 2.0])).tolist()
          [3.0, 0.0, 0.0]
        """
        config, parameters = formats.load_state_dict(Path(file), kind, apply_b_dec_to_input, k, site)
        return cls.build(config, **parameters)

    def save_pretrained(self, directory: str | Path, *, format: str = "gemma_scope") -> None:
        """Write the SAE into ``directory`` in the layout ``"gemma_scope"``, ``"saelens"`` or ``"native"``.

        Files of these names are replaced, all others stay.

        Raises:
          AtlasError: if the layout cannot express this SAE, or the directory cannot be written.

        Example:
          >>> import tempfile
          >>> from atlas_jax.bundled import ATLAS
          >>> from atlas_jax.sae import SparseAutoencoder
          >>> sae = SparseAutoencoder.from_pretrained(ATLAS / "sae")
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     sae.save_pretrained(directory, format="saelens")
          ...     again = SparseAutoencoder.from_pretrained(directory)
          >>> again.config.format, bool((again.W_enc == sae.W_enc).all())
          ('saelens', True)
        """
        parameters = {name: np.asarray(value) for name, value in self.parameters.items()}
        with writable(directory):
            formats.save(self.config, parameters, directory, format)

    @property
    def parameters(self) -> dict[str, Array]:
        """The arrays of this SAE, by name.

        Example:
          >>> from atlas_jax.bundled import ATLAS
          >>> from atlas_jax.sae import SparseAutoencoder
          >>> list(SparseAutoencoder.from_pretrained(ATLAS / "sae").parameters)
          ['W_enc', 'b_enc', 'W_dec', 'b_dec', 'threshold']
        """
        names = [field.name for field in dataclasses.fields(self) if field.name != "config"]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @jax.jit
    def encode(self, x: Float[Array, "*b d"]) -> Float[Array, "*b m"]:
        """Compute the features of activations: float32, non-negative.

        ``pre = x @ W_enc + b_enc`` with ``x`` first normalised and ``b_dec`` subtracted where the config says so,
        then by kind: jumprelu and batchtopk ``relu(pre) * (pre > threshold)``; relu ``relu(pre)``; topk the k
        largest of ``relu(pre)`` in a row; groupmax the largest of each of k runs; gated ``relu(p * exp(r_mag) +
        b_enc) * (p + b_gate > 0)``, ``p = x @ W_enc``.

        Raises:
          ValueError: if the last axis of ``x`` is not ``d_in`` wide.
        """
        c = self.config
        if x.shape[-1] != c.d_in:
            raise ValueError(f"this SAE reads activations of width {c.d_in}, got {x.shape[-1]}")
        x, _ = normalize.apply(x.astype(jnp.float32), c.normalization)
        if c.apply_b_dec_to_input:
            x = x - jnp.broadcast_to(self.b_dec, x.shape)
        projected = _matmul(x, self.W_enc)
        if c.kind == "gated":
            return activation.gated(projected, self.b_gate, self.r_mag, self.b_enc)
        return _sparsify(c, _plus(projected, self.b_enc), self.threshold)

    @jax.jit
    def decode(self, f: Float[Array, "*b m"], x: Float[Array, "*b d"] | None = None) -> Float[Array, "*b o"]:
        """Compute the reconstruction from features, ``f @ W_dec + b_dec``, float32.

        Args:
          f: features.
          x: the activations ``f`` came from. Needed only by an SAE that normalises its rows or has a skip path.

        Raises:
          ValueError: if ``x`` is needed and missing.
        """
        out = _plus(_matmul(f.astype(jnp.float32), self.W_dec), self.b_dec)
        if self.config.normalization == "none" and self.W_skip is None:
            return out
        if x is None:
            raise ValueError(
                "this SAE normalises its rows or has a skip path: call decode(f, x) with the activations too"
            )
        x = x.astype(jnp.float32)
        if self.W_skip is not None:
            out = out + _matmul(x, self.W_skip)
        _, undo = normalize.apply(x, self.config.normalization)
        return undo(out)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b o"]:
        """Reconstruct ``x``: ``decode(encode(x), x)``."""
        return self.decode(self.encode(x), x)


def _sparsify(
    config: SAEConfig, pre: Float[Array, "*b m"], threshold: Float[Array, " m"] | None
) -> Float[Array, "*b m"]:
    match config.kind:
        case "jumprelu" | "batchtopk":
            return activation.jump_relu(pre, threshold)
        case "topk":
            return activation.top_k(pre, config.k)
        case "groupmax":
            return activation.group_max(pre, config.k)
        case "relu":
            return jax.nn.relu(pre)
    raise AtlasError(f"unknown kind of sparse autoencoder '{config.kind}'")


def _matmul(x: Float[Array, "*b i"], w: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    return jnp.matmul(x, w, precision=jax.lax.Precision.HIGHEST)


def _plus(x: Float[Array, "*b m"], bias: Float[Array, " m"]) -> Float[Array, "*b m"]:
    return x + jnp.broadcast_to(bias, x.shape)
