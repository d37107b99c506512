"""EViT against the authors' outputs, on CLIP, ViT and DeiT models, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from models import picture, tiny_llama
from safetensors.torch import load_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.vit.modeling_vit import ViTLayer

from regaze.errors import BadParameterError, CompositionError, UnknownMethodError, UnsupportedModelError
from regaze.interventions import Intervention, create_method, list_methods
from regaze.interventions.evit import EViT, keep_and_fuse, scheduled_keep_rate
from regaze.toolkit.model.vision import vision_blocks

SMALL = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 20,
    "patch_size": 4,
}
HALF = EViT(keep_rate=0.5, layers=(1, 2))


def close(actual, expected):
    """As the goldens ask."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def random_model(kind, config, **changes):
    torch.manual_seed(0)
    options = {**SMALL, "initializer_range": 0.2, **changes}
    return kind(config(**options)).eval()


@pytest.fixture(scope="module", params=["vit", "deit", "clip", "projection"])
def vision_model(request):
    kinds = {
        "vit": (ViTForImageClassification, ViTConfig),
        "deit": (DeiTForImageClassificationWithTeacher, DeiTConfig),
        "clip": (CLIPVisionModel, CLIPVisionConfig),
        "projection": (CLIPVisionModelWithProjection, CLIPVisionConfig),
    }
    return random_model(*kinds[request.param])


@pytest.fixture(scope="module")
def pixels():
    torch.manual_seed(1)
    return torch.randn(3, 3, 20, 20)


def output(model, pixels) -> torch.Tensor:
    return model(pixel_values=pixels)[0]


# The rule ---------------------------------------------------------------------------------------------


def test_hand_example():
    tokens = torch.tensor([[[9.0, 9.0], [1, 0], [2, 0], [0, 2], [4, 4]]])
    scores = torch.tensor([[0.3, 0.25, 0.1, 0.05]])
    shrunk, index = keep_and_fuse(tokens, scores, keep=2)
    assert index.tolist() == [[0, 1]]
    torch.testing.assert_close(shrunk, torch.tensor([[[9.0, 9.0], [1, 0], [2, 0], [0.2, 0.4]]]))


def golden(goldens, name):
    folder = goldens / "methods" / "evit"
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def test_golden_keep_and_fuse(goldens):
    spec, tensors = golden(goldens, "keep_fuse")
    for name, case in spec["cases"].items():
        scores, index = tensors[f"{name}/in/cls_attn"], tensors[f"{name}/out/idx"]
        shrunk, chosen = keep_and_fuse(
            tensors[f"{name}/in/after_attention"], scores, index.shape[1], case["params"]["fuse"]
        )
        assert torch.equal(chosen, index)
        close(shrunk, tensors[f"{name}/out/after_shrink"])
    assert len(spec["cases"]) >= 3


def of_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a block as the release names them, in the names of ViTLayer."""
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    renamed = {}
    for name, weight in weights.items():
        if "attn.qkv" in name:
            for part, piece in zip("qkv", weight.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = piece
        else:
            for old, new in names.items():
                name = name.replace(old, new)
            renamed[name] = weight
    return renamed


def weights_of(tensors, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def vit_config(params, **more) -> ViTConfig:
    return ViTConfig(
        hidden_size=params["width"],
        num_attention_heads=params["heads"],
        intermediate_size=int(params["width"] * params["mlp_ratio"]),
        layer_norm_eps=params["ln_eps"],
        **more,
    )


def test_golden_blocks(goldens):
    """A block inside a model: the class attention, which tokens stay, and what leaves the block."""
    spec, tensors = golden(goldens, "block")
    for name, case in spec["cases"].items():
        params = case["params"]
        model = ViTModel(vit_config(params, num_hidden_layers=1)).eval()
        assert isinstance(model.layers[0], ViTLayer)
        model.layers[0].load_state_dict(of_transformers(weights_of(tensors, f"{name}/weights/")))
        evit = EViT(keep_rate=params["keep_rate"], layers=(0,), fuse=params["fuse"])
        with evit.applied(model) as kept:
            out = model.layers[0](tensors[f"{name}/in/x"])
        assert torch.equal(kept[0], tensors[f"{name}/out/idx"])
        close(out, tensors[f"{name}/out/out"])
        attention = vision_blocks(model)[0][0].attend(tensors[f"{name}/in/x"])[1]
        close(attention[:, 1:], tensors[f"{name}/out/cls_attn"])


def test_golden_model(goldens):
    spec, tensors = golden(goldens, "model")
    names = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "blocks": "vit.layers",
        "head": "classifier",
    }
    for name, case in spec["cases"].items():
        params, weights = case["params"], {}
        for key, weight in of_transformers(weights_of(tensors, f"{name}/weights/")).items():
            for old, new in names.items():
                key = key.replace(old, new)
            weights[key.replace("norm.", "vit.layernorm.") if key.startswith("norm.") else key] = weight
        more = {"image_size": params["image"], "patch_size": params["patch"], "num_labels": params["classes"]}
        model = ViTForImageClassification(
            vit_config(params, num_hidden_layers=params["depth"], **more)
        ).eval()
        model.load_state_dict(weights)
        rates = params["keep_rates"]
        layers = tuple(layer for layer, rate in enumerate(rates) if rate < 1)
        with EViT(rates[layers[0]], layers, params["fuse"]).applied(model) as kept:
            out = model(tensors[f"{name}/in/pixels"], output_hidden_states=True)
        close(out.logits, tensors[f"{name}/out/logits"])
        assert [h.shape[1] - 1 for h in out.hidden_states[1:]] == tensors[
            f"{name}/out/tokens_per_block"
        ].tolist()
        for number, layer in enumerate(layers):
            assert torch.equal(kept[layer], tensors[f"{name}/out/idx{number}"])


def test_golden_schedule(goldens):
    spec, tensors = golden(goldens, "schedule")
    for name, case in spec["cases"].items():
        params = case["params"]
        start, end = params["warmup_epochs"], params["total_epochs"]
        rates = [
            scheduled_keep_rate(i, params["iters_per_epoch"], params["base_keep_rate"], start, end - start)
            for i in tensors[f"{name}/in/iteration"].tolist()
        ]
        torch.testing.assert_close(
            torch.tensor(rates).double(), tensors[f"{name}/out/keep_rate"], rtol=0, atol=1e-6
        )


# In models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fuse", "counts"), [(True, (139, 99, 71)), (False, (138, 97, 68))])
def test_token_counts_of_the_paper(fuse, counts):
    model = random_model(ViTModel, ViTConfig, num_hidden_layers=10, image_size=224, patch_size=16)
    with EViT(fuse=fuse).applied(model):
        states = model(torch.zeros(1, 3, 224, 224), output_hidden_states=True).hidden_states
    assert [states[layer + 1].shape[1] - 1 for layer in (3, 6, 9)] == list(counts)


def test_nothing_dropped_is_bit_identical(vision_model, pixels):
    plain = output(vision_model, pixels)
    with EViT(keep_rate=1.0, layers=(1, 2)).applied(vision_model) as kept:
        assert torch.equal(output(vision_model, pixels), plain)
    assert not kept


def test_the_model_is_as_before_after_an_exception(vision_model, pixels):
    plain = output(vision_model, pixels)
    before = {name: set(module.__dict__) for name, module in vision_model.named_modules()}
    with HALF.applied(vision_model):
        shrunk = output(vision_model, pixels)
    assert shrunk.shape != plain.shape or not torch.allclose(shrunk, plain, atol=1e-3)
    with pytest.raises(ValueError, match="unpack"), HALF.applied(vision_model):
        vision_model(pixel_values=pixels[:, 0, 0, 0])
    assert {name: set(module.__dict__) for name, module in vision_model.named_modules()} == before
    assert torch.equal(output(vision_model, pixels), plain)


def test_batch_equals_singles_in_any_order(vision_model, pixels):
    with HALF.applied(vision_model) as kept:
        together = output(vision_model, pixels)
        index = kept[1]
        for row in (2, 0, 1):
            torch.testing.assert_close(
                output(vision_model, pixels[row : row + 1])[0], together[row], rtol=0, atol=1e-5
            )
            assert torch.equal(kept[1][0], index[row])


def test_a_kept_block_is_the_plain_block_on_fewer_tokens(vision_model, pixels):
    """With attention and choice by hand: eager weights of the plain model, then its own MLP half."""
    model = vision_model
    blocks, prefix = vision_blocks(model)
    states = []
    handle = blocks[1].module.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    model.set_attn_implementation("eager")
    attention = model(pixel_values=pixels, output_attentions=True).attentions[1]
    model.set_attn_implementation("sdpa")
    handle.remove()
    scores = attention[:, :, 0, prefix:].mean(1)
    count = scores.shape[1]
    index = scores.topk(-(-count // 2)).indices
    hidden = blocks[1].attend(states[0], None)[0]
    for row in range(3):
        rest = [j for j in range(count) if j not in index[row].tolist()]
        fused = sum(scores[row, j] * hidden[row, prefix + j] for j in rest)
        tokens = torch.cat([hidden[row, :prefix], hidden[row, prefix + index[row]], fused[None]])
        expected = blocks[1].feed_forward(tokens[None])[0]
        with EViT(0.5, (1,)).applied(model) as kept:
            out = blocks[1].module(states[0], None)[row]
        assert torch.equal(kept[1][row], index[row])
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_a_distillation_token_is_no_patch(pixels):
    model = random_model(DeiTForImageClassificationWithTeacher, DeiTConfig)
    assert vision_blocks(model)[1] == 2
    with EViT(keep_rate=0.04, layers=(0, 1, 2)).applied(model) as kept:
        states = model(pixels, output_hidden_states=True).hidden_states
    assert [s.shape[1] for s in states] == [27, 4, 4, 4, 4]  # class, distillation, one patch, the rest
    assert [k.shape[1] for k in kept.values()] == [1, 1, 1]


def test_gradients_reach_kept_and_fused_patches(pixels):
    model = random_model(ViTForImageClassification, ViTConfig).train()
    given = pixels.clone().requires_grad_()
    with HALF.applied(model):
        (gradient,) = torch.autograd.grad(output(model, given).square().sum(), given)
    patches = gradient.unfold(2, 4, 4).unfold(3, 4, 4).abs().amax((1, 4, 5))
    assert (patches > 0).all()


def test_half_precision(pixels):
    model = random_model(CLIPVisionModel, CLIPVisionConfig).bfloat16()
    with HALF.applied(model):
        out = output(model, pixels.bfloat16())
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


# Refused ----------------------------------------------------------------------------------------------


def test_a_llava_is_refused(model, gaze):
    with pytest.raises(UnsupportedModelError, match="LLaVA one per placeholder"), EViT().applied(model):
        pass
    with pytest.raises(BadParameterError, match=r"write `with EViT\(\.\.\.\)\.applied\(vision_model\):`"):
        gaze.using(EViT()).__enter__()


def test_it_is_no_method_of_a_multimodal_model():
    assert not issubclass(EViT, Intervention)
    assert "evit" not in list_methods()
    with pytest.raises(UnknownMethodError, match=r"'evit' .*vision model used alone.*EViT\(\)\.applied"):
        create_method("evit")


def test_the_tower_of_a_llava_alone_shrinks_and_the_llava_says_why_not(model, gaze):
    """transformers itself refuses features that are not one per placeholder."""
    tower, inputs = model.model.vision_tower, gaze.inputs([picture(1)], ["What is this?"])
    with HALF.applied(tower):
        assert output(tower, inputs["pixel_values"]).shape[1] == 1 + 17 + 1
        with pytest.raises(ValueError, match=r"(?i)image features and image tokens do not match"):
            model(**inputs)


def test_models_it_is_not_for():
    siglip = random_model(SiglipVisionModel, SiglipVisionConfig)
    with pytest.raises(UnsupportedModelError, match="no class token"), EViT().applied(siglip):
        pass
    with (
        pytest.raises(UnsupportedModelError, match="LlamaForCausalLM has no patches"),
        EViT().applied(tiny_llama()),
    ):
        pass
    dino = random_model(Dinov2Model, Dinov2Config)
    with pytest.raises(UnsupportedModelError, match="0 stacks of blocks"), EViT().applied(dino):
        pass


def test_what_is_refused(vision_model):
    missing = pytest.raises(BadParameterError, match=r"layers \[9\] do not exist.*blocks 0\.\.3")
    with missing, EViT(layers=(3, 9)).applied(vision_model):
        pass
    twice = pytest.raises(CompositionError, match="already applied to this model")
    with HALF.applied(vision_model), twice, HALF.applied(vision_model):
        pass
    with pytest.raises(BadParameterError, match=r"keep_rate must be float in \(0, 1\], got 0.0.*fraction"):
        EViT(keep_rate=0.0)


def test_it_survives_json():
    assert EViT.from_dict(json.loads(json.dumps(HALF.to_dict()))) == HALF
