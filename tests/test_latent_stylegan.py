"A StyleGAN2 that generates the latents of an autoencoder, its encoder, and their training"

import dataclasses

import pytest
import torch

from mmgen.base.images import seed_everything
from mmgen.base.runs import Run
from mmgen.base.schema import WeightsError
from mmgen.base.weights import save_weights
from mmgen.jobs.registry import config_for
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.stylegan import encoder_train, train
from mmgen.stylegan.encoder import Encoder
from mmgen.stylegan.generator import Generator
from mmgen.stylegan.latents import LatentSpace, freeze

AUTOENCODER = dict(
    block_out_channels=[8, 8], latent_channels=4, norm_num_groups=4, sample_size=16, mid_block_add_attention=False
)
SMALL = dict(z_dim=16, w_dim=16, channel_base=128, channel_max=16, mapping_layers=2)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    seed_everything(0)
    model = AutoencoderKL(**AUTOENCODER)
    folder = tmp_path_factory.mktemp("autoencoder")
    save_weights(folder, model.state_dict(), {"_class_name": "AutoencoderKL"} | model.config, "a test", half=False)
    return folder


def generator(**options):
    config = AutoencoderKL(**AUTOENCODER).config
    return Generator(16, **SMALL | {"autoencoder": config, "convs": 3} | options)


def test_blocks_draw_latents_and_the_decoder_makes_images_of_them():
    model = generator()
    assert model.num_ws == 6 and [name for name, _ in model.synthesis.style_layout][:3] == [
        "b4.conv1",
        "b4.conv2",
        "b4.torgb",
    ]
    ws = model.mapping(torch.randn(2, 16))
    latents = model.synthesis.draw(model.synthesis.styles(ws))
    assert latents.shape == (2, 4, 8, 8)
    assert torch.equal(model.synthesis.space.decode(latents), model.synthesis(ws))
    assert model.synthesis(ws).shape == (2, 3, 16, 16)


def test_the_autoencoder_is_saved_with_the_generator_and_never_trained(tmp_path):
    model = generator(mapping="flow").requires_grad_(True)
    trained = {name for name, _ in model.named_parameters()}
    assert not any("space" in name for name in trained)
    assert any("space.autoencoder.decoder" in name for name in model.state_dict())
    assert not any("encoder." in name.replace("autoencoder.", "") for name in model.state_dict())
    save_weights(tmp_path, model.state_dict(), {"_class_name": "Generator"} | model.config, "a test", half=False)
    again = Generator.load(tmp_path)
    z = torch.randn(2, 16)
    assert torch.allclose(again(z, noise="const"), model(z, noise="const"), atol=1e-5)


def test_a_frozen_module_has_no_parameters_and_the_same_outputs():
    layer, x = torch.nn.Conv2d(3, 2, 1), torch.randn(1, 3, 4, 4)
    before = layer(x)
    assert torch.equal(freeze(layer)(x), before) and not list(layer.parameters())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mapping": "spline"}, "mapping must be network, or flow"),
        ({"mapping": "flow", "z_dim": 8}, "z_dim 8 and w_dim 16"),
        ({"autoencoder": AutoencoderKL(**AUTOENCODER | {"block_out_channels": [8] * 4}).config}, "2 px are too small"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        generator(**options)


def test_a_damaged_config_is_refused_before_anything_is_built(tmp_path):
    model = generator()
    config = model.config | {"autoencoder": model.config["autoencoder"] | {"latent_channels": "many"}}
    save_weights(tmp_path, model.state_dict(), {"_class_name": "Generator"} | config, "a test")
    with pytest.raises(WeightsError, match="latent_channels"):
        Generator.load(tmp_path)


def test_the_encoder_reads_images_or_latents_and_knows_its_generator():
    model = generator()
    encoder = Encoder(16, 16, 64, 16, convs=3, autoencoder=model.config["autoencoder"])
    encoder.fits(model)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(encoder(images), encoder.codes(encoder.space.encode(images)))
    with pytest.raises(ValueError, match="4 layers"):
        Encoder(16, 16, 64, 16, convs=2, autoencoder=model.config["autoencoder"]).fits(model)


def stylegan2(autoencoder, **options):
    return dataclasses.replace(
        config_for("stylegan2", "smoke"),
        **dict(
            autoencoder=str(autoencoder),
            convs=3,
            mapping="flow",
            adversarial_weight=0.0,
            reconstruction_weight=1.0,
            perceptual="none",
            noise=False,
            augment="none",
            images=16,
            held_out=8,
        )
        | options,
    )


@pytest.fixture(scope="module")
def trained(autoencoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    with Run("stylegan2", stylegan2(autoencoder, edit_weight=0.5), root=root) as run:
        result = train.fit(stylegan2(autoencoder, edit_weight=0.5), run)
    return run.path, result


def test_an_autoencoder_through_the_generator_is_trained_on_latents(trained):
    path, result = trained
    space = result["generator"].synthesis.space
    assert isinstance(space, LatentSpace) and (space.std > 0).all() and space.mean.abs().max() > 0
    assert result["reconstructions"].shape == (8, 3, 16, 16)
    assert result["generator"].mapping.scale != 1  # the flow was fitted


def test_the_published_objective_works_on_latents_too(autoencoder, tmp_path):
    config = stylegan2(autoencoder, adversarial_weight=1.0, reconstruction_weight=0.0, mapping="network")
    with Run("stylegan2", config, root=tmp_path) as run:
        result = train.fit(config, run)
    assert result["samples"].shape == (64, 3, 16, 16) and result["samples"].isfinite().all()


def test_an_encoder_is_trained_for_a_generator_of_latents(trained, autoencoder, tmp_path):
    path, _ = trained
    config = dataclasses.replace(
        config_for("encoder", "smoke"),
        size=16,
        images=16,
        held_out=8,
        generator=str(path / "generator"),
        encoder_from=str(path / "encoder"),
        autoencoder=str(autoencoder),
        data="portraits",
    )
    with Run("encoder", config, root=tmp_path) as run:
        result = encoder_train.fit(config, run)
    assert result["all offsets"].shape == (8, 3, 16, 16)
    with pytest.raises(ValueError, match="autoencoder must name it, not 'none'"):
        with Run("encoder", root=tmp_path) as run:
            encoder_train.fit(dataclasses.replace(config, autoencoder="none"), run)


def test_no_step_fits_another_mapping_to_the_same_generator(trained, autoencoder, tmp_path):
    path, result = trained
    parts = {"init_from": str(path / "generator"), "encoder_from": str(path / "encoder")}
    config = stylegan2(autoencoder, steps=0, flow_width=48, flow_blocks=1, **parts)
    with Run("stylegan2", config, root=tmp_path) as run:
        again = train.fit(config, run)["generator"]
    assert again.mapping.embed.out_features == 48 and len(again.mapping.blocks) == 1
    w = torch.randn(2, again.num_ws, 16)
    assert torch.allclose(again.synthesis(w), result["generator"].synthesis(w), atol=0.02)  # written in half precision
    with pytest.raises(ValueError, match="steps is 0; then init_from"):
        stylegan2(autoencoder, steps=0)
