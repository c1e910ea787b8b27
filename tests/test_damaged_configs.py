"Damaged configurations and JSON beside weights: each opens or is refused in one sentence that names the file."

import json
import random
import shutil
import struct
import warnings
from collections import Counter
from pathlib import Path

import torch

from mmgen.base.schema import WeightsError
from mmgen.base.weights import packaged
from mmgen.clip.model import CLIP, TextEncoder, build_clip, train_tokenizer
from mmgen.identity.model import PortraitIdentity
from mmgen.instructions.tagger import Tagger
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.editors.instruct import InstructPix2Pix
from mmgen.ldm.pipeline import LatentDiffusion, random_unet
from mmgen.ldm.published.diffusers_folder import save_diffusers
from mmgen.ldm.published.stable_diffusion import stable_diffusion
from mmgen.metrics.oracle import Oracle
from mmgen.styleclip.directions import Directions
from mmgen.styleclip.mapper import Mapper
from mmgen.stylegan.encoder import Encoder
from mmgen.stylegan.generator import Generator

KINDS = {
    "autoencoder": AutoencoderKL,
    "clip": CLIP,
    "directions": Directions,
    "encoder": Encoder,
    "identity": PortraitIdentity,
    "instruct": InstructPix2Pix,
    "instructions": Tagger,
    "ldm": LatentDiffusion,
    "mapper": Mapper,
    "oracle": Oracle,
    "stylegan2": Generator,
}
GARBAGE = [
    None,
    "",
    "x",
    "a\0b",
    "../..",
    "é" * 3000,
    -1,
    0,
    1,
    3,
    0.5,
    -0.5,
    2**31,
    2**40,
    2**63,
    10**30,
    -(2**63),
    float("nan"),
    float("inf"),
    True,
    False,
    [],
    {},
    [[]],
    [[[[1]]]],
    {"a": {"b": [1]}},
    [1] * 3000,
    [-1],
    [0],
    [2**40] * 3,
    ["x", None],
    [None],
    [float("nan")],
    {"": ""},
    1e308,
    100_000,
    [100_000] * 3,
]
TEXTS = [
    b"",
    b"\0" * 64,
    b"{",
    b"[1, 2]",
    b"null",
    b"3",
    b'"text"',
    b"not json",
    b"{}",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"size": ' + b"9" * 6000 + b"}",
    b"{'size': 64}",
    b"<html></html>",
    b"version https://git-lfs.github.com/spec/v1\n",
]


def places(value, path=()):
    "Every place in nested JSON."
    yield path
    if isinstance(value, (dict, list)):
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:4]
        for key, one in items:
            yield from places(one, (*path, key))


def damaged(content: bytes, rng: random.Random) -> bytes:
    "The JSON with one fault."
    if rng.random() < 0.15:
        return rng.choice(TEXTS)
    if rng.random() < 0.1:
        return content[: rng.randrange(len(content))]
    value = json.loads(content)
    path = rng.choice([place for place in places(value) if place])
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    kind = rng.random()
    if kind < 0.2:
        del inside[path[-1]]
    elif kind < 0.25 and isinstance(inside, dict):
        inside[rng.choice(["self", "device", "__class__", "", "block_out_channels", "size", "auto_map"])] = rng.choice(
            GARBAGE
        )
    else:
        inside[path[-1]] = rng.choice(GARBAGE)
    text = json.dumps(value)
    if kind > 0.97:
        text = text[:-1] + ", " + text[1:]  # every name twice
    return text.encode()


def diffusers_folder(place):
    "A very small Stable Diffusion."
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["green hair, blue eyes"], 520)
    clip = build_clip(tokenizer, 32, 8, 16, 77, 16, 1, 2, 16, 1, 2)
    unet = random_unet()
    process = {
        "prediction": "eps",
        "noise_schedule": "scaled_linear",
        "timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    return save_diffusers(
        LatentDiffusion(
            AutoencoderKL(block_out_channels=(16, 16), norm_num_groups=4),
            TextEncoder(clip.text_model, tokenizer, "cpu"),
            unet,
            0.0,
            2.5,
            32,
            process,
            "cpu",
            masked=False,
        ),
        place,
    )


def linked(source: Path, place: Path, file: str, content: bytes) -> Path:
    "A folder of weights whose files are links, but for one."
    shutil.rmtree(place, ignore_errors=True)
    for path in source.rglob("*"):
        if path.is_dir():
            continue
        name = path.relative_to(source)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content) if str(name) == file else (place / name).symlink_to(path)
    return place


def outcome(load, folder: Path, file: str) -> str:
    "opens, refused, or what was wrong with the refusal."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(folder)
    except WeightsError as e:
        told = str(e)
        if "\n" in told or not told.endswith(".") or len(told) > 700:
            return f"not a sentence: {told[:200]!r}"
        if Path(file).name not in told and folder.name not in told:
            return f"names no file: {told[:200]!r}"
        return "refused"
    except BaseException as e:
        return f"{type(e).__name__}: {str(e)[:150]!r}"
    return "opens"


def targets(tmp_path):
    "Each JSON file of the packaged weights and of a diffusers folder, with what opens it."
    for name, folder in packaged().items():
        load = KINDS[name.split("-")[0]].load
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            if (folder / file).is_file():
                yield folder, file, lambda place, load=load: load(place, device="cpu")
    whole = diffusers_folder(tmp_path / "diffusers")
    for file in sorted(whole.rglob("*.json")):
        yield whole, str(file.relative_to(whole)), lambda place: stable_diffusion(place, device="cpu")


def run(tmp_path, seed, times):
    "Outcomes of damaged JSON: (file, outcome) → count."
    rng, found = random.Random(seed), Counter()
    for source, file, load in targets(tmp_path):
        for _ in range(times):
            content = damaged((source / file).read_bytes(), rng)
            what = outcome(load, linked(source, tmp_path / "place", file, content), file)
            found[f"{source.name}/{file}", what] += 1
    return found


def damaged_header(content: bytes, rng: random.Random) -> bytes:
    "A .safetensors file with one fault in its header; the numbers behind it stay."
    length = struct.unpack("<Q", content[:8])[0]
    header, numbers = content[8 : 8 + length], content[8 + length :]
    kind = rng.random()
    if kind < 0.15:
        return rng.choice(
            [
                b"",
                b"\0" * 8,
                b"\xff" * 8,
                struct.pack("<Q", 2**40),
                content[: rng.randrange(len(content))],
                struct.pack("<Q", length + 8) + content[8:],
            ]
        )
    if kind < 0.3:
        header = rng.choice(TEXTS)
    else:
        header = damaged(header, rng)
    return struct.pack("<Q", len(header)) + header + numbers


def test_damaged_json_beside_weights_opens_or_is_refused_in_a_sentence(tmp_path):
    found = run(tmp_path, seed=20, times=18)
    bad = {name: n for name, n in found.items() if name[1] not in ("opens", "refused")}
    assert not bad, bad
    assert sum(found.values()) >= 400 and sum(n for (_, what), n in found.items() if what == "refused") > 200


def test_damaged_headers_of_weights_are_refused_in_a_sentence(tmp_path):
    rng, source = random.Random(21), packaged()["mapper-green-hair"]
    content = (source / "model.safetensors").read_bytes()
    for _ in range(60):
        what = outcome(
            Mapper.load,
            linked(source, tmp_path / "place", "model.safetensors", damaged_header(content, rng)),
            "model.safetensors",
        )
        assert what in ("opens", "refused"), what
