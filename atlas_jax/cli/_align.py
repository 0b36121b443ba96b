"""``atlas-jax align``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_jax import interrupts
from atlas_jax.cli._console import emit, err, keep_standard_output, note, notes, progress_bars, silence, warn
from atlas_jax.cli._corpus import SENTENCES, Text, read_corpus
from atlas_jax.cli._options import HEADS, POOLINGS, SITES, CheckpointEvery, Choose, Methods, Overwrite, Seed
from atlas_jax.cli._plan import show_plan, sites_at_once
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from atlas_jax.experiments import Measured
    from atlas_jax.pipeline import Alignment, Checkpoints


def align(
    atlas: Annotated[str, typer.Option(help="Concept Atlas directory; with --plan also a preset of atlas build.")],
    site: Annotated[list[str], typer.Option("--site", help=f"Subject site, {SITES}, {HEADS}; may be repeated.")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where the run is written.")] = None,
    subject: Annotated[str | None, typer.Option(help="Subject model: a directory or hub name.")] = None,
    subject_activations: Annotated[
        Path | None, typer.Option(help="Stored activations in its place, see atlas-jax activations.")
    ] = None,
    atlas_activations: Annotated[
        Path | None, typer.Option(help="Stored activations in the place of the atlas's model.")
    ] = None,
    text: Text = None,
    method: Methods = None,
    choose: Choose = None,
    sentences: Annotated[
        int | None,
        typer.Option(help="Sentences for fitting; half as many are held out.", min=2, show_default="up to 20000"),
    ] = None,
    pooling: Annotated[str, typer.Option(help=f"Over the tokens of a sentence, {POOLINGS}.")] = "max",
    steer_pooling: Annotated[
        str | None,
        typer.Option(
            help="For the covariance that steering uses, one of the same, or none for no other pooling.",
            show_default="mean, none where stored rows are pooled already",
        ),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens at which sentences are cut.", min=2)] = 128,
    token_budget: Annotated[int, typer.Option(help="Tokens of a batch, for each model.", min=1)] = 4096,
    top_k: Annotated[int, typer.Option(help="Activations a feature that semantic_lens averages.", min=1)] = 50,
    dtype: Annotated[str, typer.Option(help="Of the models: float32 or bfloat16.")] = "float32",
    save_dtype: Annotated[str, typer.Option(help="Of the saved translations: float32 or bfloat16.")] = "float32",
    attention: Annotated[
        str, typer.Option(help="Kernel of both models' attention: xla, tokamax, cudnn, or auto for what is exact here.")
    ] = "xla",
    checkpoint_every: CheckpointEvery = 300.0,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an unfinished run at --out.")] = False,
    overwrite: Overwrite = False,
    model_parallel: Annotated[int, typer.Option(help="Devices that share each model.", min=1)] = 1,
    distributed: Annotated[bool, typer.Option("--distributed", help="Find the other processes, on a TPU pod.")] = False,
    coordinator: Annotated[str | None, typer.Option(help="HOST:PORT of process 0, without a launcher.")] = None,
    processes: Annotated[int | None, typer.Option(help="How many there are, without a launcher.", min=1)] = None,
    process_id: Annotated[int | None, typer.Option(help="Which this is, without a launcher.", min=0)] = None,
    at_once: Annotated[
        int | None,
        typer.Option("--sites-at-once", help="Sites of one pass over the text.", min=1, show_default="as many as fit"),
    ] = None,
    host_statistics: Annotated[
        bool, typer.Option("--host-statistics", help="Add and solve in the memory of the host: slower.")
    ] = False,
    seed: Seed = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would hold and take, from configs alone.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Of --plan: cpu, h100, h200, a100-80gb, v5e or v5p.", show_default="that here")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="How many of them, with --plan.", min=1, show_default="those here, or 1")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Stream text through a subject and an atlas, solve every translation, and measure them on held-out text.

    A run that was stopped, however, goes on when the same command is given again; one that is finished is left as it
    is. Until it is complete it lives in OUT.partial. All devices of all processes take part; OUT must be a place that
    every process reaches.

    With --choose, a tenth of the sentences for fitting is held out to choose a member of the whitened family
    (AsᵀAs)^-α AsᵀAc (AcᵀAc)^-β on, and fitted on afterwards. The chosen translations are named whitened_detect,
    whitened_retrieve and whitened_steer.

    Example: atlas-jax align --subject my-llama --atlas my-atlas --site mlp_act.19 --out runs/llama
    """
    from atlas_jax import experiments, models, pipeline, sharding
    from atlas_jax.files import check_place, new_directory, partial_directory
    from atlas_jax.translation import check_stored_dtype

    check_stored_dtype(save_dtype)
    methods = tuple(method or experiments.METHODS)
    held = {"model_parallel": model_parallel, "at_once": at_once, "host_statistics": host_statistics}
    if plan:
        kwargs = {"pooling": pooling, "steer_pooling": steer_pooling or "mean", "max_length": max_length}
        kwargs |= {"token_budget": token_budget, "top_k": top_k, "dtype": dtype, "attention": attention}
        show_plan(subject, atlas, site, methods, kwargs, sentences, device, devices, as_json=as_json, **held)
        return
    if out_dir is None:
        raise AtlasError("give --out, where the run is to be written")
    check_place(out_dir, "a run", overwrite=True)
    sharding.join_processes(coordinator, processes, process_id, launcher=distributed)
    _speak_once()
    subject, steer_pooling = _subject(subject, subject_activations, steer_pooling)
    site = models.every_head(subject, site)
    settings = pipeline.AlignSettings(
        tuple(site), methods, pooling=pooling, max_length=max_length,
        token_budget=token_budget, top_k=top_k, seed=seed, dtype=dtype, steer_pooling=steer_pooling,
        attention=attention,
    )  # fmt: skip
    chooser = experiments.Chooser(tuple(choose), seed=seed) if choose else None
    saved = pipeline.Checkpoints(partial_directory(out_dir) / "checkpoints", every=checkpoint_every)
    with resumable(saved):
        note("loading both models")
        mesh = mesh_of_all(model_parallel)
        pair = pipeline.load_pair(subject, atlas, settings, mesh, atlas_activations=atlas_activations)
        note("reading text")
        corpus = read_corpus(text, n_fit=sentences or SENTENCES, seed=seed, exact=sentences is not None)
        if not overwrite and pipeline.is_finished(out_dir, pair, corpus, settings, chooser, dtype=save_dtype):
            _say_finished(out_dir, as_json=as_json)
            return
        parts = {"at_once": sites_at_once(pair, settings, corpus, **held), "host_statistics": host_statistics}
        run = new_directory(out_dir, overwrite=overwrite) if sharding.is_first() else contextlib.nullcontext(out_dir)
        with run as directory, progress_bars() as progress:
            if restart and sharding.is_first():
                saved.discard()
            sharding.wait_for_all("checkpoints are as they should be")
            passes = {"progress": progress, "checkpoints": saved, "chooser": chooser}
            alignment = pipeline.align(pair, corpus, settings, **passes, **parts)
            measured = experiments.measured(experiments.with_strengths(alignment), progress=progress)
            measured.save(directory, dtype=save_dtype)
    if sharding.is_first():
        _show(measured, as_json=as_json)
    err.print(f"written to {out_dir}")
    measured.raise_fault()


def _subject(model: str | None, activations: Path | None, steer_pooling: str | None) -> tuple[str, str]:
    """Return what the subject is read from, and the pooling for steering.

    Raises:
      AtlasError: unless the subject is given in exactly one way.
    """
    from atlas_jax.stored import Manifest

    if (model is None) == (activations is None):
        raise AtlasError("give the subject in one way: --subject MODEL, or --subject-activations DIR")
    if activations is None:
        return str(model), steer_pooling or "mean"
    pooled = Manifest.read(activations).pooling
    if pooled and steer_pooling is None:
        note(f"the stored activations are {pooled}-pooled, so no translation is made for steering; token rows would do")
    return str(activations), steer_pooling or ("none" if pooled else "mean")


def _speak_once() -> None:
    """Take signals back after the start of several processes, and let the first of them alone print."""
    import jax

    from atlas_jax import sharding

    interrupts.take_back()
    if jax.process_count() > 1:
        keep_standard_output()
    if not sharding.is_first():
        silence()


def _say_finished(run: Path, *, as_json: bool) -> None:
    from atlas_jax.files import read_json

    note(f"'{run}' holds this run already; --overwrite makes it anew")
    table = run / "tables" / "quality.json"
    if as_json:
        emit(True, read_json(table) if table.is_file() else None)


def _show(measured: "Measured", *, as_json: bool) -> None:
    """Print the result, then the warnings about it."""
    emit(as_json, measured.quality and measured.quality.to_dict(), *measured.tables())
    warn_of(measured.alignment, measured.fault)


def warn_of(alignment: "Alignment", fault: Exception | None) -> None:
    """Warn of the faults of a run that was saved all the same."""
    from atlas_jax.experiments import coverage

    if isinstance(fault, AtlasError):
        warn(f"the run is saved, but not measured: {fault}")
    if alignment.choice is not None and (reason := alignment.choice.record.get("fault")):
        warn(f"no member of the whitened family was chosen: {reason}")
    if left_out := alignment.left_out:
        note(f"left out, for activations that are not finite: sentences {', '.join(map(str, left_out))}")
    notes([coverage(alignment).note()])
    for (site, method), translation in alignment.translations.items():
        if translation.certificate.get("within_tolerance") is False:
            note(f"{method} at {site} misses its tolerances, as its certificate tells: do not trust its last digits")


def mesh_of_all(model: int) -> "Mesh | None":
    """Make a mesh over all devices of the run, ``model`` of which share each model; None for one device.

    Raises:
      AtlasError: if the number of devices is no multiple of ``model``.
    """
    import jax

    from atlas_jax.sharding import make_mesh

    if jax.device_count() % model:
        raise AtlasError(f"--model-parallel {model} does not divide the {jax.device_count()} devices of this run")
    return make_mesh(model=model) if jax.device_count() > 1 else None


@contextlib.contextmanager
def resumable(saved: "Checkpoints") -> Iterator[None]:
    """Print how to resume from a checkpoint when a signal ends the block."""
    again = "give the same command again to go on from the last checkpoint"
    interrupts.say_at_end(lambda: f"interrupted; {again if saved.exist() else 'no checkpoint was saved yet'}")
    try:
        yield
    except KeyboardInterrupt:
        interrupts.leave()
        raise
