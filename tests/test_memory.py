"Tiles, slices, precision and networks that wait on the CPU: less memory, the same edits."

import pytest
import torch
from test_opening import first, tokenizer  # noqa: F401  # fixtures

import mmgen
from mmgen.base.images import to_float
from mmgen.base.schema import WeightsError
from mmgen.data import portraits
from mmgen.editing.protocol import EditError
from mmgen.ldm.open import open_pipeline
from mmgen.ldm.pipeline import random_pipeline
from mmgen.ldm.tiles import SLICE, coded, in_tiles, places


def calls(function):
    "The function, and a list of the shapes that it was called with."
    shapes = []

    def counted(x):
        shapes.append(tuple(x.shape))
        return function(x)

    return counted, shapes


@pytest.mark.parametrize("length, tile, overlap", [(64, 64, 16), (65, 64, 16), (112, 64, 16), (113, 64, 16), (9, 8, 2)])
def test_tiles_cover_an_image_and_share_the_overlap(length, tile, overlap):
    starts = places(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] + tile == max(length, tile)
    assert all(0 < b - a <= tile - overlap for a, b in zip(starts, starts[1:]))


def test_a_function_of_near_pixels_is_the_same_in_tiles():
    x = torch.randn(2, 3, 40, 72, generator=torch.Generator().manual_seed(0))
    pool = lambda x: torch.nn.functional.avg_pool2d(x, 8)
    assert torch.allclose(in_tiles(pool, x, 4, 1, reads=8), pool(x), atol=1e-6)
    grow = lambda x: torch.nn.functional.interpolate(x, scale_factor=8)
    assert torch.allclose(in_tiles(grow, x, 16, 4, writes=8), grow(x), atol=1e-6)


def test_large_images_are_coded_in_tiles_and_batches_in_slices():
    grow = lambda x: torch.nn.functional.interpolate(x, scale_factor=8)
    for side, tile, expected in (
        (64, None, [(1, 4, 64, 64)] * 2),  # 512 pixels: whole, one image at a time
        (96, None, [(1, 4, 96, 96)] * 2),
        (104, None, [(1, 4, 64, 64)] * 8),  # above 768 pixels: four tiles of 512 for each image
        (104, 0, [(1, 4, 104, 104)] * 2),
        (64, 256, [(2, 4, 32, 32)] * 9),
    ):
        function, shapes = calls(grow)
        x = torch.randn(2, 4, side, side)
        assert torch.allclose(coded(function, x, 8, tile, writes=8), grow(x), atol=1e-5)
        assert shapes == expected, (side, tile, shapes)
    function, shapes = calls(grow)
    coded(function, torch.zeros(100, 4, 8, 8), 8, writes=8)
    assert [shape[0] for shape in shapes] == [SLICE // 64**2, 36]


def test_an_editor_with_tiles_gives_nearly_the_same_image():
    image = to_float(portraits.render(portraits.sample(1), 128)[None])
    whole, tiled = (mmgen.editor("reconstruction", "cpu", tile=tile).pipeline for tile in (None, 64))
    a, b = (p.decode(p.encode(image)) for p in (whole, tiled))
    assert a.shape == b.shape and not torch.equal(a, b)
    assert -10 * ((a - b) / 2).square().mean().log10() > 22  # dB
    for tile in (8, 100, -64):
        with pytest.raises(EditError, match="tile must be 0 or a multiple of 8, at least 64"):
            mmgen.editor("reconstruction", "cpu", model=whole, tile=tile)


@pytest.mark.parametrize("form", ["folder", "sd.safetensors"])
def test_a_model_is_opened_in_the_precision_of_all_its_networks(first, form, tokenizer):  # noqa: F811
    root, *_ = first
    given = {} if form == "folder" else {"tokenizer": root / "folder" / "tokenizer"}
    exact, half = (open_pipeline(root / form, "cpu", precision=kind, **given) for kind in (None, "bf16"))
    networks = (half.unet, half.autoencoder, half.text_encoder.model)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.bfloat16}
    assert half.context(["green hair"])[0].dtype == torch.float32
    converted = open_pipeline(root / form, "cpu", **given).to_precision("bf16")
    assert all(torch.equal(a, b) for a, b in zip(half.unet.parameters(), converted.unet.parameters()))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = (p.renoise(z, ["green hair"], 0.5, 2) for p in (exact, half))
    assert b.dtype == torch.float32 and 0 < (a - b).abs().mean() < 0.1 * a.abs().mean()
    with pytest.raises(WeightsError, match="precision must be one of float32, bf16, fp16, not 'fp8'"):
        open_pipeline(root / form, "cpu", precision="fp8", **given)
    with pytest.raises(EditError, match="precision must be one of float32, bf16, fp16, not 'fp8'"):
        mmgen.editor("sdedit", "cpu", "fp8")


def test_networks_wait_on_the_cpu_and_edit_as_before():
    plain, waiting = random_pipeline(), random_pipeline().to("cpu", offload=True)
    used, use = [], waiting.offload.use
    names = {id(waiting.unet): "unet", id(waiting.autoencoder): "autoencoder", id(waiting.text_encoder.model): "text"}

    def recorded(network):
        if network is not waiting.offload.active:
            used.append(names[id(network)])
        use(network)

    waiting.offload.use = recorded
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    captions = [["smile"] * 2, ["green hair"] * 2]
    for name in ("sdedit", "flowedit", "prompt-to-prompt", "ddim-inversion", "edit-friendly-ddpm"):
        used.clear()
        options = {"steps": 2} | ({"method": "ddim"} if name == "sdedit" else {})
        a, b = (mmgen.editor(name, "cpu", model=p, **options).edit(images, *captions) for p in (plain, waiting))
        assert torch.equal(a, b), name
        assert used[-3:] == ["text", "unet", "autoencoder"], used
    offload = waiting.offload
    assert offload.active is waiting.autoencoder
    waiting.to_precision("bf16")
    assert offload.active is None and waiting.unet.conv_in.weight.dtype == torch.bfloat16
    assert waiting.to("cpu").offload is None
    waiting.encode(images)
    assert offload.active is None  # its hooks are gone


def test_a_network_on_another_device_comes_back():
    from mmgen.ldm.offload import Offload

    p = random_pipeline()
    before = {name: value.clone() for name, value in p.unet.state_dict().items()}
    offload = Offload([p.unet, p.autoencoder], "meta")
    p.unet.project_context(torch.zeros(1, 3, 16, device="meta"))
    assert p.unet.conv_in.weight.is_meta and not p.autoencoder.encoder.conv_in.weight.is_meta
    p.autoencoder.encode(torch.zeros(1, 3, 32, 32, device="meta"))
    assert p.autoencoder.encoder.conv_in.weight.is_meta
    assert all(torch.equal(value, before[name]) for name, value in p.unet.state_dict().items())
    offload.end()
    assert not any(parameter.is_meta for parameter in p.autoencoder.parameters())
