"""Detectors of transformers by name: tiny random ones, against the models' own outputs."""

from __future__ import annotations

import pytest
import torch
from models import picture
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    PreTrainedTokenizerFast,
    ResNetConfig,
    SwinConfig,
)

from regaze.errors import InputError, ModelNotFoundError
from regaze.interventions.detection import HubDetector, detect, find_detector

IMAGE = picture(1, 60, 40)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "dog", "cat", "hot", "wine", "glass")


def tokenizer(**options):
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    words.normalizer, words.pre_tokenizer = Lowercase(), Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **named, **options)


def spread(model):
    """Larger weights: with those of an untrained model all boxes get the same label."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "backbone" not in name:
                weight.normal_(std=0.6)
    return model


def detr():
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, d_model=16, num_queries=12, **layers, **heads
    )
    config.id2label = {0: "N/A", 1: "dog", 2: "hot dog"}
    return spread(DetrForObjectDetection(config)), DetrImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 96}
    )


def owl():
    text = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    images = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    return spread(Owlv2ForObjectDetection(config)), Owlv2Processor(images, tokenizer(model_max_length=16))


def grounding_dino():
    text = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    vision = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = GroundingDinoConfig(
        backbone_config=vision,
        text_config=text,
        d_model=32,
        num_queries=7,
        max_text_len=32,
        **layers,
        **heads,
    )
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return spread(GroundingDinoForObjectDetection(config)), GroundingDinoProcessor(images, tokenizer())


MAKERS = {"detr": detr, "owlv2": owl, "grounding-dino": grounding_dino}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, make in MAKERS.items():
        torch.manual_seed(0)
        model, processor = make()
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        found[name] = str(folder)
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_by_name_they_find_something(folders, name):
    detector = find_detector(folders[name], "cpu")
    assert isinstance(detector, HubDetector)
    assert detector.is_open == (name != "detr")
    assert detector.names == (() if detector.is_open else ("dog", "hot dog"))
    found = detect(detector, IMAGE, ["dog", "hot dog"])
    assert set(found.labels) <= {"dog", "hot dog"}
    assert "dog" in found.labels
    assert detect(detector, IMAGE, ["dog", "hot dog"]) == found
    width, height = IMAGE.size
    assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in found.boxes)


def test_a_closed_vocabulary_gives_the_likeliest_class_of_each_box(folders):
    detector = find_detector(folders["detr"], "cpu")
    with torch.no_grad():
        out = detector.model(**detector.processor(images=[IMAGE], return_tensors="pt"))
    scores, numbers = out.logits[0].softmax(-1)[:, :-1].max(-1)
    there = numbers != 0  # "N/A"
    assert 0 < there.sum() < len(there)
    found = detector(IMAGE)
    names = detector.model.config.id2label
    assert found.labels == tuple(names[int(number)] for number in numbers[there])
    torch.testing.assert_close(torch.tensor(found.scores), scores[there])
    cx, cy, wide, high = (out.pred_boxes[0] * torch.tensor([60.0, 40.0, 60.0, 40.0])).unbind(-1)
    corners = torch.stack([cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2], -1)
    torch.testing.assert_close(torch.tensor(found.boxes), corners[there])
    assert detector(IMAGE, ["Dog"]) == found.chosen(
        [i for i, name in enumerate(found.labels) if name == "dog"]
    )
    assert "dog" in found.labels
    assert "hot dog" not in detector(IMAGE, ["hot", "dog"]).labels


def test_owl_gives_each_box_the_text_with_the_highest_logit(folders):
    detector, texts = find_detector(folders["owlv2"], "cpu"), ["dog", "wine glass", "cat"]
    inputs = detector.processor(images=[IMAGE], text=[texts], return_tensors="pt", padding=True)
    with torch.no_grad():
        scores, numbers = detector.model(**inputs).logits[0].sigmoid().max(-1)
    found = detector(IMAGE, texts)
    assert found.labels == tuple(texts[number] for number in numbers)
    assert len(set(found.labels)) > 1
    torch.testing.assert_close(torch.tensor(found.scores), scores)


def test_grounding_dino_gives_each_box_the_text_of_its_strongest_token(folders):
    """[CLS] hot dog . wine glass . cat . [SEP]"""
    detector = find_detector(folders["grounding-dino"], "cpu")
    of_token = ["hot dog"] * 4 + ["wine glass"] * 3 + ["cat"] * 3
    inputs = detector.processor(images=[IMAGE], text=[["hot dog", "wine glass", "cat"]], return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[2, 7, 5, 4, 8, 9, 4, 6, 4, 3]]
    with torch.no_grad():
        probabilities = detector.model(**inputs).logits[0, :, : len(of_token)].sigmoid()
    found = detector(IMAGE, ["Hot dog.", "wine glass", "cat"])
    want = tuple(of_token[number] for number in probabilities.argmax(-1))
    assert tuple(label.lower() for label in found.labels) == want
    assert len(set(want)) > 1
    torch.testing.assert_close(torch.tensor(found.scores), probabilities.max(-1).values)


def test_more_names_than_fit(folders):
    with pytest.raises(InputError, match="reads 32 tokens at once, but the 16 names to look for are 34"):
        find_detector(folders["grounding-dino"], "cpu")(IMAGE, ["dog", "cat"] * 8)


@pytest.mark.parametrize("name", ["owlv2", "grounding-dino"])
@pytest.mark.parametrize("texts", [None, [], ["dog", " . "]])
def test_an_open_vocabulary_needs_texts(folders, name, texts):
    with pytest.raises(InputError, match=r"finds what it is asked for.*objects="):
        find_detector(folders[name], "cpu")(IMAGE, texts)


def test_what_is_no_detector_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name in (str(tmp_path), str(tmp_path / "nothing"), "somebody/no-such-detector"):
        with pytest.raises(ModelNotFoundError, match="cannot load the detector") as error:
            find_detector(name, "cpu")
        assert repr(name) in str(error.value)
        assert "give 'demo'" in str(error.value)
        assert "\n" not in str(error.value)
