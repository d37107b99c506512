"""Cross-attention: Whisper's decoder looks at what its encoder heard; edits and records of those layers."""

from __future__ import annotations

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

import regaze
from regaze import HeadKnockout, Role
from regaze.errors import UnsupportedModelError
from regaze.interventions import PAI, VCD
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.record.record import Record

SECONDS = 20  # encoder frames


@pytest.fixture(scope="module")
def model():
    """A random Whisper: 2 encoder layers of 2 heads, 3 decoder layers of 4."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=100,
        max_source_positions=SECONDS,
        max_target_positions=32,
        init_std=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def speech():
    return torch.randn(2, 80, 2 * SECONDS, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def gaze(model):
    return regaze.wrap(model)


def heard(model, speech, **options):
    return model.generate(
        speech,
        max_length=5,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=99,
        **options,
    )


def logits(model, speech):
    return torch.stack(heard(model, speech).logits)


def test_layers_and_heads_are_the_decoders(model):
    config = compat.text_config(model)
    assert (config.num_hidden_layers, config.num_attention_heads) == (3, 4)
    places = list(compat.attention_modules(model).values())
    assert places == [compat.AttentionSite(layer, cross) for layer in range(3) for cross in (False, True)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_idle_is_the_same_to_the_bit(model, gaze, speech, implementation):
    """The encoder shares the configuration whose attention is set, and is as before, too."""
    model.set_attn_implementation(implementation)
    try:
        plain = logits(model, speech)
        with gaze.using(Callback()):
            assert torch.equal(plain, logits(model, speech))
        assert model.config._attn_implementation == implementation
        assert not [name for m in model.modules() for name in vars(m) if "regaze" in name]
    finally:
        model.set_attn_implementation("sdpa")


def test_recorded_rows_are_those_of_eager_attention(model, gaze, speech, tmp_path):
    with gaze.recording(slices="image", entropy=True) as record:
        tokens = heard(model, speech).sequences
    model.set_attn_implementation("eager")
    try:
        eager = heard(model, speech, output_attentions=True)
    finally:
        model.set_attn_implementation("sdpa")
    assert torch.equal(tokens, eager.sequences)
    cross = record[0].cross
    assert cross.tokens.grids == (((1, SECONDS),),) * 2
    for step, layers in enumerate(eager.cross_attentions):
        row = int(cross.answer_rows()[step])
        want = torch.stack(layers)[:, :, :, -1]
        torch.testing.assert_close(cross.slices[:, :, :, row], want, rtol=0, atol=1e-6)
        own = torch.stack(eager.decoder_attentions[step])[:, :, :, -1]
        torch.testing.assert_close(record[0].masses[:, :, :, row].sum(-1), own.sum(-1))
    maps = cross.image_maps(sample=1)
    assert torch.equal(maps[:, :, :, 0], cross.slices[:, 1])
    torch.testing.assert_close(cross.masses[..., int(Role.IMAGE)], torch.ones(cross.masses.shape[:-1]))
    record.save(tmp_path / "record.safetensors")
    loaded = Record.load(tmp_path / "record.safetensors")[0].cross
    assert torch.equal(loaded.slices, cross.slices)
    assert torch.equal(loaded.row_step, cross.row_step)
    assert loaded.tokens.views == cross.tokens.views


def test_heads_of_either_attention_can_be_knocked_out(model, gaze, speech):
    """Zeroing the rows of the head's part of the output projection is the same."""
    plain = logits(model, speech)
    for cross, name in ((False, "self_attn"), (True, "encoder_attn")):
        with gaze.using(HeadKnockout(heads=((1, 2),), cross=cross)):
            edited = logits(model, speech)
        weight = getattr(model.model.decoder.layers[1], name).out_proj.weight
        kept = weight.data.clone()
        weight.data[:, 2 * 8 : 3 * 8] = 0.0
        try:
            torch.testing.assert_close(edited[0], logits(model, speech)[0])
        finally:
            weight.data.copy_(kept)
        assert not torch.allclose(edited[0], plain[0])


def test_pai_raises_the_scores_of_what_is_heard(model, gaze, speech):
    def image_rows():
        with gaze.recording(slices="image", lse=True, edited=True) as record:
            logits(model, speech)
        return record[0].cross

    plain = image_rows()
    with gaze.using(PAI(alpha=0.5, gamma=1.0, layers=(0, 2))):
        raised = image_rows()
    scores = (plain.slices.log() + plain.lse[..., None])[
        0, :, :, 0
    ]  # layer 0, first row: nothing came before
    want = torch.softmax(scores + 0.5 * scores.abs(), -1)
    torch.testing.assert_close(raised.slices[0, :, :, 0], want, rtol=1e-4, atol=1e-6)


def test_beams_and_samples_of_a_batch(model, gaze, speech):
    plain = model.generate(speech, num_beams=3, max_length=6, eos_token_id=99)
    with gaze.using(HeadKnockout(heads=())):
        assert torch.equal(plain, model.generate(speech, num_beams=3, max_length=6, eos_token_id=99))
    with gaze.using(HeadKnockout(heads=((0, 1), (2, 3)), cross=True)):
        both = logits(model, speech)
        for row in range(2):
            alone = logits(model, speech[row : row + 1])
            torch.testing.assert_close(both[0, row], alone[0, 0], rtol=1e-4, atol=1e-5)


def test_what_has_no_meaning_there_is_refused(model, gaze, speech):
    class Blind(Callback):
        def edit(self, layer, step, context):
            return None

    with (
        gaze.using(Blind()),
        pytest.raises(
            UnsupportedModelError,
            match=r"^Blind knows images as tokens of the prompt, but WhisperForConditionalGeneration sees "
            r"them .* has no meaning yet; recordings and methods that edit cross-attention work there$",
        ),
    ):
        logits(model, speech)

    class Branches(Callback):
        def branches(self, context):
            return {"one": Branch(), "two": Branch()}

        def edit_cross(self, layer, step, context):
            return None

    refusal = (
        r"^second contexts \(one, two\) cannot be run so far on a WhisperForConditionalGeneration, which"
    )
    with gaze.using(Branches()), pytest.raises(UnsupportedModelError, match=refusal):
        logits(model, speech)
    with gaze.using(VCD()), pytest.raises(UnsupportedModelError, match="VCD knows images as tokens"):
        logits(model, speech)
    with gaze.using(PAI()), pytest.raises(UnsupportedModelError, match="set gamma=1"):
        logits(model, speech)
    assert model.config._attn_implementation == "sdpa"
