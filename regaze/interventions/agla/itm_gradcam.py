"""Which part of an image a text is about, by a model of image-text matching.

Anything that is called as `relevance(image, text)` and returns a map [rows, columns] over the whole image and
a similarity (about 0 for no match, 1 for a perfect one) can stand in for `BlipRelevance`.
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

#: [ENC], which BLIP was trained to see in place of [CLS] where a text is matched with an image.
_ENCODE_TOKEN = 30523
_LONGEST_TEXT = 35
#: Punctuation that BLIP's captions were stripped of.
_BLANKED = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))


class BlipRelevance:
    """GradCAM on the cross-attention of BLIP's text encoder: where the match of image and text comes from.

    Source: BLIP (arXiv:2201.12086) as AGLA (arXiv:2406.12718) uses it. The relevance of a patch is the mean
    over heads and text tokens of C * max(0, dm/dC), with C the cross-attention of one block and m the logit
    that the matching head gives to "match". The similarity is the cosine of the contrastive head.

    Args:
        model: a `BlipForImageTextRetrieval`. processor: its `BlipProcessor`.
        layer: the text encoder's block, from 0.
        encode_token: id put in place of a text's first token for the matching head; default [ENC] where the
            vocabulary has it. -1: leave the text as it is.
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
            with torch.inference_mode(False):  # or its weights could take part in no gradient
                model = BlipForImageTextRetrieval.from_pretrained(name, **kwargs)
            return cls(model, BlipProcessor.from_pretrained(name))
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"cannot load the image-text matching model {name!r}; give a folder or any function "
                f"(image, text) -> (map, similarity): {str(error).splitlines()[0]}"
            ) from error

    def __call__(self, image: Image.Image, text: str) -> tuple[Tensor, float]:
        """Relevance of each patch, [rows, columns], and the similarity. Gradients stay inside."""
        # Callers generate in inference mode, whose tensors know no gradients.
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
            seen = model.vision_model(pixels.to(device, model.dtype)).last_hidden_state
            spoken = model.text_encoder(ids, attention_mask=mask).last_hidden_state
            features = model.vision_proj(seen[:, 0]), model.text_proj(spoken[:, 0])
            similarity = float(F.cosine_similarity(*(each.float() for each in features)))
        if self.encode_token >= 0:
            ids[:, 0] = self.encode_token
        out = model.text_encoder(
            ids,
            attention_mask=mask,
            encoder_hidden_states=seen.requires_grad_(),
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
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
        text_mask: [B, tokens]. Of the tokens that it shows, the first (class) and the last (separator) do not
            count; a text without others is relevant nowhere.
    """
    cam = (attention.float() * gradient.float().clamp_min(0)).mean(1)[..., 1:]
    words = text_mask.sum(1, keepdim=True) - 2
    place = torch.arange(text_mask.shape[1], device=cam.device)
    counted = (place >= 1) & (place <= words)
    return (cam * counted[..., None]).sum(1) / words.clamp_min(1)


@lru_cache(maxsize=2)
def blip_relevance(name: str, device: str) -> BlipRelevance:
    """`BlipRelevance.from_pretrained` on a device; the last two stay loaded."""
    return BlipRelevance.from_pretrained(name, device_map=device)
