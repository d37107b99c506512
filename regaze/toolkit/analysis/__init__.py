"""Analyses of recorded attention and of a model's forward pass. They return numbers; `plot` draws them."""

from regaze.toolkit.analysis.anchors import (
    Rhythm,
    middle_layers,
    recorded_rhythm,
    rhythm,
    split_heads,
    top_fraction,
    waad_changes,
)
from regaze.toolkit.analysis.answers import Inputs, answer_log_probs, greedy_answer, with_answers
from regaze.toolkit.analysis.boxes import LabelledBox, boxes_of, covered_share, holds_centre, read_boxes
from regaze.toolkit.analysis.causal import HeadEffects, head_effects, ranked_heads, without_heads
from regaze.toolkit.analysis.class_lens import (
    ClassLens,
    class_change_rate,
    class_lens,
    class_logits_of,
    class_rank,
    identifiability,
    perturbed_attention,
)
from regaze.toolkit.analysis.faithfulness import (
    Agreement,
    Curve,
    agreement,
    mass_inside,
    occlusion_saliency,
    pearson,
    perturbation_curve,
    points_inside,
    random_mask_saliency,
    random_roll,
    shuffle_regions,
    spearman,
)
from regaze.toolkit.analysis.flow import Flow, attention_flow, rollout
from regaze.toolkit.analysis.heads import HeadRow, HeadTable, head_table
from regaze.toolkit.analysis.intervals import Estimate, estimate
from regaze.toolkit.analysis.lenses import LogitLens, logit_lens
from regaze.toolkit.analysis.lookback import HeadSignals, Horizon, head_signals
from regaze.toolkit.analysis.maps import cross_attention_maps, image_map
from regaze.toolkit.analysis.massive_activations import MassiveActivations, massive_activations
from regaze.toolkit.analysis.objects import (
    FoundObject,
    SamSegmenter,
    Segment,
    Segmenter,
    find_objects,
    load_segmenter,
    main_region,
    pixel_map,
    prompt_points,
)
from regaze.toolkit.analysis.occlusion import ImageCells, TextTokens
from regaze.toolkit.analysis.paired import PairedResult, difference, plain_and_edited
from regaze.toolkit.analysis.phrases import PhraseEmbedding, PhraseMaps, optimise_phrase
from regaze.toolkit.analysis.received_attention import key_importance
from regaze.toolkit.analysis.relevance import relevance
from regaze.toolkit.analysis.roles import RoleFlow, role_flow
from regaze.toolkit.analysis.row_measures import (
    attention_distance,
    attention_entropy,
    sink_share,
    visual_entropy,
)
from regaze.toolkit.analysis.selection import asked_word
from regaze.toolkit.analysis.speech import EncoderWindows, SpectrogramPatches, Utterance
from regaze.toolkit.analysis.token_sinks import SinkStability, SinkTokens, sink_stability, sink_tokens

__all__ = [
    "Agreement",
    "ClassLens",
    "Curve",
    "EncoderWindows",
    "Estimate",
    "Flow",
    "FoundObject",
    "HeadEffects",
    "HeadRow",
    "HeadSignals",
    "HeadTable",
    "Horizon",
    "ImageCells",
    "Inputs",
    "LabelledBox",
    "LogitLens",
    "MassiveActivations",
    "PairedResult",
    "PhraseEmbedding",
    "PhraseMaps",
    "Rhythm",
    "RoleFlow",
    "SamSegmenter",
    "Segment",
    "Segmenter",
    "SinkStability",
    "SinkTokens",
    "SpectrogramPatches",
    "TextTokens",
    "Utterance",
    "agreement",
    "answer_log_probs",
    "asked_word",
    "attention_distance",
    "attention_entropy",
    "attention_flow",
    "boxes_of",
    "class_change_rate",
    "class_lens",
    "class_logits_of",
    "class_rank",
    "covered_share",
    "cross_attention_maps",
    "difference",
    "estimate",
    "find_objects",
    "greedy_answer",
    "head_effects",
    "head_signals",
    "head_table",
    "holds_centre",
    "identifiability",
    "image_map",
    "key_importance",
    "load_segmenter",
    "logit_lens",
    "main_region",
    "mass_inside",
    "massive_activations",
    "middle_layers",
    "occlusion_saliency",
    "optimise_phrase",
    "pearson",
    "perturbation_curve",
    "perturbed_attention",
    "pixel_map",
    "plain_and_edited",
    "points_inside",
    "prompt_points",
    "random_mask_saliency",
    "random_roll",
    "ranked_heads",
    "read_boxes",
    "recorded_rhythm",
    "relevance",
    "rhythm",
    "role_flow",
    "rollout",
    "shuffle_regions",
    "sink_share",
    "sink_stability",
    "sink_tokens",
    "spearman",
    "split_heads",
    "top_fraction",
    "visual_entropy",
    "waad_changes",
    "with_answers",
    "without_heads",
]
