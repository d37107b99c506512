"""Image tokens of Qwen-VL and its kin, Gemma, Pixtral, Llama 4, LFM2-VL, MiniCPM-V and Aria."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from decoding_checks import assert_same_scores
from models import logits_of, small_var
from packaging.version import Version
from PIL import Image
from zoo import any_shape, gemma, ocr, qwen, tiled
from zoo.every import runs, skip_if_older

import regaze
from regaze import Role
from regaze.errors import InputError, UnsupportedModelError
from regaze.interventions import ICD, VCD
from regaze.interventions.icd import PREFIXES
from regaze.toolkit.model import compat
from regaze.toolkit.model.callback import Callback
from regaze.toolkit.prompts.families import MediaInputs, family_of
from regaze.toolkit.prompts.families.llava import Llava
from regaze.toolkit.prompts.families.pixtral import Pixtral
from regaze.toolkit.prompts.picture import WHOLE

PARTS = (qwen, any_shape, gemma, tiled, ocr)
ENTRIES = {entry.name: entry for part in PARTS for entry in part.ENTRIES}
ENTRIES["pixtral"] = ENTRIES.pop("llava")
RUNNING = [name for name, entry in ENTRIES.items() if runs(entry)]
QUESTION = "Is there a dog in the picture?"
BUILT: dict[str, regaze.toolkit.wrap.Gaze] = {}


@pytest.fixture
def build():
    """A handle on a model, by name; each is built once."""

    def built(name):
        if name == "minicpmv4_6" and Version(transformers.__version__) < Version("5.23"):
            pytest.skip("transformers 5.17 cannot encode slices of different sizes together")
        skip_if_older(ENTRIES[name])
        if name not in BUILT:
            BUILT[name] = regaze.wrap(*ENTRIES[name].build())
        return BUILT[name]

    return built


def picture(width, height, spot=None, radius=0.04, brightness=100):
    """Grey, with a white square around a place given as shares of the sides."""
    pixels = np.full((height, width, 3), brightness, np.uint8)
    if spot is not None:
        left, right = ((spot[0] + side) * width for side in (-radius, radius))
        top, bottom = ((spot[1] + side) * height for side in (-radius, radius))
        pixels[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1] = 255
    return Image.fromarray(pixels)


def noise(seed, width=80, height=60):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def features(model, inputs):
    """What the language model is given, [B, L, D]."""
    seen = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0]


def expected_cells(view, spot, radius=0.04):
    """Cells of a view that the square around a place touches; none where the view shows another part."""
    left, top, right, bottom = view.box
    edges = []
    for place, low, high, count in (
        (spot[1], top, bottom, view.grid[0]),
        (spot[0], left, right, view.grid[1]),
    ):
        middle = (place - low) / (high - low) * count
        reach = radius / (high - low) * count
        if not 0 <= middle < count:
            return set()
        edges.append(range(max(0, int(middle - reach)), min(count, int(middle + reach) + 1)))
    return {row * view.grid[1] + column for row in edges[0] for column in edges[1]}


@pytest.mark.parametrize("size", [(80, 60), (60, 100), (112, 112), (128, 64)], ids=str)
@pytest.mark.parametrize("name", [name for name in RUNNING if name != "aria"])
def test_a_bright_square_lights_the_cell_that_shows_it_in_every_view(build, name, size):
    gaze = build(name)
    grey = features(gaze.model, gaze.inputs([picture(*size)], [QUESTION]))
    for spot in ((0.1, 0.1), (0.35, 0.9), (0.6, 0.4), (0.9, 0.65)):
        inputs = gaze.inputs([picture(*size, spot)], [QUESTION])
        tokens = gaze.tokens(inputs)
        change = (features(gaze.model, inputs) - grey).norm(dim=-1)[0]
        hit = 0
        for number, view in enumerate(tokens.views[0]):
            cells = expected_cells(view, spot)
            if cells:
                columns = (tokens.view[0] == number).nonzero().flatten()
                hit += 1
                assert int(tokens.cell[0, columns[change[columns].argmax()]]) in cells, (spot, view)
        assert hit == (2 if len(tokens.views[0]) > 1 else 1)  # a tile and the whole


@pytest.mark.parametrize("name", ENTRIES)
def test_roles_by_the_template_and_by_the_ids_alone(build, name):
    gaze = build(name)
    questions = [QUESTION, "What?"]
    inputs = gaze.inputs([noise(1), [noise(2, 60, 100), noise(3, 70, 70)]], questions)
    tokens = gaze.tokens(inputs)
    assert torch.equal(tokens.mask(Role.IMAGE), inputs["input_ids"] == gaze.family.image_token_id)
    for row, question in enumerate(questions):
        query = inputs["input_ids"][row][tokens.columns(Role.QUERY, row)]
        assert gaze.processor.tokenizer.decode(query).strip() == question
        views = tokens.views[row]
        assert sorted({view.image for view in views}) == list(range(row + 1))
        for number, view in enumerate(views):
            cells = tokens.cell[row][(tokens.view[row] == number) & (tokens.cell[row] >= 0)].tolist()
            assert cells == list(range(view.grid[0] * view.grid[1]))
    again = regaze.wrap(gaze.model, gaze.processor).tokens(dict(inputs))  # has built no prompt
    assert again.views == tokens.views
    assert torch.equal(again.roles, tokens.roles)
    assert torch.equal(again.cell, tokens.cell)


def fresh_logits(model, inputs, answer):
    """[T, B, V] logits that predict `answer` [B, T], each step by a forward of its own."""
    rows = []
    with torch.no_grad():
        for step in range(answer.shape[1]):
            more = answer[:, :step]
            given = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1)}
            given["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
            given.pop("labels", None)  # PaliGemma's processor makes some
            for kind in ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids"):
                if kind in given:
                    ones = (
                        kind == "token_type_ids" and model.config.model_type == "paligemma"
                    )  # not bidirectional
                    given[kind] = torch.cat([given[kind], torch.full_like(more, int(ones))], 1)
            if not hasattr(model.base_model, "get_rope_index"):
                given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp_min(0)
            rows.append(model(**given).logits[:, -1])
    return torch.stack(rows)


def noised(inputs):
    """The pixels of VCD's branch, image by image as if each were alone."""
    context = SimpleNamespace(inputs=inputs)
    return {**inputs, "pixel_values": VCD(noise_step=900).negative(context).inputs["pixel_values"]}


@pytest.mark.parametrize("name", RUNNING)
def test_a_noised_image_beside_the_real_one_equals_two_forwards(build, name):
    gaze = build(name)
    inputs = dict(gaze.inputs([noise(1), noise(2, 60, 100)], [QUESTION, "What?"]))
    vcd = VCD(alpha=0.7, beta=0.0, noise_step=900)
    with gaze.using(vcd):
        logits = logits_of(gaze.model, inputs, 3)
    answer = logits.argmax(-1).T
    main, other = (fresh_logits(gaze.model, given, answer) for given in (inputs, noised(inputs)))
    assert not torch.allclose(main, other, atol=1e-3)
    assert_same_scores(logits, 1.7 * main - 0.7 * other, 2e-4)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "gemma3", "aria"])
def test_beams_of_several_images_with_a_branch(build, name):
    gaze = build(name)
    images, questions = [[noise(1), noise(3, 70, 70)], noise(2, 60, 100)], [QUESTION, "What?"]
    options = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2, "eos_token_id": None}
    with gaze.using(VCD(alpha=0.7, noise_step=900)):
        inputs = gaze.inputs(images, questions)
        together = gaze.model.generate(**inputs, **options, do_sample=False)[:, -3:]
        for row in range(2):
            alone = gaze.inputs(images[row : row + 1], questions[row : row + 1])
            answers = gaze.model.generate(**alone, **options, do_sample=False)[:, -3:]
            assert torch.equal(answers, together[2 * row : 2 * row + 2])


@pytest.mark.parametrize("name", [name for name in RUNNING if name != "paligemma"])  # has no system messages
def test_another_prompt_beside_the_users_is_of_the_same_types(build, name):
    gaze = build(name)
    images, questions = [noise(1), noise(2, 60, 100)], [QUESTION, "What?"]
    icd = ICD(alpha=0.7, beta=0.0, prefix="objects")
    inputs = dict(gaze.inputs(images, questions))
    with gaze.using(icd):
        logits = logits_of(gaze.model, inputs, 3)
    answer = logits.argmax(-1).T
    other = dict(gaze.inputs(images, [f"{PREFIXES['objects']}\n{question}" for question in questions]))
    main, other = (fresh_logits(gaze.model, given, answer) for given in (inputs, other))
    assert_same_scores(logits, 1.7 * main - 0.7 * other, 2e-4)


# Tiles --------------------------------------------------------------------------------------------------


def boxes(gaze, image):
    return [view.box for view in gaze.tokens(gaze.inputs([image], [QUESTION])).views[0]]


@pytest.mark.parametrize(
    ("size", "filled"),  # share of the canvas of tiles of 56 x 56 pixels
    [
        ((112, 56), (1.0, 1.0)),
        ((56, 112), (1.0, 1.0)),
        ((100, 50), (100 / 112, 50 / 56)),
        ((80, 60), (80 / 112, 60 / 112)),
    ],
)
@pytest.mark.parametrize("border", [0, 10])
def test_llama4_knows_how_much_of_its_canvas_is_image(build, size, filled, border):
    """Also where the image itself ends in black."""
    gaze = build("llama4")
    image = picture(*size)
    image.paste((0, 0, 0), (size[0] - border, 0, *size))
    *tiles, whole = boxes(gaze, image)
    assert whole == WHOLE
    right, bottom = max(box[2] for box in tiles), max(box[3] for box in tiles)
    pixel = 1.5 / min(size)
    assert right == pytest.approx(1 / filled[0], abs=2 * pixel)
    assert bottom == pytest.approx(1 / filled[1], abs=2 * pixel)
    assert tiles[0][:2] == (0.0, 0.0)


def test_llama4_one_tile_black_images_and_no_pixels(build):
    gaze = build("llama4")
    assert boxes(gaze, picture(50, 50)) == [WHOLE]
    assert boxes(gaze, picture(112, 112, brightness=0))[0] == (0.0, 0.0, 0.5, 0.5)
    inputs = gaze.inputs([picture(80, 60)], [QUESTION])
    views = gaze.family.read_layout(inputs["input_ids"][0].tolist(), MediaInputs({})).views
    assert [view.box for view in views] == [None] * 4 + [WHOLE]
    assert {view.image for view in views} == {0}


@pytest.mark.parametrize(
    ("size", "shape"),
    [((40, 40), None), ((120, 40), (1, 3)), ((40, 120), (3, 1)), ((90, 80), (2, 2))],
    ids=str,
)
def test_lfm2_reads_rows_and_columns_from_the_names_of_its_tiles(build, size, shape):
    *tiles, whole = boxes(build("lfm2_vl"), picture(*size))
    assert whole == WHOLE
    rows, columns = shape or (0, 0)
    assert tiles == [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def test_lfm2_without_special_tokens_says_what_it_needs(build):
    gaze = build("lfm2_vl")
    with pytest.raises(InputError, match="use_image_special_tokens"):
        gaze.tokens(
            gaze.processor(
                text=["<image>" + QUESTION],
                images=[[picture(90, 80)]],
                return_tensors="pt",
                use_image_special_tokens=False,
            )
        )


@pytest.mark.parametrize(
    ("size", "shape"),
    [((60, 60), None), ((160, 50), (1, 3)), ((80, 70), (1, 2)), ((120, 120), (2, 2))],
    ids=str,
)
def test_minicpm_slices_and_its_finer_mode(build, size, shape):
    gaze = build("minicpmv4_6")
    assert boxes(gaze, picture(*size))[0] == WHOLE
    rows, columns = shape or (0, 0)
    assert boxes(gaze, picture(*size))[1:] == [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    prompt = gaze.reader.render(QUESTION, 1).text
    fine = gaze.processor(
        text=[prompt], images=[picture(*size)], return_tensors="pt", images_kwargs={"downsample_mode": "4x"}
    )
    for view, (high, wide) in zip(gaze.tokens(fine).views[0], fine["target_sizes"].tolist(), strict=True):
        assert view.grid == (high // 2, wide // 2)


# What the ids alone do not tell ---------------------------------------------------------------------------


def test_llava_with_a_pixtral_tower_is_pixtral():
    tower = SimpleNamespace(model_type="pixtral", patch_size=14)
    config = SimpleNamespace(model_type="llava", image_token_id=7, vision_config=tower)
    assert type(family_of(config)) is Pixtral
    tower.model_type = "siglip_vision_model"
    assert type(family_of(config)) is Llava


@pytest.mark.parametrize("kind", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_of_a_model_with_a_voice_the_thinker_is_wrapped(kind):
    family = family_of(SimpleNamespace(model_type=kind))
    with pytest.raises(UnsupportedModelError, match=r"wrap\(model\.thinker"):
        family.hook_target(torch.nn.Identity())


def test_sizes_of_other_images_are_refused(build):
    for name, media in (
        ("pixtral", "image_sizes"),
        ("qwen2_vl", "image_grid_thw"),
        ("minicpmv4_6", "target_sizes"),
    ):
        gaze = build(name)
        inputs = dict(gaze.inputs([picture(80, 60)], [QUESTION]))
        other = gaze.inputs([picture(160, 60)], [QUESTION])
        with pytest.raises(InputError, match="but the prompt has"):
            gaze.tokens({**inputs, media: other[media]})
        with pytest.raises(InputError, match=media):
            regaze.wrap(gaze.model, gaze.processor).tokens({"input_ids": inputs["input_ids"]})


def test_paligemma_has_neither_system_messages_nor_prompts_without_an_image(build):
    gaze = build("paligemma")
    with pytest.raises(InputError, match="system"):
        gaze.inputs([picture(56, 56)], [QUESTION], system="Be brief.")
    with pytest.raises(InputError, match="image"):
        gaze.inputs([None], [QUESTION])


def test_latents_have_no_places(build):
    tokens = build("aria").tokens(build("aria").inputs([picture(80, 60)], [QUESTION]))
    assert [(view.grid, view.image) for view in tokens.views[0]] == [((0, 0), 0)]
    assert int((tokens.view[0] == 0).sum()) == int(tokens.mask(Role.IMAGE).sum()) == 4
    assert (tokens.cell == -1).all()


# Videos -------------------------------------------------------------------------------------------------


def video_inputs(gaze, name, frames, spot=None):
    """A prompt about a video of grey frames, the last with a white square, as the processor would make it.

    Video processors need torchvision; a frame is patches of an image here (two images in ERNIE).
    """
    images = gaze.processor.image_processor
    repeats = 2 if name.startswith("ernie") else 1
    shown = [
        picture(84, 56, spot if i == frames - 1 else None) for i in range(frames) for _ in range(repeats)
    ]
    encoded = [images(images=[frame], return_tensors="pt") for frame in shown]
    pixels = torch.cat([each["pixel_values"] for each in encoded])
    _, high, wide = encoded[0]["image_grid_thw"][0].tolist()
    config, tokenizer = gaze.model.config, gaze.processor.tokenizer
    merge = images.merge_size
    cells = [config.video_token_id] * len(gaze.family.grid_tokens(high // merge, wide // merge).cells)
    before, after = (tokenizer.encode(text) for text in ("user: ", QUESTION))
    if name in ("qwen3_vl", "lfm3_vl", "qwen4_exp", "video_llama_3"):  # a time before each frame
        mark = tokenizer.encode("1 <|vision_start|>"), tokenizer.encode("<|vision_end|>")
        middle = [*mark[0], *cells, *mark[1]] * frames
    else:
        middle = cells * frames
    ids = torch.tensor([[*before, *middle, *after]])
    kinds = 2 * (ids == config.video_token_id).long()
    extra = {"moe_mm_token_type_ids": kinds} if name.startswith("ernie") else {}
    if name == "video_llama_3":
        kept = torch.ones(frames * len(cells), dtype=torch.bool)
        extra = {"video_merge_sizes": torch.tensor([merge]), "video_compression_mask": kept}
    elif compat.has_mrope(gaze.model):
        extra["mm_token_type_ids"] = kinds
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[frames * repeats, high, wide]]),
        **extra,
    }


QWEN_LIKE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe", "qwen4_exp")
SHAPED = ("exaone4_5", "hyperclovax_vision_v2", "lfm3_vl", "video_llama_3", "hy_v4_vl")


@pytest.mark.parametrize("name", [*QWEN_LIKE, *SHAPED])
def test_frames_of_a_video_are_views(build, name):
    gaze, frames, spot = build(name), 3, (0.9, 0.1)
    grey, spotted = (video_inputs(gaze, name, frames, where) for where in (None, spot))
    tokens = gaze.tokens(spotted)
    assert [(view.grid, view.image, view.frame) for view in tokens.views[0]] == [
        (tokens.views[0][0].grid, 0, i) for i in range(frames)
    ]
    change = (features(gaze.model, spotted) - features(gaze.model, grey)).norm(dim=-1)[0]
    best = int(change.argmax())
    assert int(tokens.view[0, best]) == frames - 1
    assert int(tokens.cell[0, best]) in expected_cells(tokens.views[0][-1], spot)
    with pytest.raises(InputError, match=r"video_(grid_thw|compression_mask)"):
        gaze.tokens({**spotted, "video_grid_thw": spotted["video_grid_thw"] + torch.tensor([0, 2, 0])})


def test_cells_that_videollama3_drops_from_a_frame_have_no_token(build):
    gaze, frames = build("video_llama_3"), 3
    inputs = video_inputs(gaze, "video_llama_3", frames)
    rows, columns = gaze.tokens(inputs).grids[0][0]
    kept = inputs["video_compression_mask"].view(frames, -1).clone()
    kept[1, 2:5] = kept[2] = False
    is_video = inputs["input_ids"][0] == gaze.model.config.video_token_id
    stays = torch.ones_like(is_video)
    stays[is_video] = kept.flatten()
    fewer = {**inputs, "input_ids": inputs["input_ids"][:, stays], "video_compression_mask": kept.flatten()}
    tokens = gaze.tokens({**fewer, "attention_mask": torch.ones_like(fewer["input_ids"])})
    every = list(range(rows * columns))
    assert [view.grid for view in tokens.views[0]] == [(rows, columns)] * frames
    for frame, cells in enumerate((every, [cell for cell in every if not 2 <= cell < 5], [])):
        assert tokens.cell[0][tokens.view[0] == frame].tolist() == cells
    with pytest.raises(InputError, match="neighbouring tokens for a video"):
        gaze.tokens({**inputs, "video_compression_mask": kept.flatten()})


# Layers -------------------------------------------------------------------------------------------------


class Capture(Callback):
    """Captures the inputs of the decoder layers."""

    needs_hidden_states = True

    def __init__(self):
        self.seen = {}

    def edit(self, layer, step, context):
        if step == 0:
            self.seen[layer] = context.hidden_states(layer)


def test_of_gemma3n_the_stream_that_its_layers_work_on_is_seen(build):
    gaze = build("gemma3n")
    inputs, capture = gaze.inputs([noise(1)], [QUESTION]), Capture()
    with gaze.using(capture), torch.no_grad():
        gaze.model(**inputs)
    given = features(gaze.model, inputs)
    assert sorted(capture.seen) == [0, 1, 2, 3]
    assert all(hidden.shape == given.shape for hidden in capture.seen.values())
    torch.testing.assert_close(capture.seen[0], given)


@pytest.mark.parametrize(("name", "attending"), [("lfm2_vl", (1, 2)), ("minicpmv4_6", (2,))])
def test_layers_without_attention_are_left_alone(build, name, attending):
    gaze = build(name)
    inputs = gaze.inputs([noise(1), noise(2, 60, 100)], [QUESTION, "What?"])
    with gaze.recording() as record:
        plain = logits_of(gaze.model, inputs, 3)
    assert record[0].layers == attending
    with gaze.using(small_var(tau=1.2, min_image_mass=0.02)):
        edited = logits_of(gaze.model, inputs, 3)
    assert (edited - plain).abs().max() > 1e-3
