"Figures 6 and 7 on published weights: errors name what is missing or wrong; the whole runs on random weights."

import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmgen.base.files import repo_root
from mmgen.base.pickles import read_pickle
from mmgen.base.runs import Run, RunError, load_run
from mmgen.base.schema import WeightsError
from mmgen.base.weights import resolve
from mmgen.clip.model import CLIP
from mmgen.data.images import ImageError
from mmgen.jobs.registry import config_for
from mmgen.paper_figures.published import FIGURES, find, measure, open_all, picture, pretrained
from mmgen.paper_figures.random_weights import numbered, random_weights
from mmgen.report.figures_page import write_report
from mmgen.report.published_page import section
from mmgen.stylegan.generator import Generator
from mmgen.stylegan.inversion import Inverter
from mmgen.stylegan.open import open_generator
from mmgen.stylegan.published import E4E, rename_numbered

PACKAGED = {
    "model": "ldm-portraits",
    "generator": "stylegan2-portraits",
    "encoder": "encoder-portraits",
    "clip": "clip-portraits",
}


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("random"))


def no_cache(name, **options):
    assert options["local_files_only"], "nothing is fetched without being asked for"
    raise FileNotFoundError("not in the cache")


def message(config):
    with pytest.raises(WeightsError) as caught:
        find(config)
    return str(caught.value)


def test_all_that_is_missing_is_named_at_once_with_size_licence_and_source(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_cache)
    said = message(config_for("pretrained", identity="model_ir_se50.pth"))
    assert said.startswith("5 of 5 weights are missing") and said.endswith("Here: none.") and "-p download True" in said
    for line in (
        (
            "model: stable-diffusion-v1-5/stable-diffusion-v1-5 (Stable Diffusion 1.5, 4.27 GB; licence: "
            "CreativeML OpenRAIL-M; from https://huggingface.co/stable-diffusion-v1-5/"
        ),
        (
            "generator: data/pretrained/stylegan2-ffhq-config-f.pkl (StyleGAN2 of FFHQ, 382 MB; licence: Nvidia "
            "Source Code License-NC, not for commercial use; from https://nvlabs"
        ),
        "encoder: data/pretrained/e4e_ffhq_encode.pt (e4e of FFHQ, 1.2 GB; licence: MIT; the generator in it",
        "clip: openai/clip-vit-large-patch14 (CLIP ViT-L/14, 1.71 GB; licence: MIT; from",
        "identity: model_ir_se50.pth (ArcFace IR-SE50, 175 MB",
    ):
        assert f"\n  {line}" in said
    assert len(said.split("\n")) == 7


def test_what_is_here_is_named_beside_what_is_not(random, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_cache)
    said = message(
        config_for("pretrained", generator=str(random["generator"]), encoder="mine/e4e.pt", clip="clip-portraits")
    )
    assert (
        said.startswith("2 of 4 weights are missing")
        and "\n  encoder: mine/e4e.pt\n" in said
        and said.endswith(f"Here: generator ({random['generator']}); clip (clip-portraits).")
    )


def test_without_network_the_hubs_reason_is_said(tmp_path, monkeypatch):
    asked = []

    def offline(name, **options):
        asked.append(options["local_files_only"])
        raise ConnectionError("no route to the hub\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    said = message(config_for("pretrained", download=True))
    assert asked == [False, False] and said.count(": no route to the hub\n") == 2 and "more" not in said


def test_half_a_model_in_the_hubs_cache_is_no_model(tmp_path, monkeypatch):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
    said = message(config_for("pretrained", **PACKAGED | {"model": "owner/sd"}))
    assert (
        "model: owner/sd: the hub's cache lacks unet/diffusion_pytorch_model.safetensors, "
        "vae/diffusion_pytorch_model.safetensors, text_encoder/model.safetensors"
    ) in said
    (tmp_path / "model_index.json").rename(tmp_path / "pytorch_model.bin")
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "diffusion_pytorch_model.bin").touch()
    said = message(config_for("pretrained", **PACKAGED | {"model": "owner/sd"}))
    assert "model: owner/sd: the hub's cache lacks model_index.json, text_encoder/model.safetensors" in said


def test_of_the_hub_only_what_is_read_is_fetched(monkeypatch, tmp_path):
    asked = {}
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.update(options) or str(tmp_path)
    )
    resolve("stable-diffusion-v1-5/stable-diffusion-v1-5")
    there = [
        "model_index.json",
        "README.md",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    more = [
        "v1-5-pruned.safetensors",
        "v1-5-pruned-emaonly.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
        "v1-5-pruned.ckpt",
    ]
    taken = lambda name: (
        any(fnmatch(name, p) for p in asked["allow_patterns"])
        and not any(fnmatch(name, p) for p in asked["ignore_patterns"])
    )
    assert all(map(taken, there)) and not any(map(taken, more)) and not asked["local_files_only"]


def test_random_weights_have_the_published_names_and_say_the_same_twice(random, tmp_path):
    state = read_pickle(random["encoder"])["state_dict"]
    wanted = {f"encoder.{k}": v.shape for k, v in E4E(16).state_dict().items() if k != "latent_avg"}
    assert {k: v.shape for k, v in state.items() if k.startswith("encoder.")} == wanted
    assert random["encoder"].stat().st_size < 10e6
    inverter = Inverter(str(random["encoder"]), str(random["encoder"]), 0, device="cpu")  # e4e's file alone
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert inverter(x).shape == (2, 6, 512) and inverter(x).isfinite().all()
    again = random_weights(tmp_path / "again")
    assert (tmp_path / "again" / "stylegan2.pt").stat().st_size == random["generator"].stat().st_size
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            open_generator(again["generator"]).parameters(), open_generator(random["generator"]).parameters()
        )
    )


def test_numbered_is_undone_by_the_reader():
    torch.manual_seed(0)
    state = Generator(size=32, z_dim=8, w_dim=8, channel_base=64, channel_max=8, mapping_layers=3).state_dict()
    back = rename_numbered(
        numbered(Generator(size=32, z_dim=8, w_dim=8, channel_base=64, channel_max=8, mapping_layers=3))
    )
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in state.items() if not k.endswith(("resample_filter", "w_avg"))
    }


def test_a_wrong_network_in_a_place_is_one_sentence_each(random, tmp_path):
    vae, gan, clip = random["model"] / "vae", random["generator"], random["clip"]
    autoencoder = tmp_path / "autoencoder.pt"
    torch.save({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}, autoencoder)
    for places, said in (
        (
            {"generator": vae},
            "generator: vae cannot be opened as a StyleGAN2 generator: Generator.load: vae holds another model",
        ),
        (
            {"generator": autoencoder},
            (
                "generator: autoencoder.pt cannot be opened as a StyleGAN2 generator: autoencoder.pt holds no "
                "StyleGAN2 generator"
            ),
        ),
        (
            {"generator": vae / "diffusion_pytorch_model.safetensors"},
            "generator: diffusion_pytorch_model.safetensors cannot be opened as a StyleGAN2 generator",
        ),
        ({"model": gan}, "model: stylegan2.pt cannot be opened as Stable Diffusion"),
        ({"model": vae}, "model: vae cannot be opened as Stable Diffusion: vae is not a latent diffusion model"),
        (
            {"encoder": gan},
            (
                "encoder: stylegan2.pt cannot be opened as an encoder of StyleGAN2 such as e4e: stylegan2.pt holds "
                "no encoder e4e"
            ),
        ),
        ({"clip": vae}, "clip: vae cannot be opened as a CLIP: vae is not a CLIP model"),
        ({"identity": gan}, "identity: stylegan2.pt cannot be opened as an ArcFace"),
        (
            {"generator": resolve("stylegan2-portraits"), "encoder": random["encoder"]},
            "encoder and generator: The encoder makes codes for 16 px and w of 512; the generator has 64 px",
        ),
    ):
        with pytest.raises(WeightsError) as caught:
            open_all(places, "cpu")
        assert str(caught.value).startswith(said) and "\n" not in str(caught.value), str(caught.value)
        assert str(tmp_path) not in str(caught.value) and str(random["model"].parent) not in str(caught.value)
    with pytest.raises(WeightsError) as caught:
        open_all({"model": gan, "generator": clip, "encoder": clip, "clip": gan}, "cpu")
    assert [line.partition(":")[0] for line in str(caught.value).split("\n")] == [
        "model",
        "generator",
        "encoder",
        "clip",
    ]


def test_known_answers_of_the_measures():
    class Two:  # sees red and blue, reads one-hot
        def images(self, x):
            return torch.nn.functional.normalize(x[:, [0, 2]].mean((2, 3)) + 1, dim=-1)

        def text(self, texts):
            return torch.tensor([[1.0, 0.0] if text == "red" else [0.0, 1.0] for text in texts])

    red, blue = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    stays, moves = measure(Two(), red, np.stack([red, blue]), "red", ["blue", "blue"])
    assert stays == {"CLIP score": 0, "CLIP direction": 0, "change, %": 0}
    assert moves == pytest.approx({"CLIP score": 100, "CLIP direction": 1, "change, %": 200 / 3})


def test_pictures_of_ones_own_and_stand_ins(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "me.jpg")
    mine, said = picture(config_for("pretrained", face=str(tmp_path / "me.jpg")), "face", 32)
    assert mine.shape == (32, 32, 3) and said == "me.jpg"
    for which, style in (("face", "adventurer"), ("manga", "lorelei")):
        drawn, said = picture(config_for("pretrained"), which, 128)
        assert drawn.shape == (128, 128, 3) and said.startswith(f"stand-in: {style} portrait ")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"strengths": "0.4,2"}, "strengths must be from 0 to 1"),
        ({"prompts": ","}, "prompts is empty"),
        ({"strengths": "a"}, "strengths must be a list of float"),
        ({"style_strength": 1.5}, "style_strength must be from 0 to 1"),
        ({"steps": 0}, "steps must be 1 or more"),
    ],
)
def test_settings_that_cannot_be_meant(changes, said):
    with pytest.raises(ValueError, match=said):
        config_for("pretrained", **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "On the packaged weights, with edits of strength 0 among them."
    root = tmp_path_factory.mktemp("root")
    config = config_for(
        "pretrained",
        **PACKAGED,
        prompts="green hair,glasses",
        strengths="0,0.5",
        steps=4,
        style_steps=1,
        style_strength=0.0,
        device="cpu",
    )
    with Run("pretrained", config, root, "pretrained") as made:
        found = pretrained(config, made)
    return made.path, found


def test_strength_0_is_what_the_autoencoder_and_the_inversion_alone_give(run):
    path, found = run
    of = lambda figure, method: [
        {k: row[k] for k in ("CLIP score", "change, %")}
        for row in found
        if (row["figure"], row["method"]) == (figure, method)
    ]
    assert (
        of("figure_7", "Stable Diffusion")[0] == pytest.approx(of("figure_7", "autoencoder")[0], abs=1e-3)
        and of("figure_7", "Stable Diffusion")[1] != of("figure_7", "autoencoder")[1]
    )
    for one, other in zip(of("figure_6", "StyleCLIP"), of("figure_6", "inversion")):
        assert one == pytest.approx(other, abs=1e-3)
    record = load_run(path)
    assert (
        {m["n"] for m in record["metrics"]} == {2}
        and len(record["metrics"]) == 3 * (4 + 3)
        and len(found) == 2 * (4 + 3)
    )
    assert (
        record["data"]["face"].startswith("stand-in: adventurer")
        and record["weights"]["clip"]["fingerprint"] == CLIP.load(device="cpu").fingerprint()
    )
    assert all(entry["bytes"] < 150_000 for entry in record["figures"]) and str(path.parent) not in (
        path / "run.json"
    ).read_text("utf-8")


def test_the_report_has_a_section_where_there_is_a_record(run, tmp_path):
    path, _ = run
    said = section(path, path.parent)
    assert (
        "ldm-portraits" in said
        and "A drawn portrait stands in for the face and for the manga" in said
        and "which flatters StyleCLIP" in said
        and str(path.parent) not in said
    )
    for name in FIGURES:
        assert f"(pretrained/{name}.jpg)" in said
    shutil.copytree(path, tmp_path / "pretrained")
    (tmp_path / "pretrained" / "scores.json").write_text("[]")
    with pytest.raises(RunError, match="scores.json has the SHA-256"):
        section(tmp_path / "pretrained", tmp_path)
    kept = repo_root() / "reports" / "runs" / "preliminary"
    if kept.is_dir():
        shutil.copytree(kept, tmp_path / "with" / "preliminary")
        shutil.copytree(path, tmp_path / "with" / "pretrained")
        shutil.copytree(kept, tmp_path / "without" / "preliminary")
        long, short = (
            write_report(tmp_path / name / "preliminary", tmp_path / name).read_text("utf-8")
            for name in ("with", "without")
        )
        assert long == short + section(tmp_path / "with" / "pretrained", tmp_path / "with")


def test_the_same_settings_give_the_same_numbers_and_random_ones_make_no_section(tmp_path):
    found = []
    for name in ("one", "two"):
        config = config_for(
            "pretrained", "smoke", prompts="green hair", strengths="0.5", device="cpu", manga=None, judge="random"
        )
        with Run("pretrained", config, tmp_path, name) as made:
            found.append(pretrained(config, made))
        assert section(made.path, tmp_path) == "" and load_run(made.path)["status"] == "completed"
    assert found[0] == found[1] and all(np.isfinite(row["change, %"]) for row in found[0])


def test_a_picture_that_is_not_there_ends_the_run_before_weights_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("mmgen.paper_figures.published.open_all", lambda *_: pytest.fail("opened"))
    config = config_for("pretrained", "smoke", face="nothing.png")
    with (
        pytest.raises(ImageError, match="nothing.png does not exist"),
        Run("pretrained", config, tmp_path, "made") as made,
    ):
        pretrained(config, made)


@pytest.mark.notebooks
def test_the_notebook_says_what_is_missing_and_begins_no_run(tmp_path):
    environment = os.environ | {"MMGEN_ROOT": str(tmp_path), "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "papermill"),
            str(repo_root() / "nbs" / "paper_figures_published.ipynb"),
            str(tmp_path / "out.ipynb"),
            "--no-progress-bar",
            "-r",
            "run_id",
            "mine",
        ],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and "4 of 4 weights are missing" in done.stderr and "e4e_ffhq_encode.pt" in done.stderr
    assert not (tmp_path / "reports").exists()
