"""Tiny random SAM and SAM 2 with processors, and a segmenter that paints discs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    BatchFeature,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2Processor,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from regaze.toolkit.analysis.objects import SamSegmenter, Segment

_PROMPTS: dict[str, Any] = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
_DECODER: dict[str, Any] = {
    "hidden_size": 16,
    "mlp_dim": 16,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 8,
}


def _scattered(model: Any) -> Any:
    """A new model is almost the same everywhere; this one's masks depend on image and points."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def tiny_sam() -> SamSegmenter:
    """SamModel on 64 x 64 pixels with its own processor."""
    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        window_size=2,
        global_attn_indexes=[0],
        num_pos_feats=8,
        mlp_dim=16,
    )
    config = SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(**_PROMPTS).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(**_DECODER).to_dict(),
    )
    pixels = SamImageProcessorPil(
        size={"longest_edge": 64},
        mask_size={"longest_edge": 16},
        pad_size={"height": 64, "width": 64},
        mask_pad_size={"height": 16, "width": 16},
    )
    return SamSegmenter(_scattered(SamModel(config)), SamProcessor(pixels))


class _Pixels:
    """Stands for Sam2ImageProcessor, which needs torchvision: pixels are squashed to a square."""

    size = {"height": 64, "width": 64}  # noqa: RUF012
    model_input_names = ("pixel_values",)

    def __call__(
        self, images: Image.Image, return_tensors: str | None = None, **options: Any
    ) -> BatchFeature:
        pixels = torch.tensor(np.array(images.resize((64, 64)))).permute(2, 0, 1)[None].float() / 127.5 - 1
        sizes = torch.tensor([[images.height, images.width]])
        return BatchFeature({"pixel_values": pixels, "original_sizes": sizes})

    def post_process_masks(self, masks: Any, original_sizes: Tensor, threshold: float, *rest: Any) -> Any:
        sizes = [tuple(size) for size in original_sizes.tolist()]
        pairs = zip(masks, sizes, strict=True)
        return [F.interpolate(mask, size, mode="bilinear") > threshold for mask, size in pairs]


class _Processor(Sam2Processor):
    def check_argument_for_proper_class(self, *arguments: Any) -> Any:
        return _Pixels


def tiny_sam2() -> SamSegmenter:
    """Sam2Model on 64 x 64 pixels with its own processor around other image code."""
    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[],
        window_positional_embedding_background_size=[2, 2],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config=Sam2PromptEncoderConfig(**_PROMPTS),
        mask_decoder_config=Sam2MaskDecoderConfig(**_DECODER),
    )
    return SamSegmenter(_scattered(Sam2Model(config)), _Processor(_Pixels()))


class Discs:
    """A segmenter whose mask is a disc of `radius` around the positive points; it notes what it is asked."""

    def __init__(self, radius: float):
        self.radius, self.asked = radius, []

    def __call__(self, image: Image.Image) -> Any:
        def segment(points: Tensor, labels: Tensor, logits: Tensor | None) -> Segment:
            self.asked.append((image.size, points, labels, logits))
            rows, columns = torch.arange(image.height) + 0.5, torch.arange(image.width) + 0.5
            mask = torch.zeros(image.height, image.width, dtype=torch.bool)
            for x, y in points[labels == 1].tolist():
                mask |= (rows[:, None] - y) ** 2 + (columns - x) ** 2 <= self.radius**2
            calls = 1.0 if logits is None else 1.0 + float(logits)
            return Segment(mask, 0.25 * calls, torch.tensor(calls))

        return segment
