"""The setup of a plan, from configs on disk or on the hub: no weights are read."""

from pathlib import Path

from atlas_jax.atlas import Manifest, presets
from atlas_jax.errors import AtlasError
from atlas_jax.files import from_hub
from atlas_jax.labels import Labels
from atlas_jax.models import ModelConfig, check_site, load_config
from atlas_jax.pipeline._devices import Device
from atlas_jax.pipeline._plan import Setup
from atlas_jax.pipeline._run_files import AlignSettings
from atlas_jax.sae import SAEConfig
from atlas_jax.types import Site


def model_config(name: str | Path) -> ModelConfig:
    """Read the config of a model, without its weights.

    Raises:
      AtlasError: as :meth:`atlas_jax.LanguageModel.from_pretrained`.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import model_config
      >>> model_config(SUBJECT).num_layers
      4
    """
    path = Path(name)
    if not path.is_dir():
        if path.is_absolute() or path.exists() or str(name).startswith(".") or str(name).count("/") != 1:
            raise AtlasError(f"'{name}' is not a directory; give one, or a hub name such as owner/name")
        path = from_hub(str(name), allow_patterns=["config.json", "generation_config.json"])
    return load_config(path)[0]


def read_setup(
    subject: str | Path,
    atlas: str | Path,
    settings: AlignSettings,
    sentences: tuple[int, int],
    device: Device,
    *,
    devices: int = 1,
    model_parallel: int = 1,
    at_once: int | None = None,
    host_statistics: bool = False,
) -> Setup:
    """Read what a plan is of.

    Args:
      subject: directory or hub name of the subject.
      atlas: directory of the atlas, or the name of a preset; of its model only the config is read.
      settings: of the alignment.
      sentences: in the halves of the corpus.
      device: the kind of device.
      devices: how many there are.
      model_parallel: how many of them share each model.
      at_once: sites of one pass, as many as fit where None.
      host_statistics: whether statistics are held, and solved, in the memory of the host.

    Raises:
      AtlasError: for a config that is missing or not supported, a site the subject does not have, or devices that do
        not divide.

    Example:
      >>> from atlas_jax import AlignSettings
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import known_device, plan_alignment, read_setup
      >>> settings = AlignSettings(("mlp_act.1",), ("procrustes",))
      >>> plan_alignment(read_setup(SUBJECT, ATLAS, settings, (200, 100), known_device("h100"))).fits
      True
    """
    if devices % model_parallel:
        raise AtlasError(f"--model-parallel {model_parallel} does not divide the {devices} devices of this run")
    config, directory = model_config(subject), Path(atlas)
    for site in settings.sites:
        check_site(config, site)
    if not directory.exists() and (chosen := presets().get(str(atlas))):
        model, site, width = chosen.model, Site.parse(chosen.site), chosen.features
    else:
        manifest = Manifest.read(directory)
        inside = directory / manifest.model
        model, site = inside if inside.exists() else manifest.model, Site.parse(manifest.site)
        width = Labels.load(manifest.location(directory, "labels")).n_features
    foundation = model_config(model)
    sae = SAEConfig("jumprelu", d_in=foundation.width(site), d_sae=width)  # of any kind: only its sizes matter
    shapes = config, foundation, sae, site
    return Setup(*shapes, settings, sentences, device, devices, model_parallel, at_once, host_statistics)
