"Published StyleGAN2 files in TensorFlow's, PyTorch's, StyleCLIP's and e4e's layout: small, with random weights."

import pickle
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mmgen
from mmgen.base.pickles import read_pickle
from mmgen.base.schema import WeightsError
from mmgen.stylegan.encoder import Encoder
from mmgen.stylegan.generator import Generator
from mmgen.stylegan.inversion import Inverter
from mmgen.stylegan.open import open_encoder, open_generator
from mmgen.stylegan.published import E4E, e4e_of, generator_of

SIZES = (4, 8, 16, 32)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = Generator(size=32, z_dim=512, w_dim=512, channel_base=256, channel_max=24, mapping_layers=3)
    for name, p in generator.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            p.data.add_(0.1 * torch.randn_like(p))
    generator.mapping.w_avg.normal_()
    return generator.eval().requires_grad_(False)


def image(model):
    return model(torch.randn(2, 512, generator=torch.Generator().manual_seed(1)), 0.7, "const")


def to_tensorflow(generator):
    "The variables of stylegan2's network Gs: kernels (h, w, in, out), doubling ones mirrored, style biases minus 1."
    state, out = generator.state_dict(), [("dlatent_avg", generator.mapping.w_avg)]
    mapping = [
        (f"Dense{i}/{kind}", state[f"mapping.fc{i}.{kind}"].T if kind == "weight" else state[f"mapping.fc{i}.{kind}"])
        for i in range(3)
        for kind in ("weight", "bias")
    ]
    synthesis = [("4x4/Const/const", state["synthesis.b4.const"][None])]
    layers = [(4, "conv1", "Conv")] + [
        (size, ours, theirs) for size in SIZES[1:] for ours, theirs in (("conv0", "Conv0_up"), ("conv1", "Conv1"))
    ]
    for number, (size, ours, theirs) in enumerate(layers):
        synthesis.append((f"noise{number}", state[f"synthesis.b{size}.{ours}.noise_const"][None, None]))
        synthesis.append((f"{size}x{size}/{theirs}/noise_strength", state[f"synthesis.b{size}.{ours}.noise_strength"]))
    for size, ours, theirs in layers + [(size, "torgb", "ToRGB") for size in SIZES]:
        at = f"synthesis.b{size}.{ours}"
        kernel = state[f"{at}.weight"].permute(2, 3, 1, 0)
        synthesis += [
            (f"{size}x{size}/{theirs}/weight", kernel.flip(0, 1) if "up" in theirs else kernel),
            (f"{size}x{size}/{theirs}/bias", state[f"{at}.bias"]),
            (f"{size}x{size}/{theirs}/mod_weight", state[f"{at}.affine.weight"].T),
            (f"{size}x{size}/{theirs}/mod_bias", state[f"{at}.affine.bias"] - 1),
        ]
    plain = lambda pairs: [(name, np.array(value.numpy(), order="C")) for name, value in pairs]
    return plain(out), plain(mapping), plain(synthesis + [("lod", torch.zeros(()))])


def to_numbered(generator):
    "Names and shapes of rosinality's port, which StyleCLIP and e4e use."
    state, out = generator.state_dict(), {}
    for i in range(3):
        for kind in ("weight", "bias"):
            out[f"style.{i + 1}.{kind}"] = state[f"mapping.fc{i}.{kind}"]
    out["input.input"] = state["synthesis.b4.const"][None]
    layers = ["b4.conv1"] + [f"b{size}.{name}" for size in SIZES[1:] for name in ("conv0", "conv1")]
    for number, layer in enumerate(layers):
        name = f"convs.{number - 1}" if number else "conv1"
        out |= {
            f"{name}.conv.weight": state[f"synthesis.{layer}.weight"][None],
            f"{name}.conv.modulation.weight": state[f"synthesis.{layer}.affine.weight"],
            f"{name}.conv.modulation.bias": state[f"synthesis.{layer}.affine.bias"],
            f"{name}.noise.weight": state[f"synthesis.{layer}.noise_strength"][None],
            f"{name}.activate.bias": state[f"synthesis.{layer}.bias"],
            f"noises.noise_{number}": state[f"synthesis.{layer}.noise_const"][None, None],
        }
        if "conv0" in layer:
            out[f"{name}.conv.blur.kernel"] = torch.ones(4, 4)
    for number, size in enumerate(SIZES):
        name, at = f"to_rgbs.{number - 1}" if number else "to_rgb1", f"synthesis.b{size}.torgb"
        out |= {
            f"{name}.conv.weight": state[f"{at}.weight"][None],
            f"{name}.conv.modulation.weight": state[f"{at}.affine.weight"],
            f"{name}.conv.modulation.bias": state[f"{at}.affine.bias"],
            f"{name}.bias": state[f"{at}.bias"].reshape(1, 3, 1, 1),
        }
        if number:
            out[f"{name}.upsample.kernel"] = torch.ones(4, 4)
    return out


def test_a_tensorflow_pickle(generator, tmp_path, monkeypatch):
    class Network:
        def __init__(self, variables, components):
            self.parts = {
                "version": 4,
                "static_kwargs": {},
                "variables": variables,
                "components": components,
                "build_module_src": "raise SystemExit",
            }

        def __getstate__(self):
            return self.parts

    Network.__module__, Network.__qualname__ = "dnnlib.tflib.network", "Network"
    for name in ("dnnlib", "dnnlib.tflib", "dnnlib.tflib.network"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["dnnlib.tflib.network"].Network = Network
    own, mapping, synthesis = to_tensorflow(generator)
    whole = Network(own, {"mapping": Network(mapping, {}), "synthesis": Network(synthesis, {})})
    (tmp_path / "gs.pkl").write_bytes(pickle.dumps((Network([], {}), Network([], {}), whole)))
    del sys.modules["dnnlib.tflib.network"]
    opened = open_generator(tmp_path / "gs.pkl")
    assert opened.config == generator.config and torch.allclose(image(opened), image(generator), atol=1e-5)


def test_a_checkpoint_of_styleclip_and_one_without_noises(generator, tmp_path):
    state = to_numbered(generator)
    torch.save({"g_ema": state, "latent_avg": generator.mapping.w_avg.clone()}, tmp_path / "g.pt")
    opened = open_generator(tmp_path / "g.pt")
    assert opened.config == generator.config and torch.allclose(image(opened), image(generator), atol=1e-5)
    old = {k: v for k, v in state.items() if not k.startswith("noises")}
    bare = generator_of({"g_ema": old, "latent_avg": generator.mapping.w_avg})
    assert torch.allclose(
        bare(torch.ones(1, 512), noise="none"), generator(torch.ones(1, 512), noise="none"), atol=1e-5
    )


@pytest.fixture(scope="module")
def e4e_file(generator, tmp_path_factory):
    torch.manual_seed(0)
    encoder = E4E(32)
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items() if k != "latent_avg"} | {
        f"decoder.{k}": v for k, v in to_numbered(generator).items()
    }
    path = tmp_path_factory.mktemp("e4e") / "e4e.pt"
    torch.save(
        {"state_dict": state, "latent_avg": generator.mapping.w_avg.repeat(8, 1), "opts": {"stylegan_size": 32}}, path
    )
    return path


def test_classes_of_ours_name_the_function_that_opens_a_file(e4e_file):
    with pytest.raises(WeightsError, match="e4e.pt is a file: open it with mmgen.stylegan.open.open_generator"):
        Generator.load(e4e_file)
    with pytest.raises(WeightsError, match="e4e.pt is a file: open it with mmgen.stylegan.open.open_encoder"):
        Encoder.load(e4e_file)
    assert isinstance(open_encoder(e4e_file), E4E) and isinstance(open_encoder("encoder-portraits"), Encoder)


def test_e4e_brings_its_encoder_and_its_generator(generator, e4e_file):
    inverter = Inverter(str(e4e_file), str(e4e_file), steps=0, device="cpu")
    assert torch.allclose(image(inverter.generator), image(generator), atol=1e-5)
    codes = inverter(torch.rand(1, 3, 32, 32) * 2 - 1)
    assert codes.shape == (1, 8, 512) and codes.isfinite().all()
    for layer in inverter.encoder.styles:
        layer.linear.weight.zero_(), layer.linear.bias.zero_()
    assert torch.allclose(inverter(torch.zeros(1, 3, 32, 32))[0], generator.mapping.w_avg.expand(8, -1), atol=1e-6)


def test_a_styleclip_editor_runs_on_published_files(e4e_file, tmp_path):
    editor = mmgen.editor("styleclip-optimization", "cpu", generator=str(e4e_file), encoder=str(e4e_file), steps=2)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    out = editor.edit(x, ["smile"], ["green hair"])
    assert out.shape == x.shape and out.isfinite().all()


@pytest.mark.parametrize(
    "contents, message",
    [
        ({"g_ema": {"layer.weight": torch.zeros(2)}}, "holds no StyleGAN2 generator"),
        ([1], "holds no StyleGAN2 generator"),
        ({"state_dict": 3}, "holds no StyleGAN2 generator"),
        ({"state_dict": [1]}, "holds no StyleGAN2 generator"),
        ({"synthesis.L0_36_512.weight": torch.zeros(2)}, "StyleGAN3"),
        ({"mapping.embed.weight": torch.zeros(2), "synthesis.b4.const": torch.zeros(2)}, "class labels"),
    ],
)
def test_what_is_no_generator_is_said(contents, message):
    with pytest.raises(
        WeightsError, match=f"mine {message}|mine holds {message}|mine holds a generator with {message}"
    ):
        generator_of(contents, "mine")


def test_what_is_no_encoder_is_said_and_a_wrong_pair_too(generator, e4e_file):
    with pytest.raises(WeightsError, match="mine holds no encoder e4e"):
        e4e_of({"state_dict": {}}, "mine")
    with pytest.raises(WeightsError, match="mine holds no encoder e4e"):
        e4e_of([], "mine")
    with pytest.raises(WeightsError, match="mine holds no encoder e4e"):
        e4e_of({"state_dict": None}, "mine")
    with pytest.raises(ValueError, match="codes for 32 px .* the generator has 64 px"):
        e4e_of(read_pickle(e4e_file)).fits(Generator.load())
    lacking = {k: v for k, v in to_numbered(generator).items() if k != "to_rgbs.2.bias"}
    with pytest.raises(WeightsError, match="mine does not fit Generator.*1 missing"):
        generator_of({"g_ema": lacking}, "mine")


def test_a_generator_in_safetensors_opens_and_8_bits_do_not(generator, tmp_path):
    state = {key: value.contiguous() for key, value in generator.state_dict().items()}
    save_file(state, tmp_path / "g.safetensors")
    assert torch.allclose(image(open_generator(tmp_path / "g.safetensors")), image(generator), atol=1e-5)
    (tmp_path / "g.pkl").write_bytes((tmp_path / "g.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="g.pkl was not opened: it is safetensors"):
        open_generator(tmp_path / "g.pkl")
    torch.save(
        {"g_ema": {key: (100 * value).to(torch.int8) for key, value in to_numbered(generator).items()}},
        tmp_path / "g8.pt",
    )
    with pytest.raises(WeightsError, match="g8.pt has weights of 8 bits or fewer"):
        open_generator(tmp_path / "g8.pt")


@pytest.mark.parametrize(
    "change",
    [lambda state: {k: v.flatten() for k, v in state.items()}, lambda state: {k: torch.zeros(()) for k in state}],
)
def test_a_generator_of_strange_shapes_is_one_sentence(generator, change):
    for state in (generator.state_dict(), to_numbered(generator)):
        with pytest.raises(WeightsError, match="mine holds a StyleGAN2 generator whose tensors have other shapes"):
            generator_of({"g_ema": change(state)}, "mine")
    for average in ("none", torch.zeros(3)):
        with pytest.raises(WeightsError, match="other shapes"):
            generator_of({"g_ema": to_numbered(generator), "latent_avg": average}, "mine")
    with pytest.raises(WeightsError, match="holds no StyleGAN2 generator"):
        generator_of({1: torch.zeros(2)}, "mine")


def test_an_encoder_of_a_million_layers_takes_no_memory():
    for layer in ("1000000", "x"):
        with pytest.raises(WeightsError, match="mine holds no encoder e4e"):
            e4e_of(
                {
                    "state_dict": {
                        f"encoder.styles.{layer}.convs.0.weight": torch.zeros(1),
                        "encoder.latlayer1.weight": torch.zeros(1),
                    }
                },
                "mine",
            )
