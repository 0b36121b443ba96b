"""``atlas-jax align``."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_jax.cli._console import emit, err, keep_standard_output, note, out, silence, stages
from atlas_jax.cli._corpus import read_corpus
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from jax.sharding import Mesh

Choose = Annotated[
    list[str] | None,
    typer.Option(
        "--choose",
        help="Choose a member of the whitened family for a use: detect, retrieve or steer; may be repeated.",
    ),
]


def align(
    subject: Annotated[str, typer.Option(help="Subject model: a directory or hub name.")],
    atlas: Annotated[str, typer.Option(help="Concept Atlas directory.")],
    site: Annotated[list[str], typer.Option("--site", help="Subject site, such as mlp_act.19; may be repeated.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the run is written.")],
    text: Annotated[list[Path] | None, typer.Option("--text", help="Text files, or a corpus directory.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Translator; the paper's by default.")] = None,
    choose: Choose = None,
    sentences: Annotated[int, typer.Option(help="Sentences for fitting; half as many are held out.", min=2)] = 20000,
    pooling: Annotated[str, typer.Option(help="Over a sentence: max, absmax, mean or last.")] = "max",
    max_length: Annotated[int, typer.Option(help="Tokens at which sentences are cut.", min=2)] = 128,
    token_budget: Annotated[int, typer.Option(help="Tokens of a batch, for each model.", min=1)] = 4096,
    top_k: Annotated[int, typer.Option(help="Activations a feature that semantic_lens averages.", min=1)] = 50,
    dtype: Annotated[str, typer.Option(help="Of the models: float32 or bfloat16.")] = "float32",
    save_dtype: Annotated[str, typer.Option(help="Of the saved translations: float32 or bfloat16.")] = "float32",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.", min=0)] = 300.0,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an unfinished run at --out.")] = False,
    model_parallel: Annotated[int, typer.Option(help="Devices that share each model.", min=1)] = 1,
    distributed: Annotated[bool, typer.Option("--distributed", help="Find the other processes, on a TPU pod.")] = False,
    coordinator: Annotated[str | None, typer.Option(help="HOST:PORT of process 0, without a launcher.")] = None,
    processes: Annotated[int | None, typer.Option(help="How many there are, without a launcher.", min=1)] = None,
    process_id: Annotated[int | None, typer.Option(help="Which this is, without a launcher.", min=0)] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Stream text through a subject and an atlas, solve every translation, and measure them on held-out text.

    A run that was stopped, however, goes on when the same command is given again. Until it is complete it lives in
    OUT.partial. All devices of all processes take part; OUT must be a place that every process reaches. With --choose,
    a tenth of the sentences for fitting is held out to choose on, and fitted on afterwards; the chosen translations are
    named whitened_detect, whitened_retrieve and whitened_steer.

    Example: atlas-jax align --subject my-llama --atlas my-atlas --site mlp_act.19 --out runs/llama
    """
    from atlas_jax import experiments, pipeline, processes as others
    from atlas_jax.artifacts import partial_directory, run_directory, write_json
    from atlas_jax.cli._tables import certificate_table, choice_table, quality_table
    from atlas_jax.translation import check_stored_dtype

    check_stored_dtype(save_dtype)
    others.start(coordinator, processes, process_id, launcher=distributed)
    if others.count() > 1:
        keep_standard_output()
    if not others.is_first():
        silence()
    settings = pipeline.AlignSettings(
        tuple(site), tuple(method or experiments.METHODS), pooling=pooling, max_length=max_length,
        token_budget=token_budget, top_k=top_k, seed=seed, dtype=dtype,
    )  # fmt: skip
    chooser = experiments.Chooser(tuple(choose), seed=seed) if choose else None
    with stopped_cleanly():
        pair = pipeline.load_pair(subject, atlas, settings, mesh_of_all(model_parallel))
        note("reading text")
        corpus = read_corpus(text, n_fit=sentences, seed=seed)
        run = run_directory(out_dir) if others.is_first() else contextlib.nullcontext(out_dir)
        with run as directory, stages() as stage:
            saved = pipeline.Checkpoints(partial_directory(out_dir) / "checkpoints", every=checkpoint_every, say=note)
            if restart and others.is_first():
                saved.discard()
            others.wait("checkpoints are as they should be")
            alignment = pipeline.align(pair, corpus, settings, stage=stage, checkpoints=saved, chooser=chooser)
            alignment, quality = experiments.measure(alignment, stage=stage)
            alignment.save(directory, dtype=save_dtype)
            if others.is_first():
                write_json(directory / "tables" / "quality.json", quality.as_json())
    if left_out := alignment.left_out:
        note(f"left out, for activations that are not finite: sentences {', '.join(map(str, left_out))}")
    for (site, method), translation in alignment.translations.items():
        if translation.certificate.get("accepted") is False:
            note(f"{method} at {site} misses its tolerances, as its certificate tells: do not trust its last digits")
    if not as_json and others.is_first():
        out.print(certificate_table(alignment.translations))
        if alignment.choice is not None:
            out.print(choice_table(alignment.choice))
    emit(as_json, quality.as_json(), lambda: quality_table(quality))
    err.print(f"written to {out_dir}")


def mesh_of_all(model: int) -> "Mesh | None":
    """A mesh over all devices of the run, ``model`` of which share each model; None for one device.

    Raises:
      AtlasError: if the number of devices is no multiple of ``model``.
    """
    import jax

    from atlas_jax.mesh import make_mesh

    if jax.device_count() % model:
        raise AtlasError(f"--model-parallel {model} does not divide the {jax.device_count()} devices of this run")
    return make_mesh(model=model) if jax.device_count() > 1 else None


@contextlib.contextmanager
def stopped_cleanly() -> Iterator[None]:
    """Let SIGTERM act as Ctrl-C, and end either with exit code 130 and the way to go on."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as e:
        err.print("interrupted; give the same command again to go on from the last checkpoint")
        raise typer.Exit(130) from e
    finally:
        signal.signal(signal.SIGTERM, before)
