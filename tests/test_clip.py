"""CLIP: tokenizer, token states, embeddings, the contrastive loss, judging, loading and training."""

import copy
import itertools
import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizerFast

from mmgen.base.images import to_float
from mmgen.base.schema import WeightsError
from mmgen.base.weights import resolve
from mmgen.clip.model import CLIP, build_clip, similarity_figure, train_tokenizer
from mmgen.clip.opening import FolderTokenizer, clip_config, clip_tokenizer_of
from mmgen.clip.train import ClaimBatches, CLIPTask, contrastive_loss, tokenizer_texts
from mmgen.clip.zero_shot import attribute_prompts, describe_image, retrieval, zero_shot
from mmgen.data.captions import CutWarning, caption
from mmgen.data.portraits import render, sample, seeds, tags

TINY = dict(
    patch=16, embed_dim=32, text_width=32, text_layers=1, text_heads=2, vision_width=32, vision_layers=1, vision_heads=2
)


@pytest.fixture(scope="module")
def rows():
    return [tags(sample(seed)) for seed in range(48)]


@pytest.fixture(scope="module")
def pixels():
    return np.stack([render(sample(seed)) for seed in range(48)])


@pytest.fixture(scope="module")
def tokenizer(rows):
    return train_tokenizer(tokenizer_texts(rows), 900)


@pytest.fixture
def clip(tokenizer):
    torch.manual_seed(0)
    return CLIP(build_clip(tokenizer, **TINY), tokenizer, "cpu")


def test_tokenizer_knows_words_and_every_byte(tokenizer):
    assert tokenizer.tokenize("Green  HAIR") == ["green</w>", "hair</w>"]
    odd = "naïve ✿ 漢字 \U0001f600"
    ids = tokenizer(odd).input_ids
    assert ids.count(tokenizer.eos_token_id) == 1 and tokenizer.decode(ids, skip_special_tokens=True) == odd
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.bos_token_id == len(tokenizer) - 2 and len(tokenizer) <= 900


def test_tokenizer_is_the_same_each_time_and_opens_from_a_folder(rows, tokenizer, tmp_path):
    assert train_tokenizer(tokenizer_texts(rows), 900).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    for kind in (AutoTokenizer, CLIPTokenizerFast):
        assert kind.from_pretrained(tmp_path)("she wears glasses").input_ids == tokenizer("she wears glasses").input_ids


ODD = [
    *("", " ", "\t\n", "a", "'s 'T they're", "Green  HAIR,\u00a0long\u3000hair", "naïve ✿ 漢字 \U0001f600", "1234 ½ ²"),
    *(
        "<|endoftext|>",
        "a <|startoftext|> b<|ENDOFTEXT|>c",
        "</w> ha</w>",
        "e\u0301 é İ ı ﬁ ß ẞ",
        "\x00\x07\x1b",
        "؟ عربي",
    ),
    *("\u200d🏳️‍🌈👩‍👩‍👧", "…—“”’", "_under_ 1girl, :d", "long hair, " * 60, "✿" * 120, "\ufeffbom", "\ufffd\U0010ffff"),
]


def random_texts(number, seed=0):
    rng = random.Random(seed)
    letters = lambda: rng.choice([chr(rng.randrange(32, 127)), " ", chr(rng.randrange(1, 0xD800)), "hair ", "'re"])
    return ["".join(letters() for _ in range(rng.randrange(60))) for _ in range(number)]


@pytest.mark.parametrize("source", ["packaged", "trained"])
def test_the_tokenizer_of_a_folder_equals_that_of_transformers(source, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    folder = resolve("clip-portraits") if source == "packaged" else tmp_path
    ours, theirs = clip_tokenizer_of(folder), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is FolderTokenizer and ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    texts = ODD + random_texts(150)
    names = ("padding", "truncation", "return_offsets_mapping", "add_special_tokens")
    for length, *values in itertools.product((2, 77), (False, "max_length"), *[(False, True)] * 3):
        options = dict(zip(names, values)) | ({"max_length": length} if values[0] or values[1] else {})
        assert ours(texts, **options) == dict(theirs(texts, **options)), options
    options = dict(padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    for batch in (texts, "long hair"):
        coded, expected = ours(batch, **options), theirs(batch, **options)
        assert coded.keys() == expected.keys() and all(torch.equal(coded[k], expected[k]) for k in expected)
    assert [ours(text, max_length=9, truncation=True) for text in ODD] == [
        dict(theirs(text, max_length=9, truncation=True)) for text in ODD
    ]
    for name in ("eos_token_id", "bos_token_id", "pad_token_id", "eos_token", "model_max_length", "all_special_ids"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours(["smile", "a b"], padding=True) == theirs(["smile", "a b"], padding=True)  # not one of our calls
    with pytest.raises(AttributeError):
        ours.pad_token = "!"
    for same in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(same) is FolderTokenizer and same(ODD) == ours(ODD)


@pytest.mark.parametrize(
    "file, field, value",
    [
        ("tokenizer_config.json", "pad_token", "<|startoftext|>"),
        ("tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast"),
        ("tokenizer.json", "normalizer", None),
        ("tokenizer.json", "added_tokens", []),
    ],
)
def test_other_tokenizers_are_left_to_transformers(file, field, value, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(fields | {field: value}))
    opened, expected = clip_tokenizer_of(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(opened) is type(expected) and opened(ODD).input_ids == expected(ODD).input_ids


def test_the_configuration_of_a_folder_is_that_of_transformers():
    fields = json.loads((resolve("clip-portraits") / "config.json").read_text())
    ours, theirs = clip_config(fields), type(clip_config({}))(**fields)
    assert type(ours) is not type(theirs) and ours.to_dict() == theirs.to_dict()
    for part in ("text_config", "vision_config"):
        assert getattr(ours, part).to_dict() == getattr(theirs, part).to_dict()
        assert getattr(ours, part).attention_dropout == 0
        assert copy.deepcopy(getattr(ours, part)).to_dict() == getattr(theirs, part).to_dict()
    assert pickle.loads(pickle.dumps(ours)).text_config.model_type == "clip_text_model"
    with pytest.raises(AttributeError, match="read-only"):
        ours.projection_dim = 3
    with pytest.raises(AttributeError, match="no_field"):
        ours.no_field
    assert type(clip_config({key: fields[key] for key in ("text_config", "projection_dim")})) is type(theirs)


def test_the_packaged_clip_opens_without_transformers():
    code = """import sys; from mmgen.clip.model import CLIP; clip = CLIP.load("clip-portraits", "cpu")
assert clip.text(["smile"]).shape == (1, 128) and clip.states("a " * 99).shape == (1, 77, 128)
assert "transformers" not in sys.modules"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_vocabulary_must_hold_the_bytes():
    with pytest.raises(ValueError, match="514"):
        train_tokenizer(["smile"], 300)


def test_states_are_those_of_all_tokens(clip):
    ids, mask = clip.tokenize(["smile", "green hair, long hair"])
    assert ids.shape == (2, 77) and mask.sum(1).tolist() == [3, 7]
    states = clip.states(["smile", "green hair, long hair"])
    assert states.shape == (2, 77, clip.width)
    assert torch.equal(states, clip.model.text_model(input_ids=ids).last_hidden_state)
    assert states[1].std(0).min() > 0


def test_text_equals_transformers_own(clip):
    ids, mask = clip.tokenize(["smile", "green hair"])
    own = clip.model.get_text_features(input_ids=ids, attention_mask=mask)
    own = F.normalize(getattr(own, "pooler_output", own), dim=-1)
    assert torch.allclose(clip.text(["smile", "green hair"]), own, atol=1e-6)


def test_pooling_reads_the_text(clip):
    a, b = clip.text(["green hair", "blue hair"])
    assert (a - b).abs().max() > 1e-4
    wrong = build_clip(clip.tokenizer, **TINY)
    wrong.config.text_config.eos_token_id = 49407
    with pytest.raises(ValueError, match="pools the token 49407"):
        CLIP(wrong, clip.tokenizer, "cpu")


def test_empty_long_and_wrong_prompts(clip):
    assert clip.states("").shape == (1, 77, clip.width)
    assert clip.text([""]).norm().item() == pytest.approx(1, abs=1e-5)
    with pytest.warns(CutWarning, match="text encoder reads 77; it ignores"):
        long = clip.states("green hair " * 250)
    assert long.shape == (1, 77, clip.width) and torch.isfinite(long).all()
    with pytest.raises(TypeError, match="number 1 is of type NoneType"):
        clip.text(["smile", None])


def test_images_any_size_and_gradients(clip):
    for shape in ((2, 3, 64, 64), (1, 3, 256, 256), (1, 3, 90, 40), (1, 3, 1, 1)):
        assert clip.images(torch.rand(shape) * 2 - 1).norm(dim=-1).allclose(torch.ones(shape[0]), atol=1e-5)
    x = torch.zeros(1, 3, 100, 100, requires_grad=True)
    clip.similarity(x, "smile").sum().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="float images"):
        clip.images(torch.zeros(1, 64, 64, 3))


def test_preprocessing_is_clips(clip):
    from transformers import CLIPImageProcessor

    image = render(sample(3)).copy()
    own = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)(image, return_tensors="pt").pixel_values
    assert torch.allclose(clip.preprocess(to_float(image)), own, atol=1e-5)


def test_similarity_is_the_cosine(clip, pixels):
    x = to_float(pixels[:3])
    cosine = clip.similarity(x, ["smile", "green hair"])
    assert cosine.shape == (3, 2) and cosine.abs().max() <= 1 + 1e-5
    assert torch.allclose(cosine[1, 0], F.cosine_similarity(clip.images(x[1:2]), clip.text("smile"))[0], atol=1e-6)


def test_loss_is_infonce_where_each_text_is_true_of_one_image():
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(7, 8), dim=1) for _ in range(2))
    own = torch.arange(7)
    expected = (F.cross_entropy(20 * a @ b.T, own) + F.cross_entropy(20 * b @ a.T, own)) / 2
    assert torch.allclose(contrastive_loss(a, b, 20.0), expected, atol=1e-5)


def test_a_true_text_is_no_wrong_answer():
    a = torch.eye(4)
    same = torch.eye(4)[[0, 0, 2, 3]]
    true = torch.eye(4, dtype=torch.bool)
    assert contrastive_loss(a[[0, 0, 2, 3]], same, 100.0, true) > 0.1
    true[0, 1] = true[1, 0] = True
    assert contrastive_loss(a[[0, 0, 2, 3]], same, 100.0, true) < 1e-6
    texts = torch.randn(4, 4, requires_grad=True)
    contrastive_loss(a, texts, 100.0, torch.ones(4, 4, dtype=torch.bool)).backward()
    assert torch.equal(texts.grad, torch.zeros(4, 4))


def test_batches_are_a_function_of_the_step(rows, pixels, tokenizer):
    first, second = (ClaimBatches(pixels, rows, tokenizer, 16, seed=5) for _ in range(2))
    second.batch(0)
    one, other = first.batch(2), second.batch(2)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert one["image"].dtype == torch.uint8 and one["full"].shape[0] == 16 and one["full"].shape[1] <= 77
    assert not torch.equal(one["index"], first.batch(3)["index"])


def test_batches_know_what_is_true(pixels, tokenizer):
    rows = [["green hair"]] * 24 + [["blue hair"]] * 24
    batch = ClaimBatches(pixels, rows, tokenizer, 48, dropout=0.0).batch(0)
    green = batch["index"] < 24
    assert torch.equal(batch["full_true"], green[:, None] == green[None])
    assert torch.equal(batch["short_true"], green[:, None] == green[None])


def test_captions_in_place_of_tags(pixels, tokenizer):
    batch = ClaimBatches(pixels, ["a red car, night"] * 48, tokenizer, 8).batch(0)
    assert batch["full_true"].diagonal().all()


def test_training_lowers_the_loss(rows, pixels, tokenizer):
    torch.manual_seed(0)
    wider = TINY | dict(text_width=64, vision_width=64)
    task, data = CLIPTask(build_clip(tokenizer, **wider)), ClaimBatches(pixels, rows, tokenizer, 48)
    optimizer, losses = task.optimizers(1e-3, 0.1)["main"], []
    for step in range(50):
        loss, values = task.loss(data.batch(step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(values["full"].item())
    assert np.mean(losses[-5:]) < 0.75 * losses[0]
    assert all(torch.isfinite(p).all() for p in task.model.parameters())


def test_only_matrices_decay(tokenizer):
    task = CLIPTask(build_clip(tokenizer, **TINY), optimizer="adamw")
    decayed, others = task.optimizers(1e-3, 0.1)["main"].param_groups
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert any(p is task.model.logit_scale for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(task.model.parameters()))


class Perfect:
    "Embeds a text by the colours in it and an image by the number in its first pixel."

    colors = attribute_prompts()["hair_color"]

    def images(self, x):
        return F.one_hot(((x[:, 0, 0, 0] + 1) * 127.5).round().long(), len(self.colors)).float()

    def text(self, texts):
        return torch.tensor([[float(color in text) for color in self.colors] for text in texts])


def test_judging_with_known_answers():
    count = len(Perfect.colors)
    images = np.zeros((count, 4, 4, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    rows = [[color] for color in Perfect.colors]
    assert zero_shot(Perfect(), images, rows)["hair_color"] == {
        "accuracy": 1.0,
        "chance": pytest.approx(1 / count),
        "n": count,
    }
    shifted = rows[1:] + rows[:1]
    assert zero_shot(Perfect(), images, shifted)["hair_color"]["accuracy"] == 0
    found = retrieval(Perfect(), images, [row[0] for row in rows], ways=5)
    assert found == {"image_to_caption": 1.0, "caption_to_image": 1.0, "n": 10, "ways": 5}
    assert retrieval(Perfect(), images, [row[0] for row in shifted], ways=count)["image_to_caption"] == 0
    with pytest.raises(ValueError, match="as many images"):
        retrieval(Perfect(), images, [row[0] for row in rows])


def test_an_image_is_described_by_the_nearest_texts():
    image = np.full((8, 8, 3), 2, dtype=np.uint8)
    assert describe_image(Perfect(), image, {"hair_color": Perfect.colors}) == Perfect.colors[2]
    assert describe_image(Perfect(), image, {"hair_color": Perfect.colors, "glasses": [""]}) == Perfect.colors[2]


def test_portraits_are_described_tag_by_tag():
    clip, right, read, true = CLIP.load("clip-portraits"), 0, 0, 0
    for seed in seeds(8, "validation"):
        face = sample(seed)
        described, exact = set(describe_image(clip, render(face)).split(", ")), set(tags(face))
        right, read, true = right + len(described & exact), read + len(described), true + len(exact)
    assert right / read > 0.75 and right / true > 0.75


def test_figure_1(clip, pixels, rows):
    texts = [caption(row) for row in rows[:3]]
    figure = similarity_figure(clip.similarity(to_float(pixels[:3]), texts), pixels[:3], texts)
    assert len(figure.axes[0].texts) == 9 and len(figure.axes[0].patches) == 3


def test_saved_folder_opens_everywhere(clip, pixels, tmp_path):
    clip.save(tmp_path, "# card", {"run_id": "x"})
    assert {
        "config.json",
        "model.safetensors",
        "README.md",
        "run.json",
        "tokenizer.json",
        "preprocessor_config.json",
    } <= {p.name for p in tmp_path.iterdir()}
    again = CLIP.load(tmp_path, "cpu")
    x, texts = to_float(pixels[:2]), ["green hair", "she smiles"]
    assert torch.allclose(again.similarity(x, texts), clip.similarity(x, texts), atol=5e-3)
    assert next(again.model.parameters()).dtype == torch.float32
    own = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32)
    ids, _ = again.tokenize(texts)
    assert torch.equal(own.eval().text_model(input_ids=ids).last_hidden_state, again.states(texts))
    assert AutoTokenizer.from_pretrained(tmp_path)("smile").input_ids == clip.tokenizer("smile").input_ids


def test_wrong_folders_are_refused(clip, tmp_path):
    with pytest.raises(WeightsError, match="not a CLIP model"):
        CLIP.load(tmp_path, "cpu")
    clip.save(tmp_path, "# card")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="missing"):
        CLIP.load(tmp_path, "cpu")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError):
        CLIP.load(tmp_path, "cpu")


def test_train_clip_smoke(tmp_path, monkeypatch):
    from mmgen.base.runs import Run, load_run
    from mmgen.clip.train import fit
    from mmgen.data import portrait_sets
    from mmgen.jobs.registry import config_for

    make = portrait_sets.dataset
    monkeypatch.setattr(portrait_sets, "dataset", lambda *a, **k: make(*a, **k, root=tmp_path / "data"))
    config = config_for("clip", "smoke", vocabulary=600, device="cpu")
    with Run("clip", config, root=tmp_path / "runs") as run:
        clip, results = fit(config, run)
    assert "zero-shot hair_color" in results and "image_to_caption top-1 of 32" in results
    assert CLIP.load(run.path / "clip-portraits", "cpu").width == config.text_width
    record = load_run(run.path)
    assert record["status"] == "completed" and record["figures"] and len(record["artifacts"]) >= 6
