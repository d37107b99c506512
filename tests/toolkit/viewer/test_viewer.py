"""Pages hold what the record holds: numbers within their stated error, escaped texts, bounded sizes."""

from __future__ import annotations

import base64
import gzip
import html
import importlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import llava_processor, picture, small_var, tiny_llama
from typer.testing import CliRunner
from viewer_records import long_groups, pictures, synthetic

import regaze
from regaze import HeadKnockout, Record, Role
from regaze.cli import app
from regaze.errors import BadParameterError, InputError, RecordingError, UnsupportedModelError
from regaze.toolkit.viewer import Page, Variant, answer_page, build_page, record_page
from regaze.toolkit.viewer.codec import FLOOR, SparseRows, WeightEncoder, decode, encode, relative_error


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


def section(data: dict, name: str) -> bytes:
    return gzip.decompress(base64.b64decode(data["sections"][name]))


def rows_of(data: dict, name: str) -> np.ndarray:
    """[V, P, columns] weights of a section, read as the page's script does."""
    fidelity, width = data["fidelity"], len(data["pieces"])
    planes = len(data["layers"]) * data["heads"] if name == "heads" else len(data["layers"]) + 1
    index = {2: np.uint16, 4: np.uint32}[fidelity["indexBytes"]]
    raw, count = section(data, name), planes * len(data["rows"])
    counts = np.frombuffer(raw, index, count).astype(int)
    total, size = counts.sum(), fidelity["indexBytes"]
    gaps = np.frombuffer(raw, index, total, count * size).astype(int)
    kind = np.uint8 if fidelity["bits"] == 8 else np.uint16
    codes = np.frombuffer(raw, kind, offset=(count + total) * size).reshape(-1, total)
    out = np.zeros((len(codes), count, width), np.float32)
    at = 0
    for row, entries in enumerate(counts):
        columns = gaps[at : at + entries].cumsum()
        out[:, row, columns] = decode(codes[:, at : at + entries], fidelity["bits"])
        at += entries
    return out


# Packing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
def test_codes_keep_weights_within_the_stated_relative_error(bits):
    weights = np.exp(np.random.default_rng(0).uniform(np.log(FLOOR), 0, 20_000)).astype(np.float32)
    error = np.abs(decode(encode(weights, bits), bits) - weights) / weights
    # single precision of ln w may move a weight that lies between two codes to the farther one
    assert error.max() <= relative_error(bits) * 1.01 + 2e-6
    assert error.max() > relative_error(bits) / 2
    assert relative_error(8) < 0.028
    assert relative_error(16) < 1.1e-4


def test_codes_of_nothing_of_little_and_of_all():
    weights = np.array([0.0, FLOOR / 2, FLOOR, 1.0, 1.0000001], np.float32)
    for bits in (8, 16):
        top = 2**bits - 1
        assert encode(weights, bits).tolist() == [0, 0, 1, top, top]
        assert decode(np.array([0, 1, top]), bits) == pytest.approx([0, FLOOR, 1])


def test_sparse_rows_keep_the_strongest_entries_of_each_row_for_both_variants():
    codes = np.random.default_rng(1).integers(0, 256, (2, 7, 31)).astype(np.uint8)
    codes[:, 3, 4:] = 0
    strength = codes.max(0)
    for sparse in (
        SparseRows.of(codes, 9),
        SparseRows.of(codes, 20).strongest(9),
        SparseRows.of(codes, 31).strongest(9),
    ):
        assert sparse.counts.tolist() == [9, 9, 9, 4, 9, 9, 9]
        at = 0
        for row, count in enumerate(sparse.counts):
            columns = sparse.columns[at : at + count]
            assert (np.diff(columns) > 0).all()
            assert np.array_equal(sparse.codes[:, at : at + count], codes[:, row, columns])
            assert strength[row, columns].min() >= np.delete(strength[row], columns).max()
            at += count
    assert SparseRows.of(np.zeros_like(codes), 60).counts.sum() == 0


def test_everything_is_kept_to_16_bits_where_there_is_room():
    trace, other = synthetic(range(3)), synthetic(range(3), seed=1)
    page = build_page([[trace, other]], [0, 1, 2], variants=[Variant("plain"), Variant("other")])
    data = data_of(page.html)
    assert data["fidelity"]["bits"] == 16
    assert set(data["fidelity"]["entriesPerRow"].values()) == {len(data["pieces"])}
    bound = {"rtol": relative_error(16) * 1.01 + 2e-6, "atol": FLOOR}
    expected = torch.stack([trace.slices[:, 0], other.slices[:, 0]])  # [V, n, H, N, C]
    width = expected.shape[-1]
    heads = rows_of(data, "heads").reshape(2, 3, 6, -1, width + 1)
    np.testing.assert_allclose(heads[..., :width], expected, **bound)
    means = rows_of(data, "means").reshape(2, 4, -1, width + 1)[..., :width]
    np.testing.assert_allclose(means[:, 1:], expected.mean(2), **bound)
    np.testing.assert_allclose(means[:, 0], expected.mean((1, 2)), **bound)
    maxima = rows_of(data, "maxima").reshape(2, 4, -1, width + 1)[..., :width]
    np.testing.assert_allclose(maxima[:, 1:], expected.amax(2), **bound)
    np.testing.assert_allclose(maxima[:, 0], expected.amax((1, 2)), **bound)
    masses = np.frombuffer(section(data, "masses"), np.uint16).reshape(2, 3, 6, -1, len(data["roleNumbers"]))
    known = torch.stack([trace.masses[:, 0], other.masses[:, 0]])[..., data["roleNumbers"]]
    np.testing.assert_allclose(masses / 65535, known, atol=0.51 / 65535)


def test_where_there_is_no_room_each_row_keeps_its_strongest_weights():
    trace = synthetic(range(4), grid=(20, 20))
    full, small = (build_page([[trace]], range(4), limit=limit) for limit in (8_000_000, 130_000))
    assert 100_000 < len(small.html.encode()) <= 130_000 < len(full.html.encode())
    data = data_of(small.html)
    assert data["fidelity"]["bits"] == 8
    weights = trace.slices[:, 0].numpy()
    every = {"heads": weights, "means": weights.mean(1), "maxima": weights.max(1)}
    for name, expected in every.items():
        rows = rows_of(data, name)[0].reshape(-1, len(data["rows"]), len(data["pieces"]))[..., :-1]
        rows = rows if name == "heads" else rows[1:]  # without the plane of all layers
        expected = expected.reshape(rows.shape)
        most = data["fidelity"]["entriesPerRow"][name]
        assert most > 5
        stored = rows > 0
        assert stored.sum(-1).max() == most
        weakest = np.where(stored, expected, np.inf).min(-1)
        left_out = np.where(stored, 0, expected).max(-1)
        step = (1 + relative_error(8)) ** 2 * (
            1 + 1e-5
        )  # weights within one step of the scale are stored alike
        assert (left_out <= np.maximum(weakest * step, FLOOR)).all()
        assert (np.abs(rows - expected)[stored] / expected[stored]).max() < relative_error(8) * 1.01
    assert most < 200
    with pytest.raises(BadParameterError, match="smaller than its text"):
        build_page([[trace]], range(4), limit=20_000)


def test_a_budget_for_nothing_is_refused():
    encoder = WeightEncoder(1, 1, 2, 200, 50, budget=60)
    encoder.add(np.random.default_rng(0).random((1, 2, 200, 50), np.float32), None)
    with pytest.raises(BadParameterError, match="leaves 60 bytes"):
        encoder.finish()


def test_a_prompt_of_four_thousand_tokens_fits_any_limit_that_is_given():
    page = build_page(
        long_groups(4, 16),
        range(4),
        variants=[Variant("plain"), Variant("edited")],
        images=[picture(0, 640, 640)],
        limit=3_000_000,
    )
    assert len(page.html.encode()) <= 3_000_000
    data = data_of(page.html)
    assert len(data["pieces"]) == 1 + 63 * 65 + 27 + 24
    assert data["fidelity"]["entriesPerRow"]["means"] > 300
    assert data["fidelity"]["entriesPerRow"]["heads"] > 30


# Texts --------------------------------------------------------------------------------------------------

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--",
    "]]>",
    "\u2028",
    '" onload="x',
    "&lt;",
    "{{script}}",
    "\ud800",
)


def test_texts_stay_texts():
    trace = synthetic(range(1), question=HOSTILE)
    page = build_page([[trace]], [0], title="<script>alert(2)</script>{{data}}", model="<b>m</b>").html
    page.encode()  # a lone surrogate, as byte-level tokenizers may give, is no error
    data = data_of(page)
    assert tuple(data["pieces"][-11:-3]) == HOSTILE
    assert data["title"] == "<script>alert(2)</script>{{data}}"
    assert page.count("<script") == page.count("</script>") == 2
    assert "<!--" not in page
    assert "alert(2)" not in page.replace(html.escape(data["title"]), "").replace(
        "\\u003cscript\\u003ealert(2)", ""
    )


def test_only_the_pages_own_script_may_run_and_nothing_be_fetched():
    page = build_page([[synthetic(range(1))]], [0], images=pictures()).html
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert "default-src 'none'" in html.unescape(policy)
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://|@import|url\(""", page)


def test_the_frame_of_a_notebook_is_isolated_and_holds_the_page():
    page = Page('<p class="a">&amp; \' "</p>')
    (inside,) = re.findall(r'srcdoc="([^"]*)"', page._repr_html_())
    assert html.unescape(inside) == page.html
    assert 'sandbox="allow-scripts"' in page._repr_html_()


# Records ------------------------------------------------------------------------------------------------


def test_a_padded_batch_shows_each_sample_without_padding(gaze):
    questions = ["Is there a dog in the image?", "What?"]
    with gaze.recording(slices="all", rows="text") as record:
        gaze.ask([picture(1), picture(2)], questions, max_new_tokens=3, eos_token_id=None)
    trace = record[0]
    data = data_of(record_page(record, sample=1, images=[picture(2)]).html)
    real = (trace.tokens.roles[1] != Role.PAD).nonzero().flatten()
    assert data["prompt"] == len(real) < trace.tokens.length
    assert "".join(data["pieces"][: data["prompt"]]).count("What?") == 1
    assert data["title"] == "What?"
    assert data["pictures"][0]["tokens"] == [
        int((real == place).nonzero()) for place in trace.tokens.image_cells(1)
    ]
    columns = torch.cat([real, torch.arange(trace.tokens.length, trace.slices.shape[-1])])
    active = trace.row_active[1]
    expected = trace.slices[:, 1][:, :, active][..., columns]
    heads = rows_of(data, "heads").reshape(6, 6, int(active.sum()), -1)
    np.testing.assert_allclose(heads[..., : len(columns)], expected, rtol=2e-4, atol=FLOOR)
    assert data["rows"] == [int((columns == place).nonzero()) for place in trace.row_position[active]]


def test_slices_of_images_alone_and_masses_alone(gaze):
    with gaze.recording(slices="image") as record:
        gaze.ask([[picture(1), picture(2)]], ["Which?"], max_new_tokens=2, eos_token_id=None)
    data = data_of(record_page(record).html)
    assert (data["columns"], [p["label"] for p in data["pictures"]]) == ("image", ["image 1", "image 2"])
    heads = rows_of(data, "heads").reshape(6, 6, 2, -1)
    maps = record[0].image_maps(0, 1).flatten(-2)
    np.testing.assert_allclose(heads[..., data["pictures"][1]["tokens"]], maps, rtol=2e-4, atol=FLOOR)
    with gaze.recording() as record:
        gaze.ask([picture(1)], ["What?"], max_new_tokens=2)
    assert data_of(record_page(record).html)["columns"] == "none"
    with gaze.recording(entropy=True, masses=False) as record:
        gaze.ask([picture(1)], ["What?"], max_new_tokens=2)
    with pytest.raises(RecordingError, match="slices or masses"):
        record_page(record)
    with pytest.raises(InputError, match="2 images were given for a sample with 1"):
        build_page([[synthetic(range(1))]], [0], images=pictures(2))


def test_a_record_has_the_same_page_before_and_after_a_file(gaze, tmp_path):
    with gaze.recording(slices="all") as record:
        gaze.ask([picture(1)], ["What?"], max_new_tokens=2)
    assert record_page(record)._repr_html_().startswith("<iframe")
    record.save(tmp_path / "record.safetensors")
    assert record_page(Record.load(tmp_path / "record.safetensors")) == record_page(record)
    with pytest.raises(RecordingError, match="nothing is recorded"):
        record_page(Record({}))


def test_tiles_show_their_part_of_the_image():
    trace = synthetic(range(1), grid=(4, 4), images=2)
    whole, right = trace.tokens.views[0]
    views = ((whole, replace(right, image=0, box=(0.5, 0.0, 1.0, 1.0))),)
    trace = replace(trace, tokens=replace(trace.tokens, views=views))
    data = data_of(build_page([[trace]], [0], images=[picture(0, 80, 40)]).html)
    assert [(p["width"], p["height"]) for p in data["pictures"]] == [(80, 40), (40, 40)]
    assert [p["label"] for p in data["pictures"]] == ["image", "image, tile 1"]


def test_different_records_are_not_compared(gaze):
    def record(question, **options):
        with gaze.recording(slices="all", **options) as made:
            gaze.ask([picture(1)], [question], max_new_tokens=2, eos_token_id=None)
        return made

    plain = record("What?")
    for other in (record("Which?"), record("What?", rows="text"), record("What?", layers=[1, 2])):
        with pytest.raises(BadParameterError, match="same tokens, rows and layers"):
            record_page(plain, other)
    assert [v["name"] for v in data_of(record_page(plain, record("What?")).html)["variants"]] == [
        "first",
        "second",
    ]


# Answers ------------------------------------------------------------------------------------------------


def test_plain_and_edited_say_the_same_tokens_and_differ_as_their_records_do(gaze, model):
    method = small_var()
    page = answer_page(gaze, picture(1), "Is there a dog in the image?", method, max_new_tokens=4)
    data = data_of(page.html)
    assert [v["name"] for v in data["variants"]] == ["plain", "var"]
    inputs = gaze.inputs([picture(1)], ["Is there a dog in the image?"])
    length = inputs["input_ids"].shape[1]
    with gaze.using(method):
        answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert (
        page.variants[1].answer
        == llava_processor().tokenizer.decode(answer[0, length:], skip_special_tokens=True).strip()
    )
    assert data["pieces"][length:] == [llava_processor().tokenizer.decode(t) for t in answer[0, length:]]
    heads = rows_of(data, "heads").reshape(2, 6, 6, len(data["rows"]), -1)
    shown = torch.cat([inputs["input_ids"], answer[:, length:-1]], 1)
    for variant, active in enumerate(((), (method,))):
        # One forward per step with the same tokens, which is what the page says that it shows.
        with gaze.using(*active), gaze.recording(slices="all", edited=bool(active)) as record:
            out = model(**inputs, use_cache=True)
            for token in shown[0, length:]:
                out = model(input_ids=token[None, None], past_key_values=out.past_key_values)
        expected = record[0].slices[:, 0]
        rows = [data["rows"].index(place) for place in record[0].row_position.tolist()]
        np.testing.assert_allclose(
            heads[variant][:, :, rows][..., : expected.shape[-1]], expected, rtol=1e-3, atol=2e-6
        )
    assert np.abs(heads[0] - heads[1]).max() > 0.01


def test_layers_recorded_in_groups_give_the_same_page(gaze, monkeypatch):
    def page():
        return answer_page(
            gaze, picture(1), "What?", HeadKnockout(heads=[(0, 1)]), layers=[0, 2, 5], max_new_tokens=3
        )

    together = page()
    monkeypatch.setattr("regaze.toolkit.viewer.capture._RECORD_BYTES", 1)
    assert page().html == together.html
    assert data_of(together.html)["layers"] == [0, 2, 5]


def test_text_models_and_rows(tmp_path):
    gaze = regaze.wrap(tiny_llama(), llava_processor().tokenizer)
    gaze.reader.tokenizer.chat_template = llava_processor().chat_template
    page = answer_page(gaze, None, "Is there a dog?", rows=5, max_new_tokens=3)
    data = data_of(page.html)
    assert (data["pictures"], data["columns"]) == ([], "all")
    answers = len(data["pieces"]) - data["prompt"]
    assert data["rows"] == list(range(data["prompt"] - 5, data["prompt"] - 1 + answers))


@pytest.mark.parametrize(
    ("module", "family", "labels"),
    [
        ("llava_like", "llava_next", ["image", "image, tile 1"]),  # tiles
        ("qwen", "qwen3_5", ["image"]),  # some layers without attention
        ("others", "idefics2", []),  # image tokens without places
    ],
)
def test_other_families(module, family, labels):
    model, processor = getattr(importlib.import_module(f"zoo.{module}"), family)()
    page = answer_page(
        regaze.wrap(model, processor), picture(1, 160, 100), "Is there a dog?", max_new_tokens=2
    )
    data = data_of(page.html)
    assert [shown["label"] for shown in data["pictures"]] == labels
    assert all(shown["source"] for shown in data["pictures"])
    assert "dog" in "".join(data["pieces"])
    places = [place for shown in data["pictures"] for place in shown["tokens"]]
    assert len(set(places)) == len(places)
    assert all(data["roleNames"][data["roles"][place]] == "image" for place in places)


def test_encoder_decoders_are_refused():
    model, processor = importlib.import_module("zoo.cross_attention").florence2()
    with pytest.raises(UnsupportedModelError, match="has an encoder and a decoder"):
        answer_page(regaze.wrap(model, processor), picture(1), "What?")


def test_a_number_of_rows_is_recorded_from_the_end_of_each_prompt(gaze):
    with gaze.recording(slices="all", rows=4) as record:
        gaze.ask(
            [picture(1), picture(2)],
            ["Is there a dog in the image?", "What?"],
            max_new_tokens=2,
            eos_token_id=None,
        )
    length = record[0].tokens.length
    assert record[0].row_position.tolist() == list(range(length - 4, length + 1))
    for bad in (0, True):
        with pytest.raises(RecordingError, match="or a number"), gaze.recording(rows=bad):
            pass


def test_view_writes_a_page_and_prints_the_answer(tmp_path):
    def view(*arguments):
        return CliRunner().invoke(app, ["view", *arguments, "--max-new-tokens", "4"])

    done = view(
        "scene_012,scene_000",
        "Is there a <b>dog</b>?",
        "--method",
        "var",
        "-o",
        str(tmp_path / "a/page.html"),
    )
    assert done.exit_code == 0, done.stderr
    data = data_of((tmp_path / "a/page.html").read_text(encoding="utf-8"))
    assert data["title"] == "Is there a <b>dog</b>?"
    assert done.stdout.strip() == data["variants"][1]["answer"]
    assert len(data["pictures"]) == 2
    assert str(tmp_path / "a/page.html") in done.stderr
    for arguments, message in (
        (("scene_012", "?", "-o", str(tmp_path / "page.png")), "expected a name that ends in .html, .htm"),
        (("scene_012,nothing", "?"), "image nothing does not exist"),
        (("scene_012", "?", "--layers", "9"), "layers [9] do not exist"),
        (("scene_012", "?", "--method", "carve"), "answers in several passes"),
    ):
        refused = view(*arguments)
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_evaluate_links_what_went_wrong_to_pages(tmp_path):
    arguments = ["evaluate", "pope", "--split", "adversarial", "--limit", "12", "--max-new-tokens", "3"]
    method = ["--method", "knockout", "--set", "heads=[[0,0],[0,3]]"]
    done = CliRunner().invoke(app, [*arguments, *method, "--html", "2", "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    assert "failures.html" in done.stderr
    assert "](failures.html)" in (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert 'href="failures.html"' in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    index = (tmp_path / "out/failures.html").read_text(encoding="utf-8")
    assert index.count('<img src="data:image/jpeg;base64,') == index.count("<br>adversarial") == 2
    links = re.findall(r'<a href="([^"]+)">knockout</a>', index)
    assert len(links) == 2
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    for link in links:
        data = data_of((tmp_path / "out" / link).read_text(encoding="utf-8"))
        plain, edited = (variant["answer"] for variant in data["variants"])
        assert plain != edited  # those that the method changed come first
        found = [
            (a["condition"], a["answer"]) for a in answers if " ".join(a["prompt"].split()) == data["title"]
        ]
        assert {("plain", plain), ("knockout", edited)} <= set(found)
    assert "html" not in (tmp_path / "out/run.yaml").read_text(encoding="utf-8")
