"""Training, measuring and labelling of sparse autoencoders, and checks against the figures of their releases."""

from atlas_jax.sae_lab._check import (
    Advertised as Advertised,
    SAECheck as SAECheck,
    Trial as Trial,
    check_sae as check_sae,
    trials as trials,
)
from atlas_jax.sae_lab._directory import (
    finished_training as finished_training,
    plot_curves as plot_curves,
    write_result as write_result,
)
from atlas_jax.sae_lab._evaluate import (
    HeldOut as HeldOut,
    LabelQuality as LabelQuality,
    Splice as Splice,
    atlas_facts as atlas_facts,
    held_out as held_out,
    label_quality as label_quality,
    mean_activation as mean_activation,
)
from atlas_jax.sae_lab._label import (
    Estimate as Estimate,
    Evidence as Evidence,
    estimate_requests as estimate_requests,
    gather_evidence as gather_evidence,
    label_by_chat as label_by_chat,
    label_by_words as label_by_words,
    label_facts as label_facts,
)
from atlas_jax.sae_lab._train import (
    Curves as Curves,
    SAESettings as SAESettings,
    Trained as Trained,
    train_sae as train_sae,
)
from atlas_jax.sae_lab._verbalizer import (
    TrainedVerbalizer as TrainedVerbalizer,
    VerbalizerSettings as VerbalizerSettings,
    train_verbalizer as train_verbalizer,
)
