"""Which part of an image a text is about, from a model of image-text matching.

Any function `relevance(image, text)` that returns a map [rows, columns] over the whole image and a similarity
(about 0 for no match, 1 for a perfect one) can replace `BlipRelevance`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from regaze.errors import BadParameterError, ModelNotFoundError

Relevance = Callable[[Image.Image, str], tuple[Any, float]]

#: [ENC], which replaces [CLS] where BLIP matches a text with an image.
_ENCODE_TOKEN = 30523
_LONGEST_TEXT = 35
#: Punctuation that was removed from BLIP's training captions.
_BLANKED = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))


class BlipRelevance:
    """GradCAM on the cross-attention of BLIP's text encoder: which patches match the text.

    Source: BLIP (arXiv:2201.12086) as AGLA (arXiv:2406.12718) uses it. The relevance of a patch is the mean
    over heads and text tokens of C * max(0, dm/dC), with C the cross-attention of one block and m the logit
    that the matching head gives to "match". The similarity is the cosine of the contrastive head.

    Args:
        model: a `BlipForImageTextRetrieval`. processor: its `BlipProcessor`.
        layer: the text encoder's block, from 0.
        encode_token: id that replaces a text's first token for the matching head; default [ENC] where the
            vocabulary has it. -1: keep the first token.
    """

    def __init__(self, model: Any, processor: Any, *, layer: int = 6, encode_token: int | None = None):
        layers = model.config.text_config.num_hidden_layers
        if not 0 <= layer < layers:
            raise BadParameterError(f"the text encoder has blocks 0..{layers - 1}, not {layer}")
        if encode_token is None:
            encode_token = _ENCODE_TOKEN if model.config.text_config.vocab_size > _ENCODE_TOKEN else -1
        self.model, self.processor, self.layer = model.eval(), processor, layer
        self.encode_token = encode_token

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> BlipRelevance:
        """Load model and processor from the hub or a folder; ModelNotFoundError when that fails."""
        from transformers import BlipForImageTextRetrieval, BlipProcessor

        try:
            with torch.inference_mode(False):  # weights made in inference mode have no gradient
                model = BlipForImageTextRetrieval.from_pretrained(name, **kwargs)
            return cls(model, BlipProcessor.from_pretrained(name))
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"cannot load the image-text matching model {name!r}; give a folder or any function "
                f"(image, text) -> (map, similarity): {str(error).splitlines()[0]}"
            ) from error

    def __call__(self, image: Image.Image, text: str) -> tuple[Tensor, float]:
        """Relevance of each patch, [rows, columns], and the similarity, without gradients."""
        # Callers generate in inference mode, in which no gradient can be computed.
        with torch.inference_mode(False), torch.enable_grad():
            return self._relevance(image, text)

    def _relevance(self, image: Image.Image, text: str) -> tuple[Tensor, float]:
        model, device = self.model, self.model.device
        pixels = self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        words = " ".join(text.lower().translate(_BLANKED).split())
        encoded = self.processor.tokenizer(
            words, return_tensors="pt", truncation=True, max_length=_LONGEST_TEXT
        ).to(device)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        with torch.no_grad():
            patches = model.vision_model(pixels.to(device, model.dtype)).last_hidden_state
            words_alone = model.text_encoder(ids, attention_mask=mask).last_hidden_state
            features = model.vision_proj(patches[:, 0]), model.text_proj(words_alone[:, 0])
            similarity = float(F.cosine_similarity(*(each.float() for each in features)))
        if self.encode_token >= 0:
            ids[:, 0] = self.encode_token
        out = model.text_encoder(
            ids,
            attention_mask=mask,
            encoder_hidden_states=patches.requires_grad_(),
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=device),
            output_attentions=True,
            return_dict=True,
        )
        match = model.itm_head(out.last_hidden_state[:, 0])[:, 1].sum()
        attention = out.cross_attentions[self.layer]
        (gradient,) = torch.autograd.grad(match, attention)
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        return gradcam(attention.detach(), gradient, mask)[0].unflatten(-1, (side, side)).cpu(), similarity


def gradcam(attention: Tensor, gradient: Tensor, text_mask: Tensor) -> Tensor:
    """Relevance of image patches, [B, patches] fp32: attention * max(0, gradient), mean over heads and text.

    Args:
        attention, gradient: [B, heads, tokens, 1 + patches], cross-attention on a class token and the patches
            and the match's gradient with respect to it.
        text_mask: [B, tokens]. The first (class) and the last (separator) visible token do not count; a text
            without others has relevance 0 everywhere.
    """
    cam = (attention.float() * gradient.float().clamp_min(0)).mean(1)[..., 1:]
    words = text_mask.sum(1, keepdim=True) - 2
    place = torch.arange(text_mask.shape[1], device=cam.device)
    counted = (place >= 1) & (place <= words)
    return (cam * counted[..., None]).sum(1) / words.clamp_min(1)


@lru_cache(maxsize=2)
def blip_relevance(name: str, device: str) -> BlipRelevance:
    """`BlipRelevance.from_pretrained` on a device; the last two models stay loaded."""
    return BlipRelevance.from_pretrained(name, device_map=device)
