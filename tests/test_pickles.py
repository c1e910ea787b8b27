"Pickles read as data: what torch and numpy write, what persistence and TensorFlow networks look like, and twenty files that want more."
import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mmgen.pickles import Plain, PickleError, read_pickle, state_of


@pytest.fixture
def module(monkeypatch):
    "Puts a module of classes where pickle can find it, as the original packages have them; the reader must not need it."
    def make(name, **content):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        for key, value in content.items():
            value.__module__, value.__qualname__ = name, key
            setattr(sys.modules[name], key, value)
        return sys.modules[name]
    return make


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_of_torch_in_both_forms(tmp_path, new, protocol):
    base = torch.randn(5, 6)
    content = {"state_dict": OrderedDict(a=base, b=base[1:, ::2], t=base.T, n=torch.tensor(3), h=torch.randn(2).half(), f=torch.randn(3).bfloat16(),
                                         i=torch.tensor([1, -2], dtype=torch.int8), e=torch.empty(0), p=torch.nn.Parameter(torch.ones(2))),
               "module": torch.nn.Linear(2, 3).state_dict(), "opts": Namespace(lr=0.1, names=["a", "b"]), "step": 7, "size": base.shape, "latent_avg": torch.zeros(2, 3), "np": np.arange(6).reshape(2, 3), "s": np.float32(2.5)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    found = read_pickle(tmp_path / "a.pt")
    for name, value in content["state_dict"].items():
        assert found["state_dict"][name].dtype == value.dtype and torch.equal(found["state_dict"][name], value), name
    assert list(found["module"]) == ["weight", "bias"]  # and not the attribute _metadata, which such a dict has
    assert found["opts"] == {"lr": 0.1, "names": ["a", "b"]} and found["step"] == 7 and found["size"] == (5, 6) and found["s"] == 2.5
    assert np.array_equal(found["np"], content["np"]) and type(found["state_dict"]["p"]) is torch.Tensor


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_numpy(tmp_path, protocol):
    content = [np.arange(6).astype(kind).reshape(2, 3) for kind in ("f2", "f4", "f8", "i1", "i8", "u1", ">f4", "?")] + [np.asfortranarray(np.eye(3)), np.float64(1.5)]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    assert all(np.array_equal(a, b) for a, b in zip(read_pickle(tmp_path / "a.pkl"), content, strict=True))
    for alone in (content[0], torch.arange(3)):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(alone, protocol))
        assert np.array_equal(read_pickle(tmp_path / "a.pkl"), alone)


def test_an_array_has_the_bytes_that_it_asks_for(tmp_path):
    class Greedy:
        def __reduce__(self): return np._core.numeric._frombuffer, (60_000_000, np.dtype("u1"), (60_000_000,), "C")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Greedy(), 2))
    with pytest.raises(PickleError, match="has no bytes"): read_pickle(tmp_path / "a.pkl")


def test_a_persistent_network_of_stylegan2_ada(tmp_path, module):
    "Layout: a call of torch_utils.persistence._reconstruct_persistent_obj with class_name, module_src and state, tensors in old torch files within."
    def _reconstruct_persistent_obj(meta): raise AssertionError("was called")
    EasyDict = type("EasyDict", (dict,), {})
    module("torch_utils.persistence", _reconstruct_persistent_obj=_reconstruct_persistent_obj)
    module("dnnlib.util", EasyDict=EasyDict)

    class Network(torch.nn.Linear):
        def __reduce__(self):
            meta = EasyDict(type="class", version=6, module_src="raise AssertionError('was run')", class_name="Generator", state=dict(self.__dict__))
            return _reconstruct_persistent_obj, (meta,)

    net = Network(3, 2)
    net.register_buffer("w_avg", torch.ones(4))
    net.inner = Network(2, 2)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"G_ema": net, "training_set_kwargs": EasyDict(path="x")}))
    del sys.modules["torch_utils.persistence"], sys.modules["dnnlib.util"]
    found = read_pickle(tmp_path / "a.pkl")
    state = state_of(found["G_ema"])
    assert found["G_ema"].kind == "Generator" and found["training_set_kwargs"] == {"path": "x"}
    assert state.keys() == net.state_dict().keys() and all(torch.equal(state[k], v) for k, v in net.state_dict().items())


def test_a_tensorflow_network(tmp_path, module):
    class Network:
        def __init__(self, name, variables, components):
            self.about = {"version": 4, "name": name, "static_kwargs": {"resolution": 8}, "components": components, "build_module_src": "raise SystemExit",
                          "variables": variables}

        def __getstate__(self): return self.about

        def __setstate__(self, state): raise AssertionError("was called")

    module("dnnlib.tflib.network", Network=Network)
    part = Network("G_mapping", [("Dense0/weight", np.ones((2, 3), np.float32))], {})
    whole = Network("G", [("dlatent_avg", np.zeros(4, np.float32))], {"mapping": part})
    (tmp_path / "a.pkl").write_bytes(pickle.dumps((whole, whole, whole), 4))
    del sys.modules["dnnlib.tflib.network"]
    network = read_pickle(tmp_path / "a.pkl")[2]
    assert network.kind == "dnnlib.tflib.network.Network" and network.state["static_kwargs"] == {"resolution": 8}
    assert {k: tuple(v.shape) for k, v in state_of(network).items()} == {"dlatent_avg": (4,), "mapping/Dense0/weight": (2, 3)}


def test_callbacks_of_a_trainer_are_names_only(tmp_path, module):
    ModelCheckpoint = type("ModelCheckpoint", (), {})
    module("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=ModelCheckpoint)
    torch.save({"state_dict": {"w": torch.ones(1)}, "callbacks": {ModelCheckpoint: {"best": 1.0}}}, tmp_path / "a.ckpt")
    del sys.modules["pytorch_lightning.callbacks.model_checkpoint"]
    found = read_pickle(tmp_path / "a.ckpt")
    (kind,) = found["callbacks"]
    assert issubclass(kind, Plain) and kind.kind == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint" and found["state_dict"]["w"] == 1


class Call:
    def __init__(self, function, *arguments): self.call = function, arguments

    def __reduce__(self): return self.call


def raw(*parts): return b"\x80\x04" + b"".join(parts) + b"."


def name(module, attribute): return b"c" + f"{module}\n{attribute}\n".encode()


def saved_torch(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def changed_zip(change):
    "A torch file whose entries went through `change`: name, content → name, content, compression."
    file, out = io.BytesIO(saved_torch({"w": torch.ones(4)})), io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            where, content, how = change(entry.filename, old.read(entry))
            new.writestr(where, content, how)
    return out.getvalue()


def malicious(witness):
    "Twenty files, by what they try; most would leave the file `witness` behind."
    touch, src = f"touch {witness}", f"open({str(witness)!r}, 'w')"
    nested = pickle.dumps(Call(os.system, touch))
    rebuild, ordered = name("torch._utils", "_rebuild_tensor_v2"), OrderedDict
    stored = lambda swap: changed_zip(lambda where, content: (where, swap(content) if where.endswith("data.pkl") else content, zipfile.ZIP_STORED))
    return {
        "os.system": (nested, "system"),
        "builtins.eval": (pickle.dumps(Call(builtins.eval, src)), "builtins.eval"),
        "builtins.exec in a list in a dict": (pickle.dumps({"state_dict": [Call(builtins.exec, src)]}), "builtins.exec"),
        "a reduce that makes the arguments of another": (pickle.dumps(Call(os.system, Call(str, touch))), "system"),
        "pickle.loads of a pickle within": (pickle.dumps(Call(pickle.loads, nested)), "loads"),
        "subprocess": (pickle.dumps(Call(subprocess.check_output, ["touch", str(witness)])), "subprocess.check_output"),
        "getattr on what is allowed": (pickle.dumps(Call(getattr, OrderedDict, "fromkeys")), "builtins.getattr"),
        "importlib": (raw(name("importlib", "import_module"), b"\x8c\x02os\x85R"), "importlib.import_module"),
        "an attribute of an allowed name": (raw(b"\x8c\x0bcollections\x8c\x1dOrderedDict.fromkeys.__self__\x93"), "OrderedDict.fromkeys"),
        "the old opcode for instances": (b"(S'" + touch.encode() + b"'\nios\nsystem\n.", "os.system"),
        "a state that is a call": (raw(name("dnnlib.util", "EasyDict"), b")\x81}\x8c\x01a" + name("os", "system") + b"\x8c\x04true\x85Rsb"), "os.system"),
        "the registry of extensions": (raw(b"\x82\x01"), "extensions"),
        "a persistent id in a bare pickle": (raw(b"\x8c\x07storageQ"), "persistent id"),
        "a persistent id of torch with a call in it": (saved_torch({"w": torch.ones(2), "x": Call(os.system, touch)}), "system"),
        "torch.load within": (raw(name("torch.storage", "_load_from_bytes"), b"B" + struct.pack("<I", len(nested)) + nested + b"\x85R"), "system"),
        "a whole module with its source": (raw(name("torch.nn.modules.linear", "Linear"), b")\x81."), "torch.nn.modules.linear.Linear"),
        "a memo of four billion": (raw(b"]r" + struct.pack("<I", 2**32 - 1)), "only takes memory"),
        "a text of a terabyte": (raw(b"\x8d" + struct.pack("<Q", 2**40) + b"abc"), "cut short"),
        "a tensor larger than its storage": (stored(lambda content: content.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85")), "storage of"),
        "a compressed bomb": (changed_zip(lambda where, content: (where, content + b"\0" * 10**8 if "/data/" in where else content, zipfile.ZIP_DEFLATED)), "compressed"),
    }


def test_there_are_twenty(tmp_path):
    assert len(malicious(tmp_path / "witness")) == 20


@pytest.mark.parametrize("which", list(malicious("x")))
def test_none_runs_and_each_is_refused_with_its_reason(which, tmp_path):
    witness = tmp_path / "witness"
    content, reason = malicious(witness)[which]
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(PickleError, match=r"a\.pkl was not opened: .*" + reason):
        read_pickle(tmp_path / "a.pkl")
    assert not witness.exists()


def test_refusing_takes_no_second_and_no_memory(tmp_path):
    "All twenty in one fresh process; the limit of address space is what torch needs plus 500 MB."
    for i, (content, _) in enumerate(malicious(tmp_path / "witness").values()):
        (tmp_path / f"{i}.pkl").write_bytes(content)
    code = ("import resource, sys, time, pathlib, mmgen.pickles as p\n"
            "vm = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()\n"
            "resource.setrlimit(resource.RLIMIT_AS, (vm + 500*2**20,)*2)\n"
            "for f in sorted(pathlib.Path(sys.argv[1]).glob('*.pkl')):\n"
            "    start = time.process_time()\n"
            "    try: p.read_pickle(f)\n"
            "    except p.PickleError: print(round(time.process_time() - start, 3))\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    seconds = list(map(float, done.stdout.split()))
    assert len(seconds) == 20 and max(seconds) < 1, done.stderr
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04", b"PK\x03\x04nonsense", b"\x80\x02]q\x00(K\x01", b"<!DOCTYPE html><html></html>"])
def test_damaged_files_are_one_sentence(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(PickleError, match="a.pt was not opened"):
        read_pickle(tmp_path / "a.pt")


def test_every_cut_of_a_file_is_refused(tmp_path):
    for new in (True, False):
        whole = saved_torch({"w": torch.arange(8.), "opts": Namespace(a=1)}, _use_new_zipfile_serialization=new)
        for at in range(1, len(whole) - 1, 37):
            (tmp_path / "a.pt").write_bytes(whole[:at])
            with pytest.raises(PickleError):
                read_pickle(tmp_path / "a.pt")


def test_what_is_no_network_is_said(tmp_path):
    with pytest.raises(PickleError, match="list is no network"):
        state_of([1])
