"""LoRA files and textual inversions on small random models of Stable Diffusion's layout, beside diffusers and peft."""

import json

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_opening import DDIM, pipeline
from test_pretrained import text_tower, unet

import mmgen
from mmgen.app.workbench import Workbench
from mmgen.base.schema import WeightsError
from mmgen.clip.model import train_tokenizer
from mmgen.data import portraits
from mmgen.editing.protocol import EditError
from mmgen.ldm.open import open_pipeline
from mmgen.ldm.pipeline import random_pipeline
from mmgen.ldm.published.lora import layers_of, merge_lora
from mmgen.ldm.published.stable_diffusion import stable_diffusion
from mmgen.ldm.published.textual_inversion import add_words


def words():
    return train_tokenizer(["green hair, blue eyes", "a photo of a face"], 520)


@pytest.fixture(scope="module", params=[1])
def model(request, tmp_path_factory):
    "A folder of diffusers with a model of version 1.x (8 heads, convolutions around attention) or 2.x."
    root, version = tmp_path_factory.mktemp(f"sd{request.param}"), request.param
    tower = text_tower(words(), 16 if version == 1 else 24)
    network = unet(version=version)
    scheduler = diffusers.DDIMScheduler(**DDIM | {"_class_name": None})
    pipeline(words(), tower, network, scheduler, diffusers.StableDiffusionPipeline).save_pretrained(root / "folder")
    return root / "folder"


def opened(model):
    return stable_diffusion(model, device="cpu")


def theirs_of(model):
    return diffusers.StableDiffusionPipeline.from_pretrained(model)


def lora(model, form, rank=3, alpha=2.0, convolutions=False, seed=0):
    "A LoRA for the attention of both networks (and all convolutions), its file's metadata."
    generator, state, ours = torch.Generator().manual_seed(seed), {}, opened(model)
    networks = {"unet": ours.unet, "text_encoder": ours.text_encoder.model}
    for prefix, network in networks.items():
        for name, module in network.named_modules():
            linear = isinstance(module, torch.nn.Linear) and ("attn" in name or ".ff." in name or ".mlp." in name)
            convolution = isinstance(module, torch.nn.Conv2d) and convolutions and ".proj_" not in name
            if not (linear or convolution or ".proj_" in name):
                continue
            out, inputs, *kernel = module.weight.shape
            down = torch.randn(rank, inputs, *kernel, generator=generator) * 0.3
            up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator) * 0.3
            if form == "kohya":
                layer = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[prefix] + name.replace(".", "_")
                state |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
                state[f"{layer}.alpha"] = torch.tensor(alpha)
            elif form == "peft":
                state |= {f"{prefix}.{name}.lora_A.weight": down, f"{prefix}.{name}.lora_B.weight": up}
            elif form == "diffusers":
                middle = "lora" if prefix == "unet" else "lora_linear_layer"
                state |= {f"{prefix}.{name}.{middle}.down.weight": down, f"{prefix}.{name}.{middle}.up.weight": up}
    return state


def old_names(state):
    "The names of diffusers until 2023: of attention alone."
    renamed = {}
    for key, value in state.items():
        layer, part = key.split(".lora.") if ".lora." in key else key.split(".lora_linear_layer.")
        block, _, last = layer.rpartition(".attn1.") if ".attn1." in layer else layer.rpartition(".attn2.")
        attention = ".attn1" if ".attn1." in layer else ".attn2"
        if block:
            renamed[f"{block}{attention}.processor.{last.removesuffix('.0')}_lora.{part}"] = value
        elif ".self_attn." in layer:
            block, _, last = layer.rpartition(".")
            new = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}[last]
            renamed[f"{block}.{new}_lora.{part}"] = value
    return renamed


def check_equal(model, file, weight):
    "Both networks of ours after `merge_lora`, beside those of diffusers after load_lora_weights and fuse_lora."
    pytest.importorskip("peft")
    theirs, ours = theirs_of(model), opened(model)
    before = {name: module.weight.clone() for name, module in layers_of(ours).items()}
    changed = merge_lora(ours, file, weight)
    theirs.load_lora_weights(str(file.parent), weight_name=file.name)
    theirs.fuse_lora(lora_scale=weight)
    theirs.unload_lora_weights()
    after = {name: module.weight for name, module in layers_of(ours).items()}
    different = [name for name, weight in after.items() if not torch.equal(weight, before[name])]
    assert len(different) == changed > 20
    for ours_of, theirs_of_it, prefix in (
        (ours.unet, theirs.unet, ""),
        (ours.text_encoder.model, theirs.text_encoder, "text_model."),
    ):
        expected = theirs_of_it.state_dict()
        for name, value in ours_of.state_dict().items():
            own = name if name in expected else name.removeprefix(prefix)
            if own in expected:
                assert torch.allclose(value, expected[own], atol=2e-6), name
    return theirs, ours


@pytest.mark.parametrize(
    "model, form", [(1, "kohya"), (1, "peft"), (1, "diffusers"), (1, "old"), (2, "kohya")], indirect=["model"]
)
def test_a_lora_gives_the_weights_that_diffusers_fuses(model, form, tmp_path):
    state = old_names(lora(model, "diffusers")) if form == "old" else lora(model, form)
    save_file(state, tmp_path / "style.safetensors")
    theirs, ours = check_equal(model, tmp_path / "style.safetensors", 0.7)
    z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor(500.0)
    states = ours.text_encoder.states(["green hair"])
    with torch.no_grad():
        ids = theirs.tokenizer(["green hair"], padding="max_length", return_tensors="pt").input_ids
        expected = theirs.text_encoder(ids)[0]
        assert torch.allclose(states, expected, atol=1e-4)
        difference = ours.unet(z, t, states) - theirs.unet(z, t, encoder_hidden_states=expected).sample
    assert difference.abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("model, form", [(1, "kohya"), (2, "peft")], indirect=["model"])
def test_convolutions_change_too(model, form, tmp_path):
    save_file(lora(model, form, convolutions=True), tmp_path / "locon.safetensors")
    check_equal(model, tmp_path / "locon.safetensors", 1.0)


def test_the_configuration_of_peft_gives_alpha(model, tmp_path):
    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["to_q"], "alpha_pattern": {}, "rank_pattern": {}}
    notes = {f"{part}.{key}": value for part in ("unet", "text_encoder") for key, value in settings.items()}
    state = {key: value for key, value in lora(model, "peft").items() if key.startswith("unet.") and ".to_q." in key}
    notes = {key: value for key, value in notes.items() if key.startswith("unet.")}
    save_file(state, tmp_path / "a.safetensors", {"format": "pt", "lora_adapter_metadata": json.dumps(notes)})
    plain, doubled = opened(model), opened(model)
    save_file(state, tmp_path / "b.safetensors")
    merge_lora(doubled, tmp_path / "a.safetensors")
    merge_lora(plain, tmp_path / "b.safetensors", 2.0)  # without alpha: the rank
    for a, b in zip(plain.unet.parameters(), doubled.unet.parameters()):
        assert torch.allclose(a, b, atol=1e-6)
    folder = tmp_path / "peft"  # as peft itself writes it
    folder.mkdir()
    own = {key.replace("unet.", "base_model.model.", 1): value for key, value in state.items()}
    save_file(own, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6}))
    third = opened(model)
    merge_lora(third, folder)
    assert torch.equal(third.unet.conv_in.weight, doubled.unet.conv_in.weight)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(third.unet.parameters(), doubled.unet.parameters()))


def test_a_middle_of_lycoris_is_a_convolution_between_two(tmp_path):
    generator, p = torch.Generator().manual_seed(0), random_pipeline()
    down, mid, up = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 1, 1), (2, 2, 3, 3), (16, 2, 1, 1)))
    name, layer = "lora_unet_conv_in", p.unet.conv_in
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    save_file({f"{name}.{part}": value for part, value in parts.items()}, tmp_path / "mid.safetensors")
    x = torch.randn(1, 4, 8, 8, generator=generator)
    conv = torch.nn.functional.conv2d
    expected = layer(x) + conv(conv(conv(x, down), mid, padding=1), up)
    merge_lora(p, tmp_path / "mid.safetensors")
    assert torch.allclose(layer(x), expected, atol=1e-4)


def test_weights_add_up_and_zero_changes_nothing(model, tmp_path):
    for seed, name in enumerate(("a", "b")):
        save_file(lora(model, "kohya", seed=seed), tmp_path / f"{name}.safetensors")
    both = [f"{tmp_path}/a.safetensors:0.5", f"{tmp_path}/b.safetensors:-0.25"]
    first, second = open_pipeline(model, "cpu", lora=both), open_pipeline(model, "cpu", lora=", ".join(both[::-1]))
    plain, none = open_pipeline(model, "cpu"), open_pipeline(model, "cpu", lora=f"{tmp_path}/a.safetensors:0")
    for a, b, c, d in zip(*(p.unet.parameters() for p in (first, second, plain, none))):
        assert torch.allclose(a, b, atol=1e-5) and torch.equal(c, d)
    half = open_pipeline(model, "cpu", lora=both, precision="bf16")
    weight = half.unet.mid_block.attentions[0].proj_in.weight
    assert weight.dtype == torch.bfloat16
    exact = first.unet.mid_block.attentions[0].proj_in.weight
    assert (weight.float() - exact).abs().max() < 0.02 * exact.abs().max()


# bad input

UP, DOWN = torch.ones(16, 2), torch.ones(2, 16)
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OK = {f"unet.{Q}.lora_A.weight": DOWN, f"unet.{Q}.lora_B.weight": UP}
KOHYA = "lora_unet_" + Q.replace(".", "_")
REFUSED = {
    "LoHa": ({f"{KOHYA}.hada_w1_a": UP}, "by LoHa .*only LoRA and LoCon"),
    "LoKr": ({f"{KOHYA}.lokr_w1": UP}, "by LoKr"),
    "DoRA": ({f"{KOHYA}.dora_scale": UP, f"{KOHYA}.lora_up.weight": UP, f"{KOHYA}.lora_down.weight": DOWN}, "by DoRA"),
    "DoRA of peft": (OK | {f"unet.{Q}.lora_magnitude_vector": UP}, "by DoRA"),
    "OFT": ({f"{KOHYA}.oft_blocks": UP}, "by OFT"),
    "IA3": ({f"{KOHYA}.weight": UP, f"{KOHYA}.on_input": UP}, r"by \(IA\)³"),
    "full": ({f"{KOHYA}.diff": UP}, "whole differences"),
    "SDXL of kohya": (
        {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": DOWN, "lora_te2_x.lora_down.weight": DOWN},
        "LoRA of Stable Diffusion XL; this model is",
    ),
    "SDXL of diffusers": (
        {k.replace("blocks.0.attn1", "blocks.7.attn1"): v for k, v in OK.items()},
        "LoRA of Stable Diffusion XL",
    ),
    "SD 3": ({"transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight": DOWN}, "LoRA of Stable Diffusion 3"),
    "Flux of kohya": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": DOWN}, "LoRA of Flux"),
    "Flux of diffusers": ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": DOWN}, "LoRA of Flux"),
    "other": ({"unet.nowhere.lora_A.weight": DOWN}, "another architecture: this model lacks 1 of its 1 layers"),
    "text encoder": (
        {"lora_te_text_model_encoder_layers_11_mlp_fc1.lora_down.weight": DOWN},
        "layers of a text encoder that this model's has not",
    ),
    "version": (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": torch.ones(2, 1024)},
        "of another version: it reads text states of width 1024, and this model reads 16",
    ),
    "one half": ({f"unet.{Q}.lora_A.weight": DOWN}, "has no up weight"),
    "alpha alone": ({f"{KOHYA}.alpha": torch.tensor(1.0)}, "no down and no up weight"),
    "ranks": ({**OK, f"unet.{Q}.lora_B.weight": torch.ones(16, 3)}, "have no rank in common"),
    "shape": ({**OK, f"unet.{Q}.lora_B.weight": torch.ones(9, 2)}, r"do not fit the layer, \(16, 16\)"),
    "one axis": ({**OK, f"unet.{Q}.lora_B.weight": torch.ones(16)}, "have no rank in common"),
    "alphas": (OK | {f"{KOHYA}.alpha": torch.ones(2)}, "alpha has 2 numbers"),
    "not a number": ({**OK, f"unet.{Q}.lora_B.weight": UP * torch.nan}, "not finite"),
    "infinite alpha": (OK | {f"{KOHYA}.alpha": torch.tensor(torch.inf)}, "not finite"),
    "strange": (OK | {"bias_of_something": UP}, "no LoRA of Stable Diffusion: it has bias_of_something"),
    "8 bits": ({f"unet.{Q}.lora_A.weight": DOWN.to(torch.int8)}, "8 bits or fewer"),
    "embedding": ({"emb_params": UP}, "a textual inversion.*embedding="),
    "model": ({"conv_in.weight": torch.ones(8, 4, 3, 3)}, "no LoRA of Stable Diffusion: it has conv_in.weight"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_what_is_no_lora_for_this_model_is_one_sentence(name, ending, tmp_path):
    state, message = REFUSED[name]
    file, p = tmp_path / f"mine.{ending}", random_pipeline()
    state = {key: value.clone() for key, value in state.items()}
    save_file(state, file) if ending == "safetensors" else torch.save(state, file)
    before = [weight.clone() for weight in p.unet.parameters()]
    with pytest.raises(WeightsError, match=f"mine.{ending}.*{message}") as raised:
        merge_lora(p, file)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 320
    assert all(torch.equal(a, b) for a, b in zip(p.unet.parameters(), before))


def test_weights_and_paths_of_options(tmp_path, monkeypatch):
    save_file(OK, tmp_path / "a.safetensors")
    for given, message in (
        ("nothing.safetensors", "There is no LoRA 'nothing.safetensors'"),
        (f"{tmp_path}/a.safetensors:much", "weight of a.safetensors is 'much'"),
        (f"{tmp_path}/a.safetensors:nan", "weight of a.safetensors is 'nan'"),
        ([f"{tmp_path}/b.safetensors:1"], "There is no LoRA"),
    ):
        with pytest.raises(WeightsError, match=message):
            mmgen.editor("sdedit", "cpu", lora=given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="The folder empty has no LoRA files"):
        mmgen.editor("sdedit", "cpu", lora=tmp_path / "empty")
    with pytest.raises(WeightsError, match="this model is to run on the CPU"):
        mmgen.editor("sdedit", "cpu", offload="model")
    file = tmp_path / "evil.bin"
    file.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    monkeypatch.chdir(tmp_path)
    for option in ("lora", "embedding"):
        with pytest.raises(WeightsError, match="evil.bin was not opened"):
            mmgen.editor("sdedit", "cpu", **{option: str(file)})
    assert not (tmp_path / "pwned").exists()


# textual inversions


@pytest.mark.parametrize(
    "model, form, n",
    [
        (1, "webui.pt", 3),
        (1, "webui.safetensors", 3),
        (1, "learned_embeds.bin", 1),
        (1, "learned_embeds.safetensors", 3),
        (2, "webui.pt", 1),
    ],
    indirect=["model"],
)
def test_a_textual_inversion_gives_the_states_of_diffusers(model, form, n, tmp_path):
    theirs, ours, file = theirs_of(model), opened(model), tmp_path / form
    vectors = torch.randn(n, ours.text_encoder.width, generator=torch.Generator().manual_seed(0))
    content = {"<toy>": vectors if n > 1 else vectors[0]}
    if form == "webui.pt":
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "<toy>", "step": 9}
    if form == "webui.safetensors":
        content = {"emb_params": vectors}
    save_file(content, file) if form.endswith("safetensors") else torch.save(content, file)
    theirs.load_textual_inversion(str(tmp_path), weight_name=form, token="<toy>")
    assert add_words(ours.text_encoder, file, "<toy>" if form == "webui.safetensors" else "") == ["<toy>"]
    for text in ("a photo of a <toy>, green hair", "green hair", "<toy>"):
        prompt = theirs.maybe_convert_prompt(text, theirs.tokenizer)
        ids = theirs.tokenizer([prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            expected = theirs.text_encoder(ids.input_ids)[0]
        assert torch.equal(ours.text_encoder.tokenize([text])[0], ids.input_ids)
        assert torch.allclose(ours.text_encoder.states([text]), expected, atol=1e-5)


def test_a_word_is_no_part_of_another_word(tmp_path):
    encoder = random_pipeline().text_encoder
    save_file({"emb_params": torch.ones(2, 16)}, tmp_path / "air.safetensors")
    before = encoder.tokenize(["green hair, smile"])[0]
    assert add_words(encoder, tmp_path / "air.safetensors") == ["air"]
    assert torch.equal(encoder.tokenize(["green hair, smile"])[0], before)
    added = set(encoder.tokenizer.convert_tokens_to_ids(["air", "air_1"]))
    assert added <= set(encoder.tokenize(["green Air, smile"])[0][0].tolist())


TI = {
    "width": ({"<a>": torch.ones(768)}, "for a text encoder of width 768, and this model's has 16"),
    "long": ({"<a>": torch.ones(76, 16)}, "has 76 vectors, and a prompt has room for 75"),
    "xl": ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, "of Stable Diffusion XL"),
    "blank": ({"green hair": torch.ones(16)}, "has blanks"),
    "known": ({"g": torch.ones(16)}, "already knows 'g'"),
    "lora": (OK, "holds a LoRA.*lora="),
    "model": ({"conv_in.weight": torch.ones(8, 4, 3, 3)}, "is no textual inversion"),
    "cube": ({"<a>": torch.ones(2, 2, 16)}, "is no textual inversion: it has <a>"),
    "not finite": ({"<a>": torch.full((16,), torch.nan)}, "not finite"),
}


@pytest.mark.parametrize("name", TI)
def test_what_is_no_textual_inversion_for_this_model_is_one_sentence(name, tmp_path):
    state, message = TI[name]
    encoder = random_pipeline().text_encoder
    for ending in ("safetensors", "pt"):
        file = tmp_path / f"mine.{ending}"
        save_file(state, file) if ending == "safetensors" else torch.save(state, file)
        with pytest.raises(WeightsError, match=f"mine.{ending}.*{message}") as raised:
            add_words(encoder, file)
        assert "\n" not in str(raised.value) and len(encoder.tokenizer) == 520 and not encoder.words


# through the seam


def test_the_options_reach_commands_and_pages(model, tmp_path, capsys):
    from mmgen.app.cli import main

    save_file(lora(model, "kohya"), tmp_path / "style.safetensors")
    width = opened(model).text_encoder.width
    save_file({"<toy>": torch.ones(2, width)}, tmp_path / "toy.safetensors")
    Image.fromarray(portraits.render(portraits.sample(1), 40)).save(tmp_path / "in.png")
    options = ["--model", str(model), "--lora", f"{tmp_path}/style.safetensors:0.5", "--device", "cpu"]
    options += ["--embedding", f"{tmp_path}/toy.safetensors", "--steps", "1", "--editor", "sdedit"]
    results = []
    for extra in ([], ["--lora", f"{tmp_path}/style.safetensors:0.5"], ["--tile", "0", "--precision", "bf16"]):
        out = tmp_path / f"out{len(results)}.png"
        assert main(["edit", f"{tmp_path}/in.png", "a <toy>", "-o", str(out), *options, *extra]) == 0, (
            capsys.readouterr()
        )
        results.append(Image.open(out))
    assert "style.safetensors:0.5" in results[0].info["mmgen"] and "--embedding" in results[0].info["mmgen"]
    assert results[1].info["mmgen"].count("style.safetensors:0.5") == 2
    assert results[0].tobytes() != results[1].tobytes()
    bench = Workbench("cpu", "bf16", model=str(model), lora=f"{tmp_path}/style.safetensors")
    assert {p.dtype for p in bench.editor("sdedit").pipeline.text_encoder.model.parameters()} == {torch.bfloat16}
    merged = tmp_path / "merged"
    assert main(["export", str(model), "-o", str(merged), "--lora", f"{tmp_path}/style.safetensors"]) == 0
    again = stable_diffusion(merged, device="cpu").unet.conv_out.weight
    expected = open_pipeline(model, "cpu", lora=f"{tmp_path}/style.safetensors").unet.conv_out.weight
    assert torch.equal(again, expected)
    spec = f"sdedit:model={model}:lora={tmp_path}/style.safetensors:0.5:steps=1"
    editor = mmgen.editor(spec, "cpu")
    assert editor.steps == 1
    with pytest.raises(EditError, match="an open model takes no"):
        mmgen.editor("sdedit", "cpu", model=editor.pipeline, lora=f"{tmp_path}/style.safetensors")
