"""``atlas-jax export``: steering vectors for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._console import emit
from atlas_jax.cli._directions import How, found_directions
from atlas_jax.cli._options import AsJson, Concept, Features, Like, Overwrite, Unlike, asked_query, finite
from atlas_jax.cli._use import Method, RunArgument, load_run, translation_for
from atlas_jax.errors import AtlasError
from atlas_jax.files import check_place
from atlas_jax.table import facts_table

FORMATS = ("safetensors", "gguf", "repeng")  # repeng reads and writes the GGUF of llama.cpp


def export(
    run: RunArgument,
    site: Annotated[list[str], typer.Option("--site", help="Subject site to steer at; may be repeated.")],
    out_file: Annotated[Path, typer.Option("--out", help="The file to write.")],
    concept: Concept = None,
    feature: Features = None,
    like: Like = None,
    unlike: Unlike = None,
    strength: Annotated[
        float, typer.Option(help="In mean token norms of the site, multiplied in.", callback=finite())
    ] = 0.5,
    method: Method = None,
    how: How = None,
    kind: Annotated[
        str | None, typer.Option("--format", help=f"{', '.join(FORMATS)}.", show_default="the ending of --out")
    ] = None,
    additive: Annotated[
        bool, typer.Option("--additive", help="Of GGUF: a + λ s in the place of Eq. 4, which keeps the norm of a.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write the vectors that steer along a concept, for atlas_jax.load_edits or for llama.cpp.

    Example: atlas-jax export runs/quickstart --concept "file" --site resid_post.2 --additive --out file.gguf
    """
    from atlas_jax.steering import Steer
    from atlas_jax.vectors import export_gguf, save_edits

    if (kind := kind or out_file.suffix[1:]) not in FORMATS:
        raise AtlasError(f"unknown format '{kind}' of vectors; give --format {', '.join(FORMATS)}")
    check_place(out_file, overwrite=overwrite)
    alignment = load_run(run)
    query = asked_query(alignment, concept, feature, like, unlike)
    if how is None:
        translations = [translation_for("steer", alignment, s, method) for s in site]
        along, method = {t.site: t.direction(query.vector) for t in translations}, translations[0].described
    else:
        along = {s: d.vector for s, d in found_directions(alignment, query.vector, site, how).items()}
        method = how
    edits = {s: Steer(vector, strength) for s, vector in along.items()}
    if kind == "safetensors":
        save_edits(edits, out_file)
    else:
        export_gguf(edits, out_file, family=alignment.subject.model.config.family, additive=additive)
    facts = {"written to": str(out_file), "sites": ", ".join(map(str, edits)), "strength": strength}
    facts["method"] = method
    facts["concept"] = ", ".join(h.label or str(h.index) for h in query.features)
    emit(as_json, facts, facts_table("Steering vectors", facts))
