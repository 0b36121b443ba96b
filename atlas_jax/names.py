"""Names that the command line lists without importing the modules that define them; a test compares the two.

Example:
  >>> from atlas_jax.names import METHOD_NAMES
  >>> METHOD_NAMES[0]
  'covariance'
"""

METHOD_NAMES = (
    "covariance",
    "correlation",
    "least_squares",
    "ridge",
    "procrustes",
    "procrustes_exact",
    "semantic_lens",
    "whitened",
    "whitened_lens",
    "random",
)
POOLING_NAMES = ("max", "absmax", "mean", "last")
PAIR_NAMES = ("all", "next", "peak")
USE_NAMES = ("detect", "retrieve", "steer")
POINT_NAMES = (
    "resid_pre",
    "attn_in",
    "z",
    "head_norm",
    "attn_out",
    "attn_out_post",
    "resid_mid",
    "mlp_in",
    "mlp_gate_act",
    "mlp_act",
    "mlp_out",
    "mlp_out_post",
    "resid_post",
)
