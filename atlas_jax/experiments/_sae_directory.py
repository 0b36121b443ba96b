"""The directory of a training run: claimed at its start, resumable until it is done, and then an SAE to load."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from atlas_jax.artifacts import RUN, read_json, write_json
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._sae_train import Curves, Trained

RESULT = "training.json"
CHECKPOINTS = "checkpoints"
SAELENS = "saelens"


def claim_directory(out: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make a directory this run's, or find that it is.

    Args:
      out: the directory.
      about: all that determines the run, as plain values in one level.

    Returns:
      The result where the run is done already, None where it is to begin or to go on.

    Raises:
      AtlasError: if something else is there, or a run with other settings, naming the first that differs.
    """
    if (out / RUN).is_file():
        begun, asked = read_json(out / RUN), dict(about)
        for key in sorted(begun.keys() | asked.keys()):
            if (was := begun.get(key)) != (now := asked.get(key)):
                raise AtlasError(
                    f"'{out}' holds a run with {key} {was}, and {now} was given; "
                    "repeat its settings to go on with it, or choose another place with --out"
                )
        return read_json(out / RESULT) if (out / RESULT).is_file() else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AtlasError(f"'{out}' exists and is not a training run; choose another place with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f".{RUN}"
        write_json(partial, dict(about))
        partial.replace(out / RUN)
    except OSError as e:
        raise AtlasError(f"'{out}' cannot be written ({e.strerror}); choose another place with --out") from e
    return None


def write_result(out: Path, trained: Trained, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the SAE in Gemma Scope's layout, in SAELens' where it can name the site, the curves and their plot.

    ``training.json`` comes last: a run that has it is done. The checkpoints are removed.

    Returns:
      The content of ``training.json``.
    """
    trained.sae.save_pretrained(out)
    try:
        trained.sae.save_pretrained(out / SAELENS, format="saelens")
        saelens = "written"
    except AtlasError as e:
        saelens = f"not written: {e}"
    plot_curves(trained.curves).savefig(out / "curves.png", dpi=120)
    result = {
        "about": dict(about),
        "measured": trained.measured._asdict(),
        "passes": trained.passes,
        "saelens": saelens,
        "curves": trained.curves._asdict(),
    }
    write_json(out / f".{RESULT}", result)
    (out / f".{RESULT}").replace(out / RESULT)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return result


def plot_curves(curves: Curves) -> Figure:
    """FVU, L0, dead share and loss recovered by step, of single training batches and of held-out text."""
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
