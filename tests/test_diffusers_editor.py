"""Pipelines of diffusers as Editors, on very small random networks."""

import json
import types

import diffusers
import huggingface_hub
import pytest
import torch
from PIL import Image
from tiny_diffusers import PIPELINES

import mmgen
from mmgen.base.schema import WeightsError
from mmgen.data.edited_captions import sentence_between
from mmgen.editing.protocol import EditError, Editor
from mmgen.ldm.published import diffusers_editor, diffusers_open
from mmgen.ldm.published.diffusers_editor import DiffusersEditor, image_of
from mmgen.ldm.published.diffusers_family import Dial, dial_of, editing_class, family_of, working_size
from mmgen.ldm.published.diffusers_open import part_bytes, random_diffusers

IMAGES = torch.rand(2, 3, 40, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
SOURCE, TARGET = ["blue hair, smile", "hat"], ["green hair, smile", "no hat"]
EXTRA = {
    "Flux2KleinPipeline": {"text_encoder_out_layers": (1,)},  # the published model has more layers
    "LEditsPPPipelineStableDiffusion": {"use_intersect_mask": False},  # needs maps that a UNet this small lacks
}
FAMILIES = {"LEditsPPPipelineStableDiffusion": "inversion"} | {
    name: "img2img" if "Img2Img" in name else "instruction" for name in PIPELINES if not name.startswith("LEdits")
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_an_editor_that_is_seeded_for_each_image(name):
    size = 96 if "Flux2" in name else 64  # FLUX.2 refuses sides below 64 pixels
    which = DiffusersEditor(PIPELINES[name](), "cpu", steps=2, size=size, arguments=EXTRA.get(name))
    assert isinstance(which, Editor) and which.family == FAMILIES[name] and which.about["pipeline"] == name
    assert which.instructs == (which.family == "instruction")
    before = IMAGES.clone()
    result = which.edit(IMAGES, SOURCE, TARGET, 0.6)
    assert result.shape == IMAGES.shape and result.dtype == torch.float32 and result.isfinite().all()
    assert result.abs().max() <= 1 and not torch.equal(result, IMAGES) and torch.equal(IMAGES, before)
    assert torch.equal(which.edit(IMAGES[1:], SOURCE[1:], TARGET[1:], 0.6), result[1:])  # twice, and without neighbours
    assert torch.equal(which.edit(IMAGES, SOURCE, TARGET, 0.0), IMAGES)
    assert len(which.costs) == 3 and all(cost.seconds > 0 and cost.memory_mib > 100 for cost in which.costs)
    at = {"inversion": "64×64"}.get(which.family, "88×104" if "Flux2" in name else "56×72")
    assert str(which.costs[0]).endswith(at)


@pytest.fixture(scope="module")
def instructed():
    return DiffusersEditor(random_diffusers("StableDiffusionInstructPix2PixPipeline", 8), "cpu", steps=2)


def test_an_instruction_replaces_the_difference_of_the_captions(instructed):
    edit = lambda **told: instructed.edit(IMAGES[:1], SOURCE[:1], TARGET[:1], **told)
    derived = edit()
    assert torch.equal(edit(instruction=["change blue hair to green hair"]), derived)
    assert not torch.equal(edit(instruction=["remove the hat"]), derived)
    assert not torch.equal(edit(strength=0.9), derived)
    assert "not the same axis" in instructed.about["strength"]
    for wrong in ("hat", ["hat", "hat"]):
        with pytest.raises(EditError, match="instruction must be a list of 1"):
            edit(instruction=wrong)


def test_the_edit_as_a_sentence():
    for source, target, sentence in (
        ("a, b", "a, b", ""),
        ("", "make it green", "make it green"),
        ("a man", "a woman", "a woman"),
        ("smile, hat", "smile", "remove hat"),
        ("smile, red hair, red eyes", "smile, red hair, blue eyes", "change red eyes to blue eyes"),
        (
            "smile, short hair, red hair",
            "smile, long hair, blue hair",
            "change short hair to long hair, change red hair to blue hair",
        ),
        (" , ", "", ""),
    ):
        assert sentence_between(source, target) == sentence


# ---- families


def test_families_of_the_published_pipelines(monkeypatch):
    for family, names in {
        "img2img": "QwenImageImg2Img KolorsImg2Img SanaSprintImg2Img StableDiffusionXLImg2Img Kandinsky3Img2Img",
        "instruction": "QwenImageEdit QwenImageEditPlus Flux2 LongCatImageEdit JoyImageEdit BriaFiboEdit OmniGen",
        None: "StableDiffusion StableDiffusionInpaint FluxFill StableDiffusionUpscale StableDiffusionLatentUpscale "
        "WanImageToVideo CogVideoXImageToVideo FluxControlNetImg2Img FluxKontextInpaint QwenImageLayered "
        "StableDiffusionImageVariation StableDiffusionControlNet StableUnCLIPImg2Img FluxPriorRedux",
    }.items():
        for name in names.split():
            cls = getattr(diffusers, f"{name}Pipeline", None)
            if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline):  # else a library is missing
                assert family_of(cls) == family, name
    assert editing_class("FluxPipeline") is diffusers.FluxImg2ImgPipeline
    assert editing_class("FluxKontextPipeline") is diffusers.FluxKontextPipeline
    absent = type("Absent", (), {"_backends": ["torch", "no_such_library"]})
    monkeypatch.setattr(diffusers, "AbsentPipeline", absent, raising=False)
    with pytest.raises(EditError, match="AbsentPipeline of diffusers needs no_such_library: pip install"):
        editing_class("AbsentPipeline")


def test_dials_and_sizes():
    assert [Dial("guidance_scale", 4.0).value(s) for s in (0, 0.5, 1)] == [1, 4, 7]
    assert [Dial("image_guidance_scale", 1.5).value(s) for s in (0, 0.5, 1)] == [2, 1.5, 1]
    assert dial_of(diffusers.FluxKontextPipeline, {}).name == "guidance_scale"
    assert dial_of(diffusers.Flux2KleinPipeline, {"guidance_scale": 1.0}) is None
    for height, width in ((64, 64), (1000, 10), (3, 500), (1080, 1920)):
        h, w = working_size(height, width, 512, 16)
        assert h % 16 == w % 16 == 0 and min(h, w) >= 16
    assert working_size(500, 500, 512, 8) == (512, 512)


# ---- folders, the hub, memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A text-to-image pipeline on the disk."
    place = tmp_path_factory.mktemp("pipeline") / "random"
    random_diffusers("StableDiffusionPipeline").save_pretrained(place)
    return place


def test_a_folder_opens_by_name_and_gives_what_its_networks_give(folder):
    which = mmgen.editor(f"diffusers:{folder}", "cpu", steps=2)
    assert which.about["pipeline"] == "StableDiffusionImg2ImgPipeline" and which.precision == "float32"
    same = DiffusersEditor(random_diffusers(), "cpu", steps=2)
    edits = [one.edit(IMAGES[:1], SOURCE[:1], TARGET[:1]) for one in (which, same)]
    assert torch.allclose(*edits, atol=2e-3) and not any(m.training for m in (which.network, which.pipeline.vae))
    half = mmgen.editor(f"diffusers:{folder}", "cpu", "bf16", steps=1)
    assert (
        half.network.dtype == torch.bfloat16
        and part_bytes(folder, "float32")["unet"] == 2 * part_bytes(folder, "bf16")["unet"]
    )
    half.to_precision("float32")
    assert half.network.dtype == torch.float32
    led = mmgen.editor(f"diffusers:{folder}", "cpu", pipeline="LEditsPPPipelineStableDiffusion", slicing=True)
    assert led.family == "inversion"


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(pipeline="StableDiffusionInpaintPipeline"), "does not edit an image by text alone"),
        (dict(pipeline="NoSuchPipeline"), "has no pipeline NoSuchPipeline; a newer version may"),
        (dict(pipeline="AutoencoderKL"), "has no pipeline AutoencoderKL"),
        (dict(pipeline="FluxKontextPipeline"), "FluxKontextPipeline cannot be loaded from"),
        (dict(precision="int8"), "precision must be one of float32, bf16, fp16, not 'int8'"),
        (dict(offload="disk"), "offload must be one of none, model, sequential"),
        (dict(offload="model"), "the device is the CPU"),
        (dict(size=3), "size must be a whole number from 8"),
        (dict(steps=0), "steps must be a whole number from 1"),
        (dict(arguments={"sed": 1}), "has no argument sed"),
        (dict(stepz=3), "has no stepz; it has steps, guidance, seed"),
        (dict(variant="fp16"), "cannot be loaded from"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(folder, options, said):
    with pytest.raises(ValueError, match=said) as e:
        mmgen.editor(f"diffusers:{folder}", "cpu", **options)
    assert "\n" not in str(e.value)


def test_weights_that_need_more_memory_than_is_free_are_not_loaded(folder, monkeypatch):
    monkeypatch.setattr(diffusers_open, "free_bytes", lambda device: 10**6 if device.type == "cuda" else 4 * 10**6)
    monkeypatch.setattr(diffusers_editor, "load_pipeline", lambda *given: pytest.fail("it was loaded"))
    with pytest.raises(
        EditError, match="needs 0.0 GiB for its weights in float32, and this machine has.*precision=bf16"
    ):
        mmgen.editor(f"diffusers:{folder}", "cpu")
    sizes, gpu = part_bytes(folder, "bf16"), torch.device("cuda")
    for offload, said in (
        ("none", "cuda has 0.0 GiB free; offload=model needs"),
        ("model", "cuda has 0.0 GiB free; a smaller"),
    ):
        with pytest.raises(EditError, match=said):
            diffusers_open.check_memory("much", sizes, gpu, "bf16", offload)
    diffusers_open.check_memory("much", sizes, gpu, "bf16", "sequential")


def test_a_model_that_is_neither_cached_nor_reachable_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="owner/no-such-model is not in the hub's cache.*`hf download") as e:
        mmgen.editor("diffusers:owner/no-such-model", "cpu")
    assert "\n" not in str(e.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *_, **__: pytest.fail("it asked again"))
    with pytest.raises(WeightsError, match="no-such-model is not in the hub's cache, and the hub cannot be reached"):
        mmgen.editor("diffusers:owner/no-such-model", "cpu")


def test_a_folder_that_is_no_editing_pipeline_is_one_sentence(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())

    def copy(name, **changes):
        place = tmp_path / name
        place.mkdir()
        (place / "model_index.json").write_text(json.dumps(index | changes))
        for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
            (place / part).symlink_to(folder / part)
        return place

    bare = tmp_path / "bare"
    bare.mkdir()
    modular = tmp_path / "modular"
    modular.mkdir()
    (modular / "modular_model_index.json").write_text("{}")
    broken, pickled, damaged = copy("broken"), copy("pickled"), copy("damaged")
    (broken / "model_index.json").write_text("{")
    for place, name, content in (
        (pickled, "diffusion_pytorch_model.bin", b"x"),
        (damaged, "diffusion_pytorch_model.safetensors", b"xy"),
    ):
        (place / "unet").unlink()
        (place / "unet").mkdir()
        (place / "unet" / "config.json").write_text((folder / "unet" / "config.json").read_text())
        (place / "unet" / name).write_bytes(content)
    for place, said in (
        (copy("text", _class_name="PixArtAlphaPipeline"), "PixArtAlphaPipeline does not edit an image by text alone"),
        (copy("video", _class_name="WanImageToVideoPipeline"), "WanImageToVideoPipeline does not edit"),
        (copy("new", _class_name="FutureEditPipeline"), "has no pipeline FutureEditPipeline"),
        (copy("own", _class_name=["pipeline", "Mine"]), "code in a folder is not run"),
        (copy("lacks", _class_name="StableDiffusion3Pipeline"), "cannot be loaded from lacks"),
        (broken, "model_index.json"),
        (bare, "is a folder without model_index.json"),
        (modular, "is a modular pipeline"),
        (tmp_path / "nowhere", "There is no folder"),
        (folder / "model_index.json", "is a file; a pipeline's folder"),
        (pickled, "cannot be loaded from pickled"),
        (damaged, "The weights of unet in damaged cannot be read"),
    ):
        with pytest.raises(ValueError, match=said) as e:
            mmgen.editor(f"diffusers:{place}", "cpu")
        assert "\n" not in str(e.value), place
    with pytest.raises(EditError, match="StableDiffusionPipeline does not edit an image"):
        DiffusersEditor(random_diffusers("StableDiffusionPipeline"), "cpu")


# ---- results


def test_a_result_that_is_no_image_is_told():
    output = lambda images, **more: types.SimpleNamespace(images=images, **more)
    x = torch.rand(1, 3, 4, 5)
    assert torch.allclose(image_of(output(x), "P"), x * 2 - 1)
    assert image_of(output([Image.new("L", (5, 4))]), "P").shape == (1, 3, 4, 5)
    assert image_of(output([[Image.new("RGBA", (5, 4))]]), "P").shape == (1, 3, 4, 5)
    assert image_of(output(x.permute(0, 2, 3, 1).numpy()), "P").shape == (1, 3, 4, 5)
    for wrong, said in (
        (output(x * float("nan")), "has NaN or infinite values"),
        (output(x, nsfw_content_detected=[True]), "safety checker of P replaced"),
        (output([]), "returned no image"),
        (output(None), "returned no image"),
        (output(torch.zeros(1, 4, 4, 4)), "returned no image"),
        (types.SimpleNamespace(frames=[1]), "returned no image"),
    ):
        with pytest.raises(EditError, match=said):
            image_of(wrong, "P")


def test_what_a_pipeline_refuses_is_one_sentence(instructed, monkeypatch):
    klein = DiffusersEditor(
        PIPELINES["Flux2KleinPipeline"](), "cpu", steps=1, size=32, arguments=EXTRA["Flux2KleinPipeline"]
    )
    with pytest.raises(EditError, match="Flux2KleinPipeline failed at 32×32 pixels: ValueError: Image too small") as e:
        klein.edit(torch.zeros(1, 3, 32, 32), [""], ["smile"])
    assert "\n" not in str(e.value) and klein.costs == []

    def full(self, row):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DiffusersEditor, "_run", full)
    with pytest.raises(EditError, match="ran out of memory at 56×72 pixels; offload=model"):
        instructed.edit(IMAGES, SOURCE, TARGET)
