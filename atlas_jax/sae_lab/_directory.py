"""The directory of a training run: claimed at its start, resumable until the run is finished, then an SAE to load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from atlas_jax.errors import AtlasError
from atlas_jax.files import RUN, differences, read_json, write_json
from atlas_jax.sae_lab._train import Curves, Trained

RESULT = "training.json"
SAELENS = "saelens"


def finished_training(out: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the result of a finished run, None where there is none.

    Args:
      out: the directory of the run.
      about: all that determines the run, as plain values in one level.

    Raises:
      AtlasError: if the run in that directory had other settings, naming every difference.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.sae_lab import finished_training
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     finished_training(Path(directory), {"k": 10}) is None
      True
    """
    if not (out / RESULT).is_file():
        return None
    result = read_json(out / RESULT)
    if changed := differences(result["about"], about):
        raise AtlasError(
            f"'{out}' holds an SAE trained with something else: {changed}; "
            "choose another place with --out, or replace it with --overwrite"
        )
    return result


def write_result(directory: Path, trained: Trained, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the SAE in Gemma Scope's layout, in SAELens' where that can name the site, the curves and their plot.

    Returns:
      The content of ``training.json``.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.sae import SparseAutoencoder
      >>> from atlas_jax.sae_lab import Curves, HeldOut, Trained, finished_training, write_result
      >>> sae = SparseAutoencoder.from_pretrained(ATLAS / "sae")
      >>> measured = HeldOut(0.1, 10.0, 0.0, 3.0, 3.1, 8.0, 0.98, tokens=4096)
      >>> row = {"step": 1} | measured._asdict()
      >>> trained = Trained(sae, Curves([row], [row]), measured, passes=1.0)
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     _ = write_result(Path(directory), trained, {"k": 10})
      ...     finished_training(Path(directory), {"k": 10})["measured"]["l0"]
      10.0
    """
    trained.sae.save_pretrained(directory)
    try:
        trained.sae.save_pretrained(directory / SAELENS, format="saelens")
        saelens = "written"
    except AtlasError as e:
        saelens = f"not written: {e}"
    plot_curves(trained.curves).savefig(directory / "curves.png", dpi=120)
    result = {
        "about": dict(about),
        "measured": trained.measured._asdict(),
        "passes": float(trained.passes),
        "saelens": saelens,
        "curves": trained.curves._asdict(),
    }
    write_json(directory / RESULT, result)
    write_json(directory / RUN, dict(about))
    return result


def plot_curves(curves: Curves) -> Figure:
    """Plot FVU, L0, dead share and loss recovered by step, of single training batches and of held-out text.

    Example:
      >>> from atlas_jax.sae_lab import Curves, plot_curves
      >>> row = {"step": 1, "fvu": 0.5, "l0": 10.0, "dead": 0.0}
      >>> [axes.get_title() for axes in plot_curves(Curves([row], [row | {"loss_recovered": 0.9}])).axes]
      ['FVU', 'L0', 'share of dead features', 'loss recovered']
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = (("fvu", "FVU"), ("l0", "L0"), ("dead", "share of dead features"), ("loss_recovered", "loss recovered"))
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for rows, style, name in ((curves.training, "-", "training batch"), (curves.held_out, "o-", "held-out text")):
            if key in rows[0]:
                axes.plot([r["step"] for r in rows], [r[key] for r in rows], style, label=name, markersize=3)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        if key in ("fvu", "l0"):
            axes.set_yscale("log")
    return figure
