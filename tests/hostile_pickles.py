"""Pickles that want more than to be read, damaged ones, and a process with limits that opens them.

`python tests/hostile_pickles.py FOLDER` opens every file of a folder and prints a line of JSON for each:
what came of it, seconds, memory."""

import argparse
import collections
import faulthandler
import io
import json
import os
import pickle
import pickletools
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

SECONDS, MEMORY = 20, 2**29  # for each file; for all, beyond what the process has after its imports


# ---------------------------------------------------------------- parts of a pickle
def pickled(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


def name(module, attribute):
    return b"c" + f"{module}\n{attribute}\n".encode()


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def raw(data):
    return b"B" + struct.pack("<I", len(data)) + data


def number(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tup(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(module, attribute, *args):
    return name(module, attribute) + tup(*args) + b"R"


def entries(*parts):
    return b"}(" + b"".join(parts) + b"u"


NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def rezipped(change, data=None, **options):
    "A torch file whose entries went through `change`: name, bytes → name, bytes; checksums are right."
    file, out = io.BytesIO(saved({"w": torch.arange(4.0)}) if data is None else data), io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w", **options) as new:
        for entry in old.infolist():
            for where, data in change(entry.filename, old.read(entry)):
                new.writestr(where, data)
    return out.getvalue()


def torch_zip(main, storages=None, root="archive"):
    "A torch file with this pickle and these storages"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for where, data in {
            "data.pkl": main,
            "byteorder": b"little",
            **{f"data/{k}": v for k, v in (storages or {}).items()},
            "version": b"3\n",
        }.items():
            file.writestr(f"{root}/{where}", data)
    return out.getvalue()


def stored(kind="FloatStorage", key="0", count=4, module="torch", first="storage"):
    return (
        tup(
            short(first),
            name(module, kind),
            short(key) if isinstance(key, str) else key,
            short("cpu"),
            number(count) if isinstance(count, int) else count,
        )
        + b"Q"
    )


def tensor(storage=None, offset=0, size=(4,), stride=(1,), more=FALSE + call("collections", "OrderedDict")):
    "The call that makes a tensor of a storage of the same file"
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + tup(storage or stored(), number(offset), tup(*map(number, size)), tup(*map(number, stride)), more)
        + b"R"
    )


def shape(array_shape, code="f4", data=b"\0" * 16, order=b"<", more=FALSE):
    "The call that makes an array"
    dtype = (
        call("numpy", "dtype", short(code), FALSE, TRUE)
        + tup(number(3), short(order.decode()), NONE, NONE, NONE, number(-1), number(-1), number(0))
        + b"b"
    )
    return (
        call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), tup(number(0)), raw(b"b"))
        + tup(number(1), tup(*map(number, array_shape)), dtype, more, raw(data))
        + b"b"
    )


def legacy(main, keys=b"]", numbers=b"", facts=None, magic=0x1950A86A20F9469CFC6C):
    "A torch file of before 2020"
    parts = [magic, 1001, {"protocol_version": 1001, "little_endian": True} if facts is None else facts]
    return b"".join(pickle.dumps(part, 2) for part in parts) + main + pickled(keys) + numbers


def inner(main=None, **options):
    "The bytes of a storage in the old form, as plain pickles hold it"
    storage = tup(short("storage"), name("torch", "FloatStorage"), short("0"), short("cpu"), number(4), NONE) + b"Q"
    return legacy(
        pickled(storage) if main is None else main,
        **{"keys": b"](" + short("0") + b"e", "numbers": struct.pack("<q", 4) + b"\0" * 16} | options,
    )


class Call:
    "An object whose pickle is a call"

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# ---------------------------------------------------------------- hostile files
def hostile(witness="witness"):
    "Name → bytes. Most of those that call something would leave the file `witness`."
    touch = f"touch {witness}"
    address, function = struct.pack("<Q", 0x4141414141414140), struct.pack("<Q", id(os.system))
    array = lambda where, count=1: name("numpy", "ndarray") + tup(tup(number(count)), short("O"), raw(where)) + b"R"
    system = call("posix", "system", short(touch))
    change = lambda old, new: rezipped(
        lambda where, data: [(where, data.replace(old, new) if where.endswith("data.pkl") else data)]
    )
    twice = lambda first, step, times: first + b"\x94" + b"".join(step(i) for i in range(times))
    pair = lambda kind: lambda i: b"(h" + bytes([i]) + b"h" + bytes([i]) + kind
    level = lambda data: pickled(
        tup(call("torch.storage", "_load_from_bytes", raw(data)), call("torch.storage", "_load_from_bytes", raw(data)))
    )
    files, nested = {}, pickle.dumps(Call(os.system, touch))
    # calls
    files |= {
        f"call {title}": pickle.dumps(content)
        for title, content in {
            "os.system": Call(os.system, touch),
            "eval": Call(eval, f"open({str(witness)!r}, 'w')"),
            "exec in a list": {"state_dict": [Call(exec, f"open({str(witness)!r}, 'w')")]},
            "arguments that are called": Call(os.system, Call(str, touch)),
            "pickle.loads": Call(pickle.loads, nested),
            "subprocess": Call(subprocess.check_output, ["touch", str(witness)]),
            "getattr": Call(getattr, collections.OrderedDict, "fromkeys"),
            "torch.load": Call(torch.load, str(witness)),
            "numpy.load": Call(np.load, str(witness)),
            "exit": Call(os._exit, 3),
            "kill": Call(os.kill, 0, 9),
            "open": Call(open, str(witness), "w"),
            "map": Call(map, os.system, [touch]),
            "__import__": Call(__import__, "os"),
        }.items()
    }
    files |= {
        "call by STACK_GLOBAL": pickled(short("posix"), short("system"), b"\x93", tup(short(touch)), b"R"),
        "call by INST": b"(S'" + touch.encode() + b"'\niposix\nsystem\n.",
        "call by OBJ": pickled(b"(", name("posix", "system"), short(touch), b"o"),
        "call by NEWOBJ": pickled(name("posix", "system"), tup(short(touch)), b"\x81"),
        "call by NEWOBJ_EX": pickled(name("posix", "system"), tup(short(touch)), b"}\x92"),
        "call in a state": pickled(name("dnnlib.util", "EasyDict"), b")\x81", entries(short("a"), system), b"b"),
        "call in a torch file": saved({"w": torch.ones(2), "x": Call(os.system, touch)}),
        "call in an old torch file": saved(Call(os.system, touch), _use_new_zipfile_serialization=False),
        "call in a file within": pickled(call("torch.storage", "_load_from_bytes", raw(nested))),
        "call in a storage within": pickled(call("torch.storage", "_load_from_bytes", raw(inner(pickled(system))))),
        "call of an attribute": pickled(
            short("collections"), short("OrderedDict.fromkeys.__func__"), b"\x93", tup(b"]"), b"R"
        ),
        "call of a call's result": pickled(
            name("builtins", "getattr"), tup(name("os", "path"), short("os")), b"R", tup(short(touch)), b"R"
        ),
        "call in a persistent id": torch_zip(pickled(system + b"Q")),
        "call as a device": torch_zip(
            pickled(tup(short("storage"), name("torch", "FloatStorage"), short("0"), system, number(4)) + b"Q"),
            {"0": b"\0" * 16},
        ),
        "call in a key": pickled(entries(system, number(1))),
        "call of a reduced parameter": pickled(call("torch._utils", "_rebuild_parameter", system, TRUE, NONE)),
        "call as a constructor": pickled(
            call("copyreg", "_reconstructor", name("posix", "system"), name("builtins", "object"), NONE)
        ),
        "call by a tensor's type": pickled(
            call(
                "torch._tensor",
                "_rebuild_from_type_v2",
                name("posix", "system"),
                name("torch", "Tensor"),
                tup(short(touch)),
                b"}",
            )
        ),
        "call by defaultdict": pickled(call("collections", "defaultdict", name("posix", "system"))),
        "call by partial": pickled(call("functools", "partial", name("posix", "system"), short(touch)), b")R"),
    }
    # objects of an address
    files |= {
        f"address in {kind[1]} by {how}": pickled(name(*kind), tup(array(where)), code)
        for kind in (
            ("builtins", "set"),
            ("builtins", "tuple"),
            ("torch", "Size"),
            ("builtins", "frozenset"),
            ("collections", "OrderedDict"),
        )
        for how, code, where in (("REDUCE", b"R", address), ("NEWOBJ", b"\x81", address))
    }
    files |= {
        "address alone": pickled(array(address)),
        "address of a function": pickled(name("builtins", "set"), tup(array(function)), b"R"),
        "address as a key": pickled(entries(array(address), NONE)),
        "address by _frombuffer": pickled(
            call(
                "numpy.core.numeric",
                "_frombuffer",
                raw(address),
                call("numpy", "dtype", short("O8"), FALSE, TRUE),
                tup(number(1)),
                short("C"),
            )
        ),
        "address by scalar": pickled(
            call("numpy.core.multiarray", "scalar", call("numpy", "dtype", short("O"), FALSE, TRUE), raw(address))
        ),
        "address by an array's state": pickled(shape((1,), "O", address)),
        "address in a record": pickled(shape((1,), "O,O", address * 2)),
        "objects without a file's bytes": pickled(array(b"", 400_000_000)),
        "objects, 400 million": pickled(name("numpy", "ndarray"), tup(tup(number(400_000_000)), short("O")), b"R"),
        "array from nothing": pickled(call("numpy", "empty", tup(number(10**9)))),
        "array of 10 GB": pickled(call("numpy", "ndarray", tup(number(10 * 2**30)), short("u1"))),
        "array with negative strides": pickled(
            call("numpy", "ndarray", tup(number(4)), short("u1"), raw(b"abcd"), number(0), tup(number(-4096)))
        ),
    }
    # changes of the reader
    files |= {
        f"BUILD on {m}.{a} with {key}": pickled(name(m, a), tup(NONE, entries(short(key), value)), b"b")
        for m, a in (
            ("_codecs", "encode"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("collections", "OrderedDict"),
            ("numpy", "ndarray"),
            ("torch.storage", "_load_from_bytes"),
        )
        for key, value in (("__defaults__", b")"), ("__kwdefaults__", entries(short("x"), NONE)), ("__doc__", NONE))
    }
    files |= {
        "BUILD on a class": pickled(name("argparse", "Namespace"), entries(short("__init__"), NONE), b"b"),
        "BUILD on a text": pickled(short("a"), b"}b"),
        "BUILD on a number": pickled(b"K\1}b"),
        "BUILD on a tuple": pickled(b")}b"),
        "BUILD with __class__": pickled(
            name("argparse", "Namespace"), b")\x81", entries(short("__class__"), name("os", "system")), b"b"
        ),
        "SETITEMS on a name": pickled(name("os", "environ"), b"(", short("a"), short("b"), b"u"),
        "APPENDS on a name": pickled(name("sys", "path"), b"(", short("a"), b"e"),
        "ADDITEMS on a text": pickled(short("a"), b"(K\1\x90"),
    }
    # tensors
    numbers, grow = {"0": b"\0" * 16}, tup(stored(), number(0), tup(number(2000)), tup(number(1)))
    files |= {
        f"tensor {title}": torch_zip(pickled(part), numbers)
        for title, part in {
            "grown by BUILD": tensor() + grow + b"b",
            "grown by a parameter's BUILD": call("torch._utils", "_rebuild_parameter", tensor(), TRUE, NONE)
            + grow
            + b"b",
            "larger than its storage": tensor(size=(5,)),
            "at an offset": tensor(offset=1),
            "at a negative offset": tensor(offset=-1),
            "at a huge offset": tensor(offset=2**62),
            "with a negative stride": tensor(stride=(-1,)),
            "with a huge stride": tensor(stride=(2**61,)),
            "with a stride that overflows": tensor(size=(3,), stride=(2**63,)),
            "of a negative size": tensor(size=(-4,)),
            "with more strides": tensor(stride=(1, 1)),
            "repeated a billion times": tensor(size=(10**9,), stride=(0,)),
            "of size 2^62 and 0": tensor(size=(2**62, 0), stride=(1, 1)),
            "of sizes that overflow": tensor(size=(2**32, 2**32), stride=(0, 0)),
            "of 20,000 sizes": tensor(size=(1,) * 20_000, stride=(0,) * 20_000),
            "whose sizes are texts": name("torch._utils", "_rebuild_tensor_v2")
            + tup(stored(), number(0), tup(short("4")), tup(number(1)), FALSE, NONE)
            + b"R",
            "without arguments": call("torch._utils", "_rebuild_tensor_v2"),
            "of a number": tensor(number(4)),
            "of a tensor": tensor(tensor()),
            "of a list": tensor(b"]"),
            "whose storage is a billion": tensor(stored(count=10**9)),
            "whose storage is negative": tensor(stored(count=-1)),
            "whose storage is a text": tensor(stored(count=short("4"))),
            "of doubles": tensor(stored("DoubleStorage")),
            "of an unknown type": tensor(stored("system", module="posix")),
            "of a dtype": tensor(stored("Tensor")),
            "elsewhere": tensor(stored(key="1")),
            "at an absolute name": tensor(stored(key="/etc/passwd")),
            "above": tensor(stored(key="../../../etc/passwd")),
            "whose key is a number": tensor(stored(key=number(0))),
            "whose key is a list": tensor(stored(key=b"]")),
            "of two types": tup(tensor(), tensor(stored("IntStorage"))),
            "of a module": tensor(stored(first="module")),
            "with metadata": tensor(more=FALSE + NONE + entries(short("neg"), TRUE)),
            "of a type": call(
                "torch._tensor",
                "_rebuild_from_type_v2",
                name("torch._utils", "_rebuild_tensor_v2"),
                name("torch", "Tensor"),
                tup(stored(), number(0), tup(number(2000)), tup(number(1))),
                b"}",
            ),
            "shown a thousand times": b"]("
            + b"".join(tensor(size=(1000, 4), stride=(0, 1)) for _ in range(1000))
            + b"e",
            "changed by items": tensor() + b"(K\1K\2u",
            "that is set_": call("torch._C._TensorBase", "set_", tensor(), stored()),
            "of a storage of no tuple": short("storage") + b"Q",
            "of an empty id": b")Q",
            "of an id in an id": tup(tensor(), tensor()) + b"Q",
        }.items()
    }
    files |= {
        f"storage within, {title}": pickled(part)
        for title, part in {
            "22 deep": b"",
            "of a number": call("torch.storage", "_load_from_bytes", number(4)),
            "of nothing": call("torch.storage", "_load_from_bytes", raw(b"")),
            "of a zip": call("torch.storage", "_load_from_bytes", raw(saved(torch.ones(2)))),
            "without its numbers": call(
                "torch.storage", "_load_from_bytes", raw(inner(numbers=struct.pack("<q", 4) + b"\0" * 15))
            ),
            "without its key": call("torch.storage", "_load_from_bytes", raw(inner(keys=b"]"))),
            "of a dict": call("torch.storage", "_load_from_bytes", raw(inner(pickled(b"}")))),
            "of a million numbers": call(
                "torch.storage", "_load_from_bytes", raw(inner(numbers=struct.pack("<q", 10**6) + b"\0" * 16))
            ),
            "a megabyte, opened 20,000 times": raw(inner(numbers=struct.pack("<q", 4) + b"\0" * 2**20))
            + b"\x940]("
            + (name("torch.storage", "_load_from_bytes") + b"h\0\x85R") * 20_000
            + b"e",
        }.items()
        if part
    }
    deep = inner()
    for _ in range(22):
        deep = level(deep) if len(deep) < 2**21 else deep
    files["storage within, nested"] = deep
    deep = inner()
    for _ in range(22):
        deep = inner(pickled(raw(deep), b"\x940", tup(*[name("torch.storage", "_load_from_bytes") + b"h\0\x85R"] * 2)))
    files["storage within, 22 deep, twice each"] = pickled(call("torch.storage", "_load_from_bytes", raw(deep)))
    # old torch files
    entry = pickled(
        tup(short("storage"), name("torch", "FloatStorage"), short("0"), short("cpu"), number(4), NONE) + b"Q"
    )
    huge = pickled(
        tup(short("storage"), name("torch", "FloatStorage"), short("0"), short("cpu"), number(10**10), NONE) + b"Q"
    )
    listed = b"](" + short("0") + b"e"
    files |= {
        "old file without numbers": legacy(entry, listed),
        "old file without keys": legacy(entry, numbers=struct.pack("<q", 4) + b"\0" * 16),
        "old file of 40 GB": legacy(huge, listed, struct.pack("<q", 10**10)),
        "old file with a negative length": legacy(entry, listed, struct.pack("<q", -4) + b"\0" * 16),
        "old file whose keys are no list": legacy(entry, number(3), struct.pack("<q", 4) + b"\0" * 16),
        "old file whose keys are lists": legacy(entry, b"](]e", struct.pack("<q", 4) + b"\0" * 16),
        "old file with a key twice": legacy(
            entry, b"](" + short("0") * 2 + b"e", (struct.pack("<q", 4) + b"\0" * 16) * 2
        ),
        "old file of a big-endian machine": legacy(
            entry, listed, struct.pack("<q", 4) + b"\0" * 16, {"little_endian": False}
        ),
        "old file whose facts are a text": legacy(entry, listed, struct.pack("<q", 4) + b"\0" * 16, "x"),
        "old file with a view": legacy(
            pickled(
                tup(
                    short("storage"),
                    name("torch", "FloatStorage"),
                    short("0"),
                    short("cpu"),
                    number(4),
                    tup(short("1"), number(0), number(2)),
                )
                + b"Q"
            ),
            listed,
            struct.pack("<q", 4) + b"\0" * 16,
        ),
    }
    # arrays
    files |= {
        f"array {title}": pickled(part)
        for title, part in {
            "of 10^12 numbers": shape((10**12,)),
            "of a negative shape": shape((-4,)),
            "of sizes that overflow": shape((2**32, 2**32), data=b""),
            "of size 2^62 and 0": shape((0, 2**62), data=b""),
            "of too few bytes": shape((5,)),
            "of 20,000 axes": shape((1,) * 20_000, data=b"\0" * 4),
            "of a strange type": shape((4,), "x9"),
            "of records": shape((2,), "V8"),
            "of texts": shape((1,), "U4"),
            "of dates": shape((2,), "M8"),
            "of long doubles": shape((1,), "f16"),
            "of a type of a megabyte": call("numpy", "dtype", b"X" + struct.pack("<I", 2**20) + b"f" * 2**20),
            "of a type that is a number": call("numpy", "dtype", number(4)),
            "whose state is a number": call("numpy.core.multiarray", "_reconstruct", NONE) + number(1) + b"b",
            "whose state is short": call("numpy.core.multiarray", "_reconstruct", NONE) + tup(number(1)) + b"b",
            "without a state": call(
                "numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), tup(number(10**9)), raw(b"f8")
            ),
            "from a number": call(
                "numpy.core.numeric",
                "_frombuffer",
                number(6 * 10**7),
                call("numpy", "dtype", short("u1")),
                tup(number(6 * 10**7)),
                short("C"),
            ),
            "of an array": call("numpy.core.numeric", "_frombuffer", shape((4,)), NONE, NONE, NONE),
            "with odd order": shape((2, 2), more=short("Q")),
            "scalar of two": call(
                "numpy.core.multiarray", "scalar", call("numpy", "dtype", short("f4")), raw(b"\0" * 8)
            ),
            "bytes changed by SETITEMS": shape((4,)) + b"(K\0K\1u",
            "memory map": call("numpy", "memmap", short("/etc/passwd")),
            "encoded otherwise": call("_codecs", "encode", short("a"), short("rot13")),
            "encoded from a number": call("_codecs", "encode", number(4)),
            "bytes from a number": call("builtins", "bytes", number(10**10)),
            "bytearray from a number": call("builtins", "bytearray", number(10**10)),
        }.items()
    }
    # time, memory, depth
    many = lambda part, times, end: part * times + end
    deep_tuple = b")" + b"\x85" * 200_000
    collide = b"".join(number(i * (2**61 - 1)) + NONE for i in range(20_000))
    numbered = b"".join(short(f"{i}") + b"N" for i in range(50_000))
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6
    orbit = []
    slot = 1
    for _ in range(60_000):
        orbit.append(slot)
        slot = (5 * slot + 1) % 2**18
    files |= {
        "tuples 200,000 deep": pickled(deep_tuple),
        "tuples 200,000 deep in a frozenset": pickled(b"(" + deep_tuple + b"\x91"),
        "tuples 200,000 deep as a key": pickled(entries(deep_tuple, NONE)),
        "tuples 200,000 deep as a call": pickled(name("a", "b"), deep_tuple, b"R"),
        "lists 200,000 deep": pickled(b"]" * 200_000, b"a" * 199_999),
        "dicts 100,000 deep": pickled(b"}K\1" * 100_000, b"}", b"s" * 100_000),
        "calls 100,000 deep": pickled(many(name("a", "b") + b"(", 50_000, b"") + b"tR" * 50_000),
        "states 50,000 deep": pickled(many(name("a", "b") + b")\x81", 50_000, b"N") + b"b" * 50_000),
        "depth by the memo": pickled(b"](" + b")\x94" + b"h\0\x85q\0" * 100_000 + b"e"),
        "marks, 600,000": b"\x80\x04" + b"(" * 600_000 + b"N.",
        "lists, 600,000": pickled(b"]" * 600_000),
        "dicts in a list, 450,000": pickled(b"](" + b"}" * 450_000 + b"e"),
        "tuples in a list, 200,000": pickled(b"](" + b"N\x85" * 200_000 + b"e"),
        "opcodes, a million": pickled(b"N0" * 500_000, b"N"),
        "billion laughs of tuples": pickled(twice(b")", pair(b"t\x94"), 60)),
        "billion laughs of lists": pickled(twice(b"]", pair(b"l\x94"), 60)),
        "billion laughs of dicts": pickled(
            twice(b"}", lambda i: b"}(K\1h" + bytes([i]) + b"K\2h" + bytes([i]) + b"u\x94", 60)
        ),
        "billion laughs of keys": pickled(twice(b")", pair(b"t\x94"), 60) + b"}h\x3cNs"),
        "billion laughs of a set": pickled(twice(b")", pair(b"t\x94"), 60) + b"\x8f(h\x3c\x90"),
        "billion laughs of calls": pickled(
            twice(b")", lambda i: name("a", "b") + b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86R\x94", 60)
        ),
        "billion laughs of states": pickled(
            twice(
                b"N",
                lambda i: (
                    name("argparse", "Namespace")
                    + b")\x81}("
                    + short("a")
                    + b"h"
                    + bytes([i])
                    + short("b")
                    + b"h"
                    + bytes([i])
                    + b"ub\x94"
                ),
                60,
            )
        ),
        "laughs by set(list)": pickled(
            b"](" + b"N" * 10**5 + b"e\x940](" + (name("builtins", "set") + b"h\0\x85R") * 10_000 + b"e"
        ),
        "laughs by OrderedDict(dict)": pickled(
            b"}("
            + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(9_000))
            + b"u\x940]("
            + (name("collections", "OrderedDict") + b"h\0\x85R") * 10_000
            + b"e"
        ),
        "laughs by Namespace": pickled(
            b"}(" + numbered + b"u\x940](" + (name("argparse", "Namespace") + b")\x81h\0b") * 10_000 + b"e"
        ),
        "laughs by encode": pickled(
            b"X"
            + struct.pack("<I", 10**6)
            + b"a" * 10**6
            + b"\x940]("
            + (name("_codecs", "encode") + b"h\0\x85R") * 10_000
            + b"e"
        ),
        "laughs by arrays": pickled(
            raw(b"\0" * 10**6)
            + b"\x940]("
            + (
                call(
                    "numpy.core.numeric",
                    "_frombuffer",
                    b"h\0",
                    call("numpy", "dtype", short("u1")),
                    tup(number(10**6)),
                    short("C"),
                )
            )
            * 5_000
            + b"e"
        ),
        "laughs by torch.device": pickled(
            b"X"
            + struct.pack("<I", 10**6)
            + b"a" * 10**6
            + b"\x940]("
            + (name("torch", "device") + b"h\0\x85R") * 10_000
            + b"e"
        ),
        "laughs by names": pickled(text + b"\x94" + short("b") + b"\x9400](" + b"h\0h\1\x93" * 20_000 + b"e"),
        "laughs by arguments": pickled(
            b"(" + NONE * 100_000 + b"t\x940](" + (name("a", "b") + b"h\0R") * 20_000 + b"e"
        ),
        "laughs by mentions of a tensor": torch_zip(
            pickled(tensor(size=(2**18,)) + b"\x940](" + b"h\0" * 20_000 + b"e").replace(number(4), number(2**18)),
            {"0": bytes(2**20)},
        ),
        "laughs by mentions of an array": pickled(
            shape((2**18,), data=bytes(2**20)) + b"\x940](" + b"h\0" * 20_000 + b"e"
        ),
        "keys that collide": pickled(b"}(", collide, b"u"),
        "elements that collide": pickled(b"\x8f(", b"".join(number(i * (2**61 - 1)) for i in range(20_000)), b"\x90"),
        "keys that follow one another's places": pickled(
            b"}(",
            b"".join(number(i) + NONE for i in orbit),
            b"".join(number(orbit[0] + (i << 18)) + NONE for i in range(1, 60_000)),
            b"u",
        ),
        "memo that follows its own places": pickled(b"N" + b"".join(b"r" + struct.pack("<I", i) for i in orbit[:200])),
        "list that holds itself": pickled(b"]\x94h\0a"),
        "dict that holds itself": pickled(b"}\x94K\1h\0s"),
        "dict that is its own key": pickled(b"}\x94h\0Ns"),
        "tuple that holds itself": pickled(b"]\x94h\0\x85\x94\x30h\0h\1a"),
        "set that holds itself": pickled(b"\x8f\x94(h\0\x90"),
        "call that holds itself": pickled(name("a", "b"), b"]\x94\x85R\x94\x30h\0h\1a"),
        "set of a list of itself": pickled(b"]\x94", name("builtins", "set"), b"h\0\x85R\x94\x30h\0h\1a"),
        "Namespace that is its own state": pickled(name("argparse", "Namespace"), b")\x81\x94h\0b"),
    }
    # instructions
    files |= {
        "memo of four billion": pickled(b"]r" + struct.pack("<I", 2**32 - 1)),
        "memo of 10^18": pickled(b"]p1000000000000000000\n"),
        "memo below zero": pickled(b"]p-1\n"),
        "memo that is empty": pickled(b"h\x09"),
        "memo read below zero": pickled(b"]\x94g-1\n"),
        "memo with gaps": pickled(b"NNNNNNq\x05h\x03"),
        "memo of nothing": pickled(b"\x94"),
        "text of a terabyte": pickled(b"\x8d" + struct.pack("<Q", 2**40) + b"abc"),
        "text of 2^63": pickled(b"\x8d" + struct.pack("<Q", 2**63) + b"abc"),
        "text of 4 GB": pickled(b"X" + struct.pack("<I", 2**32 - 1) + b"abc"),
        "bytes of a terabyte": pickled(b"\x8e" + struct.pack("<Q", 2**40)),
        "bytearray of a terabyte": pickled(b"\x96" + struct.pack("<Q", 2**40)),
        "bytes of 2^64": pickled(b"\x8e" + b"\xff" * 8),
        "string of a negative length": pickled(b"T" + struct.pack("<i", -1)),
        "number of 2 GB": pickled(b"\x8b" + struct.pack("<i", 2**31 - 1)),
        "number of a negative length": pickled(b"\x8b" + struct.pack("<i", -4)),
        "number of a megabyte": pickled(b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6),
        "number of a megabyte as a key": pickled(b"}\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"Ns"),
        "number of a megabyte as a size": torch_zip(
            pickled(tensor(stored(count=b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6))), numbers
        ),
        "number of a million digits": b"L" + b"9" * 10**6 + b"L\n.",
        "number that is a text": b"Iabc\n.",
        "float that is a text": b"Fabc\n.",
        "text that is no UTF-8": pickled(b"\x8c\x02\xff\xfe"),
        "text of lone surrogates": pickled(b"\x8c\x03\xed\xa0\x80"),
        "string without its end": b"S'abc\n.",
        "string without quotes": b"Sabc\n.",
        "frame of 2^63": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
        "frame that ends early": b"\x80\x04\x95" + struct.pack("<Q", 1) + b"]N.",
        "frames without content": b"\x80\x04" + (b"\x95" + struct.pack("<Q", 0)) * 1000 + b"N.",
        "protocol 255": b"\x80\xffN.",
        "protocol in the middle": pickled(b"N0\x80\x00N"),
        "DUP of nothing": pickled(b"2"),
        "POP of nothing": pickled(b"0"),
        "POP_MARK without a mark": pickled(b"N1"),
        "POP of a mark": pickled(b"(0N"),
        "STOP with a mark": pickled(b"N("),
        "STOP of nothing": b"\x80\x04.",
        "no STOP": b"\x80\x04N",
        "TUPLE without a mark": pickled(b"Nt"),
        "TUPLE3 of two": pickled(b"NN\x87"),
        "TUPLE2 across a mark": pickled(b"N(N\x86"),
        "APPEND to nothing": pickled(b"Na"),
        "APPENDS to nothing": pickled(b"(Ne"),
        "APPENDS to a dict": pickled(b"}(Ne"),
        "APPEND to a tuple": pickled(b")Na"),
        "SETITEM on a list": pickled(b"]NNs"),
        "SETITEMS of three": pickled(b"}(NNNu"),
        "DICT of three": pickled(b"(NNNd"),
        "SETITEM on a text": pickled(short("a"), b"NNs"),
        "ADDITEMS to a list": pickled(b"](N\x90"),
        "key that is a list": pickled(b"}]Ns"),
        "key that is a dict": pickled(b"}}Ns"),
        "element that is a list": pickled(b"(]\x91"),
        "REDUCE of a number": pickled(b"K\1)R"),
        "REDUCE without a tuple": pickled(name("a", "b"), b"]R"),
        "REDUCE of a list": pickled(b"])R"),
        "NEWOBJ of a text": pickled(short("os"), b")\x81"),
        "NEWOBJ_EX of a number": pickled(b"K\1)}\x92"),
        "NEWOBJ_EX with keywords of a number": pickled(name("a", "b"), b")K\1\x92"),
        "OBJ of nothing": pickled(b"(o"),
        "OBJ of a text": pickled(b"(", short("os"), b"o"),
        "INST without arguments": b"iposix\nsystem\n.",
        "STACK_GLOBAL of numbers": pickled(b"K\1K\2\x93"),
        "STACK_GLOBAL of lists": pickled(b"]]\x93"),
        "STACK_GLOBAL of one": pickled(short("os"), b"\x93"),
        "STACK_GLOBAL of a megabyte": pickled(b"X" + struct.pack("<I", 10**6) + b"a" * 10**6, short("b"), b"\x93)R"),
        "STACK_GLOBAL over lines": pickled(short("os\n\n\x1b[2J"), short("b\0"), b"\x93)R"),
        "GLOBAL without a name": pickled(b"cos\n"),
        "GLOBAL of no letters": pickled(b"c\n\n"),
        "GLOBAL that is no ASCII": pickled("cös\nä\n".encode()),
        "EXT1": pickled(b"\x82\x01"),
        "EXT2": pickled(b"\x83\x01\x01"),
        "EXT4": pickled(b"\x84\xff\xff\xff\x7f"),
        "EXT4 below zero": pickled(b"\x84\xff\xff\xff\xff"),
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "READONLY_BUFFER": b"\x80\x05N\x98.",
        "persistent id": pickled(short("storage"), b"Q"),
        "persistent id of text": b"Pstorage\n.",
        "persistent id that is a list": torch_zip(pickled(b"]Q"), numbers),
        "persistent id that is a number": torch_zip(pickled(b"K\1Q"), numbers),
        "unknown instruction": pickled(b"\xfe"),
        "only zeros": bytes(1000),
    }
    # wrong arguments of what is known
    known = [
        ("collections", "OrderedDict"),
        ("collections", "Counter"),
        ("argparse", "Namespace"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch", "FloatStorage"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("numpy", "dtype"),
        ("copyreg", "_reconstructor"),
        ("builtins", "set"),
        ("builtins", "frozenset"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("dnnlib.util", "EasyDict"),
    ]
    files |= {
        f"{m}.{a} of {title}": pickled(call(m, a, *args))
        for m, a in known
        for title, args in (
            ("numbers", (number(1), number(2), number(3))),
            ("lists", (b"](](NNNee",) * 2),
            ("text", (short("abc"),)),
        )
    }
    # zips
    whole, stream = (
        rezipped(lambda where, data: [(where, data)]),
        lambda data, at, new: data[:at] + new + data[at + len(new) :],
    )
    named_twice = torch_zip(pickled(b"N"), {"0": b"", "1": b""}).replace(b"archive/data/1", b"archive/data/0")
    end, first = whole.rindex(b"PK\5\6"), whole.index(b"PK\1\2")
    wrong = whole.index(struct.pack("<4f", 0, 1, 2, 3))
    overlapping = bytearray(
        torch_zip(
            pickled(
                b"](" + b"".join(tensor(stored(key=str(i), count=2**18), size=(2**18,)) for i in range(300)) + b"e"
            ),
            {"0": b"\0" * 2**20} | {str(i): b"" for i in range(1, 300)},
        )
    )
    directory = overlapping.index(b"PK\1\2", 2**20)
    first_size = None
    while overlapping[directory : directory + 4] == b"PK\1\2":
        named, extra, comment = struct.unpack_from("<HHH", overlapping, directory + 28)
        if re.fullmatch(rb"archive/data/\d+", bytes(overlapping[directory + 46 : directory + 46 + named])):
            if first_size is None:
                first_size = bytes(overlapping[directory + 16 : directory + 28])
            overlapping[directory + 16 : directory + 28] = first_size
        directory += 46 + named + extra + comment
    files |= {
        "zip with a wrong checksum": stream(whole, wrong, b"\x01"),
        "zip without its end": whole[:end],
        "zip without its directory": whole[:first] + whole[end:],
        "zip of a size of 4 GB": stream(whole, first + 20, b"\xfe\xff\xff\x7f\xfe\xff\xff\x7f"),
        "zip whose directory lies elsewhere": stream(whole, end + 16, b"\xff\xff\xff\x7f"),
        "zip whose directory is huge": stream(whole, end + 12, b"\xfe\xff\xff\xff"),
        "zip with 65,000 entries": stream(whole, end + 8, b"\xe8\xfd\xe8\xfd"),
        "zip that is encrypted": stream(whole, first + 8, b"\1"),
        "zip of an unknown method": stream(whole, first + 10, b"\x63\0"),
        "zip with another name in the entry": whole.replace(b"data.pkl", b"data.pkk", 1),
        "zip with two pickles": rezipped(
            lambda where, data: [(where, data), (where.replace("archive", "other"), data)]
        ),
        "zip with a name twice": named_twice,
        "zip without a pickle": rezipped(lambda where, data: [] if where.endswith("data.pkl") else [(where, data)]),
        "zip without numbers": rezipped(lambda where, data: [] if "/data/" in where else [(where, data)]),
        "zip with an absolute name": rezipped(lambda where, data: [("/" + where, data)]),
        "zip with names above": rezipped(lambda where, data: [("../" + where, data)]),
        "zip bomb": rezipped(
            lambda where, data: [(where, data + bytes(2 * 10**7) if "/data/" in where else data)],
            compression=zipfile.ZIP_DEFLATED,
        ),
        "zip bomb of a pickle": rezipped(
            lambda where, data: [(where, pickled(b"N0" * 10**6) if where.endswith("data.pkl") else data)],
            compression=zipfile.ZIP_DEFLATED,
        ),
        "zip of few numbers": rezipped(lambda where, data: [(where, data[:8] if "/data/" in where else data)]),
        "zip of a big-endian machine": rezipped(
            lambda where, data: [(where, b"big" if where.endswith("byteorder") else data)]
        ),
        "zip of a program": rezipped(
            lambda where, data: (
                [(where, data), (where.partition("/")[0] + "/code/__torch__.py", b"raise SystemExit")]
                if where.endswith("data.pkl")
                else [(where, data)]
            )
        ),
        "zip whose entries overlap": bytes(overlapping),
        "zip of nothing": b"PK\3\4",
        "zip of rubbish": b"PK\3\4" + bytes(range(256)) * 8,
        "zip that is empty": b"PK\5\6" + bytes(18),
        "zip after a pickle": pickled(b"N") + whole,
        "zip whose pickle is damaged": change(b"K\x04", b"\xfe\x04"),
        "zip with more numbers": change(b"K\x04\x85", b"K\x05\x85"),
        "zip with 3,000 entries": torch_zip(pickled(b"N"), {str(i): b"" for i in range(3000)}),
    }
    return files


REASONS = {  # the beginning of a name -> what the refusal says
    "call os.system": "it asks for posix.system, which is no data",
    "call eval": "it asks for builtins.eval",
    "call exec": "it asks for builtins.exec",
    "call arguments": "it asks for posix.system",
    "call pickle.loads": "loads, which is no data",
    "call subprocess": "it asks for subprocess.check_output",
    "call getattr": "it asks for builtins.getattr",
    "call by STACK_GLOBAL": "posix.system",
    "call by INST": "posix.system",
    "call by OBJ": "posix.system",
    "call by NEWOBJ": "posix.system",
    "call in a state": "posix.system",
    "call in a torch file": "posix.system",
    "call in an old torch file": "posix.system",
    "call in a key": "posix.system",
    "call of a call": "it calls something that is not a name",
    "BUILD on a tuple": "it adds to something that is not an object",
    "BUILD on _codecs": "it changes _codecs.encode itself",
    "BUILD on torch._utils": "it changes torch._utils._rebuild_tensor_v2 itself",
    "tensor grown": "it changes the result of torch._utils",
    "tensor larger": "larger than its storage of 4 numbers",
    "tensor at a negative offset": "in a way that torch does not write",
    "tensor repeated a billion": "far more than it holds",
    "tensor at an absolute name": "the numbers of a tensor are missing",
    "tensor above": "the numbers of a tensor are missing",
    "tensor of two types": "in two ways",
    "storage within, 22 deep": "where something else is written",
    "old file with a negative length": "another length than it says",
    "old file without keys": "the numbers of a tensor are missing",
    "old file of a big-endian": "big-endian",
    "array of 10^12": "has 16 bytes",
    "array from a number": "has no bytes",
    "tuples 200,000 deep": "too deep",
    "billion laughs of keys": "neither strings nor numbers",
    "laughs by": "more than",
    "keys that follow": "more than 10,000 keys",
    "lists, 600,000": "more than 500,000 opcodes",
    "memo of four billion": "only takes memory",
    "text of a terabyte": "damaged, cut short or no pickle",
    "EXT": "the registry of extensions",
    "persistent id": "outside of itself",
    "NEXT_BUFFER": "outside of itself",
    "zip with a wrong checksum": "damaged",
    "zip bomb": "compressed",
    "zip that is encrypted": "encrypted",
    "zip whose entries overlap": "larger than itself",
    "zip of a program": "TorchScript",
    "zip with two pickles": "not one that torch writes",
    "zip with a name twice": "not one that torch writes",
}


# ---------------------------------------------------------------- good files, and damaged ones
def good():
    "Name → (bytes, what torch and numpy make of it)"
    torch.manual_seed(0)
    base = torch.randn(5, 6)
    state = collections.OrderedDict(
        a=base,
        b=base[1:, ::2],
        t=base.T,
        n=torch.tensor(3),
        h=torch.randn(2).half(),
        f=torch.randn(3).bfloat16(),
        i=torch.tensor([1, -2], dtype=torch.int8),
        l=torch.arange(4),
        m=torch.tensor([True, False]),
        u=torch.arange(3, dtype=torch.uint8),
        d=torch.randn(2).double(),
        e=torch.empty(0, 3),
        x=torch.ones(2).expand(3, 2),
        p=torch.nn.Parameter(torch.ones(2)),
    )
    content = {
        "state_dict": state,
        "module": torch.nn.Linear(2, 3).state_dict(),
        "opts": argparse.Namespace(lr=0.1, names=["a", "b"]),
        "step": 7,
        "size": base.shape,
        "np": np.arange(6).reshape(2, 3),
        "s": np.float32(2.5),
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}],
        },
        "device": "cpu",
        "dtype": torch.float16,
        "set": {1, 2},
        "none": None,
        "big": 2**70,
    }
    arrays = [
        np.arange(6).astype(kind).reshape(2, 3) for kind in ("f2", "f4", "f8", "i1", "i8", "u1", ">f4", "?", "u2")
    ] + [
        np.asfortranarray(np.eye(3)),
        np.float64(1.5),
        np.zeros((0, 2)),
        np.array(3.0),
        b"",
        b"abc",
        bytearray(b"x"),
        base,
        frozenset({1}),
    ]
    files = {
        f"torch {'zip' if new else 'old'} {protocol}": (
            saved(content, _use_new_zipfile_serialization=new, pickle_protocol=protocol),
            content,
        )
        for new in (True, False)
        for protocol in range(2, 6)
    }
    return files | {f"plain {protocol}": (pickle.dumps(arrays, protocol), arrays) for protocol in range(2, 6)}


def networks():
    "Name → bytes: a network of stylegan2-ada-pytorch, one of TensorFlow, a checkpoint of a trainer with its objects"
    weight = call(
        "torch._utils",
        "_rebuild_parameter",
        name("torch._utils", "_rebuild_tensor_v2")
        + tup(
            call("torch.storage", "_load_from_bytes", raw(inner())),
            number(0),
            tup(number(2), number(2)),
            tup(number(2), number(1)),
            FALSE,
            call("collections", "OrderedDict"),
        )
        + b"R",
        TRUE,
        NONE,
    )
    layer = entries(
        short("_parameters"),
        entries(short("weight"), weight),
        short("_buffers"),
        b"}",
        short("_modules"),
        b"}",
        short("_non_persistent_buffers_set"),
        b"\x8f",
    )
    meta = entries(
        short("type"),
        short("class"),
        short("module_src"),
        short("raise SystemExit"),
        short("class_name"),
        short("Generator"),
        short("state"),
        layer,
    )
    variables = b"](" + tup(short("dlatent_avg"), shape((4,))) + b"e"
    state = entries(short("variables"), variables, short("components"), b"}")
    trainer = name("pytorch_lightning.callbacks", "Trainer") + b")\x81" + entries(short("best"), number(3)) + b"b"
    return {
        "ada": pickled(entries(short("G_ema"), call("torch_utils.persistence", "_reconstruct_persistent_obj", meta))),
        "tensorflow": pickled(name("dnnlib.tflib.network", "Network") + b")\x81" + state + b"b\x94h\0h\0\x87"),
        "zip of a trainer": torch_zip(
            pickled(entries(short("state_dict"), entries(short("w"), tensor()), short("callbacks"), trainer)),
            {"0": b"\0" * 16},
        ),
    }


def damaged(count, seed=0):
    "Good files with bytes changed, left out, put in, doubled or cut; in a zip mostly those of its pickle."
    rng = random.Random(seed)
    codes = [ord(each.code) for each in pickletools.opcodes]
    sources = [(title, data) for title, (data, _) in good().items()] + list(networks().items())

    def change(data):
        data = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at, length = rng.randrange(len(data)), rng.randrange(1, 40)
            kind = rng.randrange(7)
            if kind == 0:
                data[at] = rng.randrange(256)
            if kind == 1:
                data[at] = rng.choice(codes)
            if kind == 2:
                data[at] ^= 1 << rng.randrange(8)
            if kind == 3:
                del data[at : at + length]
            if kind == 4:
                data[at:at] = bytes(rng.choice(codes) for _ in range(rng.randrange(1, 4)))
            if kind == 5:
                data[at:at] = data[(start := rng.randrange(len(data))) : start + length]
            if kind == 6 and len(data) > 2:
                data[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"])
            if not data:
                return b"."
        return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.05 else data)

    for number in range(count):
        title, data = sources[number % len(sources)]
        if "zip" in title and rng.random() < 0.8:
            data = rezipped(lambda where, part: [(where, change(part) if where.endswith("data.pkl") else part)], data)
        else:
            data = change(data)
        yield f"{number} {title}", data


# ---------------------------------------------------------------- a process that opens them
def verdict(found, size, plain):
    "What is wrong with a value that was read; empty: nothing"
    left, seen, mentioned = [found], set(), 0
    while left:
        part = left.pop()
        mentioned += getattr(part, "nbytes", 0)
        if mentioned > 64 * size + 2**21:
            return "tensors that would take far more than the file if they were copied"
        if id(part) in seen:
            continue
        seen.add(id(part))
        if (
            part is None
            or type(part) in (bool, int, float, str, bytes, torch.dtype)
            or isinstance(part, np.dtype)
            and part.kind in "fiub"
        ):
            continue
        if isinstance(part, dict):
            left += [*part, *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            left += part
        elif isinstance(part, torch.Tensor):
            if type(part) is not torch.Tensor:
                return f"object {type(part).__name__}"
            if part.untyped_storage().nbytes() > size or part.numel() * part.itemsize > 64 * size + 2**21:
                return "tensor that is larger than the file"
            part.double().sum().item()
        elif isinstance(part, np.ndarray):
            if part.dtype.hasobject:
                return "array of objects"
            part.astype(np.float64, copy=True).sum()
        elif isinstance(part, plain):
            left += [part.args, part.state]
        elif not (isinstance(part, type) and issubclass(part, plain)):
            return f"object {type(part).__name__}"
    return ""


def open_all(folder):
    "In the process with limits: opens the files, prints a line for each, then checks that a good one still opens."
    from mmgen.base.pickle_arrays import Plain
    from mmgen.base.pickle_opcodes import PickleError
    from mmgen.base.pickles import read_pickle, state_of

    Path(folder, "good").write_bytes(pickle.dumps([torch.arange(4.0), np.arange(3), b"bytes"], 2))
    read_pickle(Path(folder, "good"))
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(each for each in Path(folder).iterdir() if each.suffix == ".pt"):
        print(json.dumps({"start": path.stem}), flush=True)
        # a busy machine is no hang: SECONDS of the processor, ten times as many on the clock
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS + 1, resource.RLIM_INFINITY))
        faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
        start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            found = read_pickle(path)
            try:
                state_of(found)
            except PickleError:
                pass
            wrong = verdict(found, path.stat().st_size, Plain)
            del found
            line = {"opened": True, "wrong": wrong}
        except PickleError as e:
            cause, text = type(e.__cause__).__name__, str(e)
            one = len(text) < 2000 and text.isprintable() and text.endswith(".")
            known = {"NoneType", "ValueError", "IndexError", "UnicodeDecodeError"}
            known |= {"BadZipFile", "NotImplementedError", "EOFError", "OSError"}  # zipfile's
            if "with unknown arguments" in text:
                known |= {"TypeError", "UnicodeEncodeError"}
            bare = re.search(r"\((TypeError|KeyError|AttributeError|RecursionError|MemoryError)\)|more memory", text)
            line = {
                "opened": False,
                "text": text,
                "wrong": "" if one and not bare and cause in known else f"refused by {cause}: {text[:200]}",
            }
        except BaseException as e:
            line = {"opened": False, "text": "", "wrong": f"bare {type(e).__name__}: {str(e)[:200]}"}
        faulthandler.cancel_dump_traceback_later()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(
            json.dumps(
                {"end": path.stem, **line, "seconds": round(time.process_time() - start, 3), "megabytes": grown // 1024}
            ),
            flush=True,
        )
    read_pickle(Path(folder, "good"))
    print(json.dumps({"good": True}), flush=True)


def tried(folder, files):
    """Opens files in processes with limits. Name → line of `open_all`; where a process ended or took too long, the
    line of the file that it had open says so."""
    keys = {f"{number:05}": title for number, title in enumerate(files)}
    for key, title in keys.items():
        Path(folder, f"{key}.pt").write_bytes(files[title])
    found = {}
    while True:
        done = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=600)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            if "end" not in line:
                continue
            Path(folder, f"{line['end']}.pt").unlink()
            found[keys[line.pop("end")]] = line
        if lines and "good" in lines[-1]:
            return found
        open_one = lines[-1].get("start") if lines else None
        if open_one is None:
            raise AssertionError(f"a good file no longer opens: {done.stderr[-2000:]}")
        hangs = "Timeout" in done.stderr or done.returncode == -signal.SIGXCPU
        kind = "hang" if hangs else f"crash {done.returncode}"
        found[keys[open_one]] = {"opened": False, "wrong": kind, "seconds": SECONDS, "megabytes": 0}
        Path(folder, f"{open_one}.pt").unlink()


if __name__ == "__main__":
    open_all(sys.argv[1])
