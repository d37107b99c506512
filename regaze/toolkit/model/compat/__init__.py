"""All that depends on how transformers works inside, in one place.

Nothing outside of this package imports what transformers does not promise, or names an argument that a
release has renamed. `release` says which releases were tested; under another one `release_check` tries a
small model before the first block opens.
"""

from __future__ import annotations

from regaze.toolkit.model.compat.arguments import (
    SEQUENCES,
    TOKEN_TYPES,
    decoder_inputs,
    join_media,
    last_logits_only,
    last_row,
    media_names,
    padding_mask,
    pop_positions,
    prompt_of,
)
from regaze.toolkit.model.compat.attention import (
    IMPLEMENTATION,
    AttentionSite,
    attention_modules,
    current_attention,
    plain_attention,
    register,
    set_attention,
    sharing_modules,
)
from regaze.toolkit.model.compat.cache import (
    cache_argument,
    cache_length,
    cache_of,
    crop_last,
    follow_cache,
    is_forkable,
    keep_columns,
    make_room,
    set_running,
    unfollow_cache,
    users_part,
    uses_cache,
    with_cache,
    without_cache,
)
from regaze.toolkit.model.compat.generation import (
    Generation,
    missing_generation_methods,
    on_chosen,
    on_generate,
    pass_pixels,
)
from regaze.toolkit.model.compat.hooks import owned, remove_hooks, temporary_hooks
from regaze.toolkit.model.compat.layout import (
    decoder_layers,
    decoder_of,
    has_mrope,
    is_vision_model,
    model_name,
    mrope_positions,
    residual,
    take_rope_deltas,
    text_config,
    unwrapped,
)
from regaze.toolkit.model.compat.readout import (
    LogitScale,
    final_norm,
    logit_scale,
)
from regaze.toolkit.model.compat.release import NEWEST, OLDEST, installed_release, is_tested, known_defect

__all__ = [
    "IMPLEMENTATION",
    "NEWEST",
    "OLDEST",
    "SEQUENCES",
    "TOKEN_TYPES",
    "AttentionSite",
    "Generation",
    "LogitScale",
    "attention_modules",
    "cache_argument",
    "cache_length",
    "cache_of",
    "crop_last",
    "current_attention",
    "decoder_inputs",
    "decoder_layers",
    "decoder_of",
    "final_norm",
    "follow_cache",
    "has_mrope",
    "installed_release",
    "is_forkable",
    "is_tested",
    "is_vision_model",
    "join_media",
    "keep_columns",
    "known_defect",
    "last_logits_only",
    "last_row",
    "logit_scale",
    "make_room",
    "media_names",
    "missing_generation_methods",
    "model_name",
    "mrope_positions",
    "on_chosen",
    "on_generate",
    "owned",
    "padding_mask",
    "pass_pixels",
    "plain_attention",
    "pop_positions",
    "prompt_of",
    "register",
    "remove_hooks",
    "residual",
    "set_attention",
    "set_running",
    "sharing_modules",
    "take_rope_deltas",
    "temporary_hooks",
    "text_config",
    "unfollow_cache",
    "unwrapped",
    "users_part",
    "uses_cache",
    "with_cache",
    "without_cache",
]
