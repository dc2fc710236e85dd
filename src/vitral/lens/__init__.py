"""The glass box: what a model computes, which part of it wrote an answer, and what changes without it."""

from vitral.lens.attention import HeadScores, head_scores, repeated_sequence, retrieval_scores, top_heads
from vitral.lens.attribution import Attribution, attribute, expert_outputs, head_results, neuron_attribution
from vitral.lens.circuits import (
    CopyScore,
    copy_scores,
    copying_score,
    neighbours,
    ov_circuit,
    qk_circuit,
    singular_directions,
)
from vitral.lens.drift import Drift, drift
from vitral.lens.glass import Glass, open_glass
from vitral.lens.knock_out import edits_without, load_without, without
from vitral.lens.logit_lens import LogitLens, commitment_layer, lens_logits, logit_lens, read_translator, target_lens
from vitral.lens.patching import Estimate, Patch, Site, attribution_patching, logit_difference, patch, path_patch
from vitral.lens.routing import (
    agreement,
    coactivation,
    cut_margin,
    domain_specialisation,
    expert_effects,
    load,
    repetition,
    vocabulary_specialisation,
)
from vitral.lens.sources import SourceScores, answer_log_probability, occlude, source_scores
from vitral.lens.statistics import Interval, bootstrap, token_losses
from vitral.lens.weights import WeightView

__all__ = [
    "Attribution",
    "CopyScore",
    "Drift",
    "Estimate",
    "Glass",
    "HeadScores",
    "Interval",
    "LogitLens",
    "Patch",
    "Site",
    "SourceScores",
    "WeightView",
    "agreement",
    "answer_log_probability",
    "attribute",
    "attribution_patching",
    "bootstrap",
    "coactivation",
    "commitment_layer",
    "copy_scores",
    "copying_score",
    "cut_margin",
    "domain_specialisation",
    "drift",
    "edits_without",
    "expert_effects",
    "expert_outputs",
    "head_results",
    "head_scores",
    "lens_logits",
    "load",
    "load_without",
    "logit_difference",
    "logit_lens",
    "neighbours",
    "neuron_attribution",
    "occlude",
    "open_glass",
    "ov_circuit",
    "patch",
    "path_patch",
    "qk_circuit",
    "read_translator",
    "repeated_sequence",
    "repetition",
    "retrieval_scores",
    "singular_directions",
    "source_scores",
    "target_lens",
    "token_losses",
    "top_heads",
    "vocabulary_specialisation",
    "without",
]
