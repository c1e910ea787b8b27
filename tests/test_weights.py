"""mmgen.base.weights: names, safe reading, strict loading, writing."""

import json
import pickle
import re
import struct
import subprocess
import sys
import textwrap
from fnmatch import fnmatch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mmgen.base import weights
from mmgen.base.files import repo_root
from mmgen.base.schema import WeightsError
from mmgen.base.weights import load_into, load_model, load_state, model_card, packaged, resolve, save_weights


def net(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


class RunsCode:
    "Unpickling it would make the file `path`."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    "Two packaged weights in a stand-in package, and a hub that is not there."
    root = tmp_path / "package"
    (root / "packaged").mkdir(parents=True)
    for name in ("clip-portraits", "oracle-portraits"):
        save_weights(root / "packaged" / name, net().state_dict(), {"width": 8}, "# card")
    (root / "packaged" / "unfinished").mkdir()
    monkeypatch.setattr(weights.mmgen, "__file__", str(root / "__init__.py"))

    def offline(*args, **kwargs):
        raise ConnectionError("no route to the hub\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    return root / "packaged"


def test_packaged_lists_whole_folders_only(shelf):
    assert packaged() == {"clip-portraits": shelf / "clip-portraits", "oracle-portraits": shelf / "oracle-portraits"}


def test_resolve_takes_a_path_then_a_packaged_name_then_the_hub(shelf, tmp_path, monkeypatch):
    assert resolve("clip-portraits") == shelf / "clip-portraits"
    assert resolve(tmp_path / "package") == tmp_path / "package"
    (tmp_path / "clip-portraits").mkdir()
    assert resolve("clip-portraits").resolve() == tmp_path / "clip-portraits"
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **kw: asked.append((name, kw)) or str(tmp_path)
    )
    assert resolve("openai/clip-vit-large-patch14") == tmp_path
    assert asked[0][0] == "openai/clip-vit-large-patch14" and "*.bin" not in asked[0][1]["allow_patterns"]
    resolve("openai/clip-vit-large-patch14", weights=False)
    assert "model.safetensors" in asked[0][1]["allow_patterns"] and not any(
        "safetensors" in form for form in asked[1][1]["allow_patterns"]
    )


def test_of_the_hub_old_files_are_fetched_where_there_are_no_others(shelf, tmp_path, monkeypatch):
    repository = {"unet/diffusion_pytorch_model.bin", "bert/pytorch_model.bin", "model_index.json"}

    def download(name, allow_patterns, **options):
        for file in repository:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / "hub" / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "hub" / file).write_bytes(pickle.dumps({}))
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = lambda: {
        str(file.relative_to(tmp_path / "hub")) for file in (tmp_path / "hub").rglob("*") if file.is_file()
    }
    resolve("owner/old", weights=False)
    assert found() == {"model_index.json"}
    repository.add("unet/diffusion_pytorch_model.safetensors")
    resolve("owner/new")
    assert found() == {"model_index.json", "unet/diffusion_pytorch_model.safetensors"}
    repository.discard("unet/diffusion_pytorch_model.safetensors")
    (tmp_path / "hub" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert resolve("owner/old") == tmp_path / "hub" and found() == repository


@pytest.mark.parametrize("name", ["clip-portrait", "", "/no/such/folder", "runs/model.safetensors", "../x"])
def test_resolve_names_what_there_is(shelf, name):
    with pytest.raises(
        WeightsError, match="There are no weights .* Packaged weights: clip-portraits, oracle-portraits"
    ):
        resolve(name)


def test_resolve_says_what_the_hub_said(shelf):
    with pytest.raises(WeightsError, match=r"'openai/clip' is not a folder .*no route to the hub\).*clip-portraits"):
        resolve("openai/clip")


def test_the_hub_is_not_imported_with_the_module():
    code = "import mmgen.base.weights, sys; print('huggingface_hub' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo_root(), check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.ckpt", "a.safetensors"])
def test_load_state_gives_float32(tmp_path, name):
    state = {
        "w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "h": torch.ones(2, 2, dtype=torch.float16),
        "count": torch.tensor(7),
    }
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    found = load_state(tmp_path / name)
    assert found["w"].dtype == found["h"].dtype == torch.float32 and found["w"].tolist() == [1.5, -2.0]
    assert found["count"].dtype == torch.int64 and found["count"] == 7


def test_load_state_finds_the_file_of_a_folder_and_the_state_of_a_checkpoint(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert load_state(tmp_path)["w"].tolist() == [1, 1]
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert load_state(tmp_path)["w"].tolist() == [0, 0]
    torch.save({"state_dict": {"w": torch.ones(3)}, "global_step": 5}, tmp_path / "last.ckpt")
    assert load_state(tmp_path / "last.ckpt")["w"].tolist() == [1, 1, 1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="The folder empty has no weights; model.safetensors or"):
        load_state(tmp_path / "empty")


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.bin", "a.pth"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "nested", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path, name, kind):
    burglar, file, trace = RunsCode(tmp_path / "ran"), tmp_path / name, tmp_path / "ran"
    if kind == "zip":
        torch.save(burglar, file)
    if kind == "legacy":
        torch.save(burglar, file, _use_new_zipfile_serialization=False)
    if kind == "nested":
        torch.save({"state_dict": {"w": torch.ones(1), "x": burglar}}, file)
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"w": burglar}))
    with pytest.raises(WeightsError, match=f"{name} was not opened: it asks for .*, which is no data"):
        load_state(file)
    assert not trace.exists()
    torch.load(file, weights_only=False) if kind == "zip" else None
    assert trace.exists() == (kind == "zip")  # the trap works where it is let go


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, name, part):
    save = save_file if name.endswith("safetensors") else torch.save
    save({"w": torch.randn(500), "v": torch.randn(50)}, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(WeightsError, match=f"{name} (is damaged|was not opened: it is)"):
        load_state(tmp_path / name)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.safetensors", b"hello, this is text", "a.safetensors is damaged"),
        ("a.pt", b"hello", "a.pt was not opened: it is damaged, cut short or no pickle"),
        ("a.txt", b"hello", "must end in one of .safetensors"),
        ("a.onnx", b"", "must end in one of .safetensors"),
    ],
)
def test_what_is_no_weights_is_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        load_state(tmp_path / name)
    with pytest.raises(WeightsError, match="There is no file gone.pt"):
        load_state(tmp_path / "gone.pt")


def test_a_state_dict_that_holds_itself_is_refused(tmp_path):
    endless = {}
    endless["state_dict"] = endless
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(endless))
    with pytest.raises(WeightsError, match="not a state dict"):
        load_state(tmp_path / "a.ckpt")


def test_nobodys_home_holds_no_weights():
    with pytest.raises(WeightsError, match="There are no weights '~nobody-at-all/x/y'"):
        resolve("~nobody-at-all/x/y")


@pytest.mark.parametrize("content", [{}, {"w": 3}, [torch.ones(1)], torch.ones(1)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="a.pt is not a state dict"):
        load_state(tmp_path / "a.pt")


def test_load_into_copies_everything():
    source, target = net(), net()
    with torch.no_grad():
        source[0].weight.fill_(3.0)
    assert load_into(target, source.state_dict(), "here") is target
    assert torch.equal(target[0].weight, source[0].weight)


def test_load_into_says_what_does_not_fit_and_leaves_the_module():
    module = net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = {k: v + 1 for k, v in net(width=6).state_dict().items()}
    del state["1.bias"]
    state |= {f"extra.{n}": torch.ones(1) for n in range(5)}
    with pytest.raises(WeightsError) as e:
        load_into(module, state, "clip-portraits")
    text = str(e.value)
    assert text.startswith("clip-portraits does not fit Sequential, it is of another architecture: 1 missing (1.bias);")
    assert "5 unexpected (extra.0, extra.1, extra.2, …)" in text
    assert "0.weight: (6, 4) for (8, 4)" in text and "6 of another shape" in text
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_save_weights_round_trip(tmp_path):
    module = net()
    state = module.state_dict() | {
        "big": torch.tensor([1e6]),
        "shared": module[0].weight,
        "view": torch.ones(4, 6)[:, ::2],
    }
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "tokenizer.json").write_text("{}")
    folder = save_weights(
        tmp_path / "w", state, {"widths": (1, 2)}, "# card\n\n", {"run_id": "r", "loss": float("nan")}
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "run.json",
        "tokenizer.json",
    ]
    with safe_open(folder / "model.safetensors", "pt") as f:
        kinds = {k: f.get_tensor(k).dtype for k in f.keys()}
    assert kinds["0.weight"] == torch.float16 and kinds["big"] == torch.float32
    assert kinds["1.num_batches_tracked"] == torch.int64
    found = load_state(folder)
    assert found["big"] == 1e6 and torch.equal(found["view"], torch.ones(4, 3))
    assert torch.allclose(found["0.weight"], module[0].weight, atol=1e-3)
    assert json.loads((folder / "config.json").read_text()) == {"widths": [1, 2]}
    assert json.loads((folder / "run.json").read_text()) == {"run_id": "r", "loss": "nan"}
    first = (folder / "model.safetensors").read_bytes()
    save_weights(folder, state, {"widths": (1, 2)}, "# card", None, half=True)
    assert (folder / "model.safetensors").read_bytes() == first
    save_weights(tmp_path / "full", module.state_dict(), {}, "", half=False)
    assert torch.equal(load_state(tmp_path / "full")["0.weight"], module[0].weight)


def test_a_full_disk_leaves_the_old_weights(tmp_path, monkeypatch):
    save_weights(tmp_path / "w", net().state_dict(), {}, "")
    before = (tmp_path / "w" / "model.safetensors").read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"par")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(tmp_path / "w", net(4).state_dict(), {}, "")
    assert (tmp_path / "w" / "model.safetensors").read_bytes() == before
    assert not list((tmp_path / "w").glob(".*"))


def test_model_card_tells_what_was_measured():
    run = {
        "run_id": "autoencoder-1",
        "start": "2026-01-01T00:00:00Z",
        "git": {"sha": None},
        "seed": 3,
        "wall_seconds": 12.5,
        "parameters": {"autoencoder": 2_500_000},
        "hardware": {"cpu": "x86", "cores": 2, "gpu": [{"name": "H100"}]},
        "metrics": [
            {"name": "PSNR", "value": 32.123456, "n": 500, "unit": "dB"},
            {"name": "a|b", "value": "nan", "n": None},
        ],
    }
    card = model_card(
        "autoencoder-portraits", {"latent_channels": 16, "widths": (1, 2)}, run, "It encodes.", "Portraits.", "64 px."
    )
    assert card.startswith("---\nlicense: apache-2.0\n") and "# autoencoder-portraits\n\nIt encodes." in card
    for line in (
        "| parameters, autoencoder | 2,500,000 |",
        "| PSNR, unit dB | 32.12 | 500 |",
        "| a/b | nan | – |",
        "| gpu | H100 |",
        "| latent_channels | 16 |",
        "| widths | [1, 2] |",
        "## Data\n\nPortraits.",
        "## Limits\n\n64 px.",
    ):
        assert line in card, line
    assert "commit" not in card and "None" not in card
    assert model_card("x", {}).startswith("---")


@pytest.mark.parametrize("name", sorted(packaged()))
def test_packaged_weights_are_complete(name):
    folder = packaged()[name]
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---") and json.loads(
        (folder / "run.json").read_text()
    )
    assert all(v.isfinite().all() for v in load_state(folder).values())


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.safetensors", b"<html>", "a.safetensors was not opened: it is a web page"),
        (
            "a.safetensors",
            b"\x80\x02]q\x00.",
            "a.safetensors was not opened: it is a zip or a pickle, as torch writes; its name must end in .pt",
        ),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "mine/model.safetensors was not opened: it is a pointer of git-lfs",
        ),
        ("model.safetensors", b"\x01", "mine/model.safetensors is damaged"),
    ],
)
def test_a_file_under_a_wrong_name_says_what_it_is_and_where(tmp_path, name, content, said):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        load_state(tmp_path / "mine" / name)


def test_rounded_weights_are_refused_and_what_is_not_finite_too(tmp_path):
    state = net().state_dict()
    for changed in (
        {k: (100 * v).to(torch.int8) for k, v in state.items()},
        {k: v.to(torch.float8_e5m2) for k, v in state.items()},
        state | {"0.qweight": torch.zeros(2, 2, dtype=torch.int32)},
        state | {"0.SCB": torch.zeros(2)},
    ):
        save_file(changed, tmp_path / "a.safetensors")
        with pytest.raises(
            WeightsError, match="a.safetensors has weights of 8 bits or fewer .*use the float16 or float32 weights"
        ):
            load_state(tmp_path / "a.safetensors")
    save_file({"index": torch.zeros(3, dtype=torch.int8), "w": torch.ones(2).bfloat16()}, tmp_path / "b.safetensors")
    assert (
        load_state(tmp_path / "b.safetensors")["w"].dtype == torch.float32
    )  # numbers of 8 bits that are no weights stay
    for bad in (float("nan"), float("inf")):
        with pytest.raises(
            WeightsError, match=r"mine does not fit Sequential: 1 with numbers that are not finite \(0.weight\)\."
        ):
            load_into(net(), state | {"0.weight": torch.full_like(state["0.weight"], bad)}, "mine")


class Small(nn.Module):
    def __init__(self, width: int = 2):
        super().__init__()
        self.layer = nn.Linear(width, width)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "mine/config.json cannot be read as JSON"),
        ("[]", "mine/config.json holds a list; an object"),
        ("null", "holds a NoneType; an object"),
        (
            '{"widths": 2, "_class_name": "x"}',
            "Small.load: mine holds another model: its config.json has widths, and a Small has width",
        ),
        ('{"width": "two"}', "holds another model"),
    ],
)
def test_a_config_that_is_another_models_is_said(tmp_path, text, said):
    save_weights(tmp_path / "mine", Small().state_dict(), {"width": 2}, "# Card")
    assert isinstance(load_model(Small, tmp_path / "mine"), Small)
    (tmp_path / "mine" / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=said):
        load_model(Small, tmp_path / "mine")


def test_what_the_hubs_cache_has_and_lacks_is_said(tmp_path, monkeypatch):
    place = tmp_path / "models--owner--sd" / "snapshots" / "abc"
    place.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: (_ for _ in ()).throw(ConnectionError("no route"))
    )
    with pytest.raises(
        WeightsError, match=r"was not downloaded from the hub \(no route\)\. The hub's cache has owner/sd\."
    ):
        resolve("owner/other")
    with pytest.raises(WeightsError, match="The hub's cache has owner/sd without unet"):
        resolve(place / "unet")
    with pytest.raises(WeightsError, match="There is no gone in the folder"):
        resolve(tmp_path / "gone")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"\n<!doctype HTML><title>Sign in</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull"),
        (b"GGUF\x03\0\0\0", "float16"),
        (struct.pack("<Q", 40) + b'{"w":{"dtype":"F32","shape":[1]}}', "its name must end in .safetensors"),
        (b"\x89PNG\r\n", "a picture"),
        (b"\x1f\x8b\x08", "unpack it"),
    ],
)
def test_what_comes_under_a_wrong_name_is_named(tmp_path, content, said):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.ckpt was not opened: it is .*" + re.escape(said)):
        load_state(tmp_path / "a.ckpt")


def test_floats_of_8_bits_in_a_torch_file_are_refused_in_words(tmp_path):
    torch.save({"w": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="such as 8-bit floats; use the float16"):
        load_state(tmp_path / "a.pt")


def test_half_precision_is_opened_without_a_second_copy(tmp_path):
    code = """
        import sys
        import torch
        from safetensors.torch import save_file
        from mmgen.base.weights import load_into, load_state
        make = lambda: torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(16)))
        with torch.device("meta"): network, small = make(), torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False))
        save_file({"0.weight": torch.ones(8, 8).half()}, sys.argv[1])
        load_into(small, load_state(sys.argv[1], half=True), "warm")
        halves = {name: torch.full(v.shape, 0.5, dtype=torch.float16) for name, v in network.state_dict().items()}
        save_file(halves, sys.argv[1])
        del halves
        size = 16 * 2048**2 * 2
        with open("/proc/self/clear_refs", "w") as file: file.write("5")  # the peak starts anew
        status = lambda name: next(line for line in open("/proc/self/status") if line.startswith(name))
        resident = lambda name: int(status(name).split()[1]) * 1024
        before = resident("VmRSS")
        load_into(network, load_state(sys.argv[1], half=True), "half")
        assert all(p.dtype == torch.float32 and (p == 0.5).all() for p in network.parameters())
        print((resident("VmHWM") - before) / size)"""
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "half.safetensors")],
        capture_output=True,
        text=True,
    )
    if "clear_refs" in child.stderr:
        pytest.skip("the peak of the memory cannot be read here")
    assert child.returncode == 0 and float(child.stdout) < 3.3, (
        child.stdout + child.stderr
    )  # file and float32: 1 + 2; with a copy 5


def test_large_sums_in_float16_are_finite_and_infinities_are_refused(tmp_path):
    for value, good in ((60_000.0, True), (torch.inf, False)):
        save_file({"weight": torch.full((8, 8), value).half()}, tmp_path / "a.safetensors")
        with torch.device("meta"):
            module = torch.nn.Linear(8, 8, bias=False)
        state = load_state(tmp_path / "a.safetensors", half=True)
        assert (
            state["weight"].dtype == torch.float16
            and load_state(tmp_path / "a.safetensors")["weight"].dtype == torch.float32
        )
        if good:
            assert torch.equal(load_into(module, state, "a").weight, torch.full((8, 8), 60_000.0))
        else:
            with pytest.raises(WeightsError, match="numbers that are not finite"):
                load_into(module, state, "a")
            assert module.weight.is_meta


def test_a_runs_folder_stands_for_its_only_weights(tmp_path):
    for name in ("model", "other"):
        save_weights(tmp_path / "run" / name, net().state_dict(), {"width": 8}, "# card")
        (tmp_path / "run" / "run.json").write_text("{}")
        if name == "model":
            assert resolve(tmp_path / "run") == tmp_path / "run" / "model"
    with pytest.raises(WeightsError, match="run is a run with model, other; name one of these folders"):
        resolve(tmp_path / "run")
    assert resolve(tmp_path / "run" / "other") == tmp_path / "run" / "other"
