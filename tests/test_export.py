"Models of ours in other programs: diffusers' img2img, onnxruntime; and back again, bit for bit."
import json

import diffusers
import numpy as np
import pytest
import torch

from mmgen.clip import TextEncoder, build_clip, train_tokenizer
from mmgen.export import ExportError, push, save_decoder_onnx, save_diffusers, save_mapper_onnx
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.pipeline import LatentDiffusion
from mmgen.ldm.unet import UNet2DConditionModel
from mmgen.styleclip.mapper import Mapper


def model(prediction="eps", mean=0.0, std=2.5, **options):
    "What the preset `paper` would train, small."
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["green hair, blue eyes"], 520)
    clip = build_clip(tokenizer, 32, 8, 16, 77, 16, 1, 2, 16, 1, 2)
    autoencoder = AutoencoderKL(block_out_channels=(16, 16), norm_num_groups=4)
    unet = UNet2DConditionModel(block_out_channels=(16, 32), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2, cross_attention_dim=16, norm_num_groups=4)
    for network in (autoencoder, unet):
        for p in network.requires_grad_(False).parameters(): p.add_(0.1 * torch.randn_like(p))
    process = {"prediction": prediction, "noise_schedule": "scaled_linear", "timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
    return LatentDiffusion(autoencoder, TextEncoder(clip.text_model, tokenizer, "cpu"), unet, mean, std, 32, process, "cpu", **{"masked": False} | options)


@pytest.mark.parametrize("prediction, mean, std", [("eps", 0.0, 2.5), ("v", 0.0, 1.3), ("eps", [0.3, -1.0, 0.0, 2.0], [0.5, 1.0, 2.0, 3.0])])
def test_diffusers_img2img_makes_the_same_picture(tmp_path, prediction, mean, std):
    ours = model(prediction, mean, std)
    save_diffusers(ours, tmp_path / "out", card="# mine", run={"run_id": "x"})
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    z = ours.encode(x)
    assert torch.allclose(pipe.vae.encode(x).latent_dist.mode() * pipe.vae.config.scaling_factor, z, atol=1e-5)
    theirs = pipe("green hair", image=z.clone(), strength=0.6, num_inference_steps=10, guidance_scale=4.0, generator=torch.Generator().manual_seed(3), output_type="np").images[0]
    image = ours.decode(ours.renoise(z, ["green hair"], 0.6, 6, 4.0, "ddim", seed=3))[0].permute(1, 2, 0)
    image = (image / 2 + 0.5).clamp(0, 1).numpy()
    assert image.std() > 0.01 and abs(image - theirs).max() <= 2 / 255
    assert (tmp_path / "out" / "README.md").read_text() == "# mine\n" and json.loads((tmp_path / "out" / "run.json").read_text()) == {"run_id": "x"}


def test_there_and_back_is_bit_identical(tmp_path):
    ours = model()
    back = LatentDiffusion.load(save_diffusers(ours, tmp_path / "out"), "cpu")
    for a, b in ((ours.unet, back.unet), (ours.autoencoder, back.autoencoder), (ours.text_encoder.model, back.text_encoder.model)):
        assert a.state_dict().keys() == b.state_dict().keys() and all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert back.size == ours.size and back.process_config == ours.process_config and not back.masked and torch.allclose(back.std, ours.std)
    again = save_diffusers(back, tmp_path / "again")
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert file.read_bytes() == (again / file.relative_to(tmp_path / "out")).read_bytes()


@pytest.mark.parametrize("change, said", [({"masked": True}, "caption's padding"), ({"prediction": "flow"}, "predicts 'flow'")])
def test_what_diffusers_cannot_run_is_said_and_nothing_is_written(tmp_path, change, said):
    ours = model(**change) if "masked" in change else model()
    if "prediction" in change: ours.process_config = {"prediction": "flow"}
    with pytest.raises(ExportError, match=f"diffusers cannot run this model: .*{said}"): save_diffusers(ours, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_overwrites_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="not an empty folder"): save_diffusers(model(), tmp_path / "out")
    monkeypatch.setattr(AutoencoderKL, "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError): save_diffusers(model(), tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"] and (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_onnx_of_decoder_and_mappers(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    ours = model(mean=[0.3, -1.0, 0.0, 2.0], std=[0.5, 1.0, 2.0, 3.0])
    z = torch.randn(3, 4, 16, 16)
    session = runtime.InferenceSession(str(save_decoder_onnx(ours, tmp_path / "decoder.onnx")))
    assert json.loads(session.get_modelmeta().custom_metadata_map["mmgen"])["size"] == 32
    with torch.no_grad(): assert np.abs(session.run(None, {"latents": z.numpy()})[0] - ours.decode(z).numpy()).max() < 1e-4
    for condition in (0, 8):
        mapper = Mapper(16, 10, condition=condition)
        for p in mapper.parameters(): p.data.normal_()
        codes, texts = torch.randn(5, 10, 16), torch.randn(5, 2, 8)
        given = {"codes": codes} | ({"texts": texts} if condition else {})
        session = runtime.InferenceSession(str(save_mapper_onnx(mapper, tmp_path / f"mapper{condition}.onnx")))
        with torch.no_grad(): wanted = mapper(*given.values()).numpy()
        assert np.allclose(session.run(None, {k: v.numpy() for k, v in given.items()})[0], wanted, rtol=1e-4, atol=1e-4 * abs(wanted).max())


def test_the_hub_gets_what_it_is_given_and_only_then(tmp_path, monkeypatch):
    import huggingface_hub
    calls = []

    class Api:
        def create_repo(self, *a, **k): calls.append((a, k))

        def upload_folder(self, **k):
            calls.append(k)
            return "https://hub/me/model"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(ExportError, match="has no card"): push(tmp_path, "me/model")
    assert calls == []
    (tmp_path / "README.md").write_text("# mine")
    assert push(tmp_path, "me/model") == "https://hub/me/model" and calls[0] == (("me/model",), {"private": True, "exist_ok": True})
