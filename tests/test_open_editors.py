"""Editors from elsewhere: classes by place, entry points, registered names, commands."""

import importlib
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmgen
from mmgen.app.workbench import build_editor
from mmgen.benchmark.parts import Part, load_part, parts
from mmgen.benchmark.workers import run_parts
from mmgen.data import portraits
from mmgen.editing import registry
from mmgen.editing.classes import GROUP, entry_place
from mmgen.editing.command import CommandEditor
from mmgen.editing.config import EditConfig
from mmgen.editing.editor import BaseEditor, CopyInput
from mmgen.editing.names import parse_editor, split_editors
from mmgen.editing.protocol import EditError, Editor, members
from mmgen.jobs.registry import config_for
from mmgen.ldm.editors.instruct import InstructEditor, random_instruct

IMAGES = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
TEXTS = ["blue hair", "smile"]
MODULE = """
from mmgen.editing.editor import BaseEditor, check_edit


class MeanColor(BaseEditor):
    "Written before instructions existed, without a constructor."

    def edit(self, images, source, target, strength=None):
        check_edit(images, source, target, strength)
        strength = self.strength if strength is None else strength
        return images + strength * (images.mean((2, 3), keepdim=True) - images)


class Shifted(BaseEditor):
    def __init__(self, amount=1):
        self.amount = amount

    def edit(self, images, source, target, strength=None, instruction=None):
        return images.roll(self.amount, 3)


class NoStrength:
    def __init__(self, device=None): ...

    def edit(self, images, source, target, strength=None): ...


class FewMembers:
    strength = 0.5

    def __init__(self, device=None): ...

    def edit(self, images, source, target, strength=None): ...


class OnlyImages(BaseEditor):
    def edit(self, images): ...


class NoEdit:
    name = "none"


function = len
"""
PROGRAM = """
import sys, json, pathlib
from PIL import Image, ImageOps

source, out, *rest = sys.argv[1:]
pathlib.Path("told.json").write_text(json.dumps(rest))
ImageOps.invert(Image.open(source)).save(out, "PNG")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder with an importable module that only the working directory leads to."
    (tmp_path / "my_editor.py").write_text(MODULE)
    (tmp_path / "broken_editor.py").write_text("1 / 0")
    (tmp_path / "needy_editor.py").write_text("import no_such_library")
    (tmp_path / "invert.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(registry, "REGISTERED", {})
    for module in ("my_editor", "broken_editor", "needy_editor"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    yield tmp_path
    for module in ("my_editor", "broken_editor", "needy_editor"):
        sys.modules.pop(module, None)


def test_a_class_is_an_editor_by_its_place(here):
    which = mmgen.editor("my_editor:MeanColor", device="cpu")
    assert isinstance(which, Editor) and not which.instructs
    grey = which.edit(IMAGES, TEXTS, TEXTS, 1.0, instruction=["grey", "grey"])
    assert torch.allclose(grey, IMAGES.mean((2, 3), keepdim=True).expand_as(IMAGES), atol=1e-6)
    assert torch.equal(mmgen.editor("my_editor:Shifted", amount=2).edit(IMAGES, TEXTS, TEXTS), IMAGES.roll(2, 3))
    assert registry.options_of("my_editor:Shifted") == ["amount"]
    assert mmgen.editor("my_editor:Shifted:amount=3").amount == 3
    with pytest.raises(EditError, match="my_editor:Shifted has no steps; it has amount"):
        mmgen.editor("my_editor:Shifted:steps=3")
    face = portraits.render(portraits.sample(3), 64)
    assert mmgen.edit(face, "grey", "", 1.0, editor="my_editor:MeanColor").size == (64, 64)
    assert build_editor(EditConfig(editor="my_editor:MeanColor")).name == "editor"


@pytest.mark.parametrize(
    "name, said",
    [
        ("my_editr:MeanColor", "no module my_editr, neither installed nor in"),
        ("my_editor:MeanColour", "has no MeanColour; its classes are MeanColor, Shifted"),
        ("my_editor:", "is not written as module:Class"),
        ("../my_editor:MeanColor", "is not written as module:Class"),
        ("broken_editor:X", "importing broken_editor raised ZeroDivisionError: division by zero"),
        ("needy_editor:X", "module needy_editor needs no_such_library, which is not installed"),
        ("my_editor:function", "is a builtin_function_or_method, not a class"),
        ("my_editor:NoEdit", r"it lacks edit\(images, source, target, strength=None\)"),
        ("my_editor:OnlyImages", "its edit does not take images, source, target, strength"),
        ("my_editor:NoStrength", "it lacks strength; mmgen.editing.editor.BaseEditor has defaults"),
        ("my_editor:FewMembers", "it lacks to_precision, name, size, device, tags"),
        ("sdedit:plain", "options of sdedit are written as sdedit:option=value"),
        ("diffusers", "Which model\\? Write diffusers:MODEL"),
        ("diffusers:", "Which model\\? Write diffusers:MODEL"),
        ("sdeditt", "did you mean 'sdedit'"),
    ],
)
def test_what_is_no_editor_is_told_in_one_sentence(here, name, said):
    with pytest.raises(EditError, match=said) as e:
        mmgen.editor(name)
    assert "\n" not in str(e.value)


def test_a_registered_class_has_a_name_until_another_claims_it(here):
    mmgen.register("mean-color", "my_editor:MeanColor")
    assert "mean-color" in mmgen.editors() and mmgen.editor("mean-color").strength == 0.5
    mmgen.register("mean-color", "my_editor:MeanColor")  # a cell that runs again
    mmgen.register("copy", CopyInput)
    assert type(mmgen.editor("copy")) is CopyInput
    for name, cls, said in (
        ("mean-color", "my_editor:Shifted", "'mean-color' is taken by my_editor:MeanColor"),
        ("sdedit", CopyInput, "'sdedit' is taken by mmgen.ldm.editors.sdedit:SDEdit"),
        ("diffusers", CopyInput, "'diffusers' is taken"),
        ("a b", CopyInput, "cannot name an editor"),
        ("x:y", CopyInput, "cannot name an editor"),
        ("new", CopyInput(), "is a CopyInput, not a class"),
        ("new", "my_editor:NoEdit", "it lacks edit"),
        ("new", "nowhere:Class", "no module nowhere"),
    ):
        with pytest.raises(EditError, match=said):
            mmgen.register(name, cls)


def test_workers_of_an_evaluation_import_the_class(here):
    mmgen.register("mean-color", "my_editor:MeanColor")
    specs = ["my_editor:MeanColor", "mean-color"]
    config = config_for(
        "evaluate", "smoke", device="cpu", clip="none", rows=5, slow_rows=5, loops=0, workers=2, editors=",".join(specs)
    )
    run_parts(config, here / "parts", say=lambda line: None)
    for spec in specs:
        (part,) = [part for part in parts(config)[spec] if part.task == "edit"]
        values, about = load_part(part.file(here / "parts"))
        assert about["failures"] == "{}" and (values["skill"] != 0).all()


def test_a_class_that_workers_cannot_import_is_an_error_before_the_run(here):
    class Local(CopyInput): ...

    mmgen.register("local", Local)
    config = config_for("evaluate", "smoke", editors="copy-input,local", workers=2)
    with pytest.raises(EditError, match="'local' is defined in a notebook, a script or a function.*or use one worker"):
        parts(config)
    assert "local" in parts(config_for("evaluate", "smoke", editors="local", workers=1))


def installed(folder: Path, package: str, editors: dict):
    "An installed package with entry points, as pip leaves it."
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {place}" for name, place in editors.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))


def test_entry_points_of_other_packages_are_editors(here, monkeypatch):
    site = here / "site"
    installed(
        site, "one", {"mean": "my_editor:MeanColor", "shared": "my_editor:MeanColor", "sdedit": "my_editor:Shifted"}
    )
    installed(site, "two", {"shared": "my_editor:Shifted", "gone": "no_such_module:Class"})
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    assert {"mean", "shared", "gone"} <= set(mmgen.editors())
    assert type(mmgen.editor("mean")).__name__ == "MeanColor"
    with pytest.raises(EditError, match=r"claimed by one \(my_editor:MeanColor\) and two \(my_editor:Shifted\)"):
        mmgen.editor("shared")
    with pytest.raises(EditError, match="no module no_such_module"):
        mmgen.editor("gone")
    assert registry.editor_class("sdedit").__module__ == "mmgen.ldm.editors.sdedit"  # mmgen's own names stay
    assert entry_place("sdedit") == "my_editor:Shifted"


def test_texts_of_editors():
    assert parse_editor("diffusers:a/b:steps=4:precision=bf16") == ("diffusers:a/b", {"steps": 4, "precision": "bf16"})
    command = "python a.py {source} {out} --scale=2:1 x=1"
    assert parse_editor(command) == (command, {})
    assert parse_editor(f"{command}:timeout=5")[1] == {"timeout": 5}
    assert split_editors('a, "b,c" ,d:e=1,') == ["a", "b,c", "d:e=1"] and split_editors("") == []
    file = Part(command, "edit", None, 0, 5).file(Path("folder"))
    assert file.parent.parent == Path("folder") and " " not in str(file) and "/" not in file.parent.name
    assert Part("../../x:C", "edit", None, 0, 5).file(Path("folder")).resolve().is_relative_to(Path("folder").resolve())


def test_own_editors_take_an_instruction_and_instruct_pix2pix_follows_it():
    for name in registry.EDITORS:
        cls = registry.editor_class(name)
        assert "instruction" in inspect.signature(cls.edit).parameters, name
        assert cls.instructs == (name == "instruct-pix2pix")
    which, x = InstructEditor(random_instruct(), steps=2), torch.rand(2, 3, 32, 32) * 2 - 1
    by_captions = which.edit(x, ["blue hair", ""], ["green hair", "smile"])
    told = ["green hair, no blue hair", "smile"]
    assert torch.equal(which.edit(x, ["", ""], ["", ""], instruction=told), by_captions)
    assert not torch.equal(which.edit(x, ["", ""], ["", ""], instruction=["smile", "hat"]), by_captions)
    for wrong in ("smile", ["smile"], [1, 2]):
        with pytest.raises(EditError, match="instruction must be a list of 2 sentences"):
            which.edit(x, ["", ""], ["", ""], instruction=wrong)
        with pytest.raises(EditError, match="instruction must be a list of 2 sentences"):
            CopyInput().edit(x, ["", ""], ["", ""], instruction=wrong)


def test_a_class_with_all_members_needs_no_base_class():
    values = {name: getattr(BaseEditor, name) for name in members() if name != "edit"}
    duck = type("Duck", (), values | {"edit": lambda self, images, source, target, strength=None: images})
    mmgen.register("duck", duck)
    try:
        assert torch.equal(mmgen.editor("duck").edit(IMAGES, TEXTS, TEXTS, instruction=TEXTS), IMAGES)
    finally:
        del registry.REGISTERED["duck"]


# ---- commands


def test_a_command_edits_each_image_and_its_texts_stay_single_words(here):
    command = f"{sys.executable} invert.py {{source}} {{out}} "
    command += "{instruction} '{target} of {caption}' {strength} {other}"
    which = mmgen.editor(command)
    assert isinstance(which, CommandEditor) and which.instructs and registry.options_of(command) == ["timeout"]
    hostile = '"; touch stolen; $(touch stolen) {target}'
    result = which.edit(IMAGES, TEXTS, ["a b", hostile], 0.5, instruction=["make it", hostile])
    assert (result + IMAGES).abs().max() < 2 / 127
    told = json.loads((here / "told.json").read_text())
    assert told == [hostile, f"{hostile} of smile", "0.5", "{other}"] and not (here / "stolen").exists()
    assert torch.equal(which.edit(IMAGES, TEXTS, TEXTS, 0.0), IMAGES)
    assert which.edit(IMAGES[:0], [], []).shape == (0, 3, 16, 12)


def test_a_result_of_another_size_mode_or_format_becomes_an_image_of_the_source_size(here):
    for mode, kind in (("L", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"), ("I;16", "PNG")):
        image = (
            Image.fromarray(np.full((31, 40), 200, np.uint16), "I;16") if mode == "I;16" else Image.new(mode, (40, 31))
        )
        image.save(here / "result", kind)
        result = CommandEditor(
            f"{sys.executable} -c \"import shutil, sys; shutil.copy('result', sys.argv[2])\" {{source}} {{out}}"
        )
        edited = result.edit(IMAGES[:1], [""], [""])
        assert edited.shape == (1, 3, 16, 12) and edited.dtype == torch.float32 and edited.abs().max() <= 1


@pytest.mark.parametrize(
    "command, said",
    [
        ("true {source} {out}", "wrote no file at {out}"),
        ("false {source} {out}", "failed with exit status 1: it printed nothing"),
        ("ls --no-such-flag {source} {out}", "failed with exit status 2"),
        ("sleep 30 {source} {out}:timeout=0.2", "ended after 0.2 seconds"),
        ("cp invert.py {out} {source}", "failed with exit status"),
        ("cp /dev/null {out} --no-dereference -t /tmp {source}", "failed|wrote no file"),
    ],
)
def test_a_command_that_fails_is_one_sentence(here, command, said):
    name, options = parse_editor(command.replace("sleep 30 {source} {out}", "sh -c 'sleep 30' {source} {out}"))
    with pytest.raises(EditError, match=said) as e:
        mmgen.editor(name, **options).edit(IMAGES[:1], [""], [""])
    assert "\n" not in str(e.value)


def test_a_command_that_writes_no_image_is_told(here):
    (here / "text").write_text("no image")
    for content in (b"no image", b"", b"\x89PNG\r\n\x1a\n"):
        (here / "text").write_bytes(content)
        which = CommandEditor(
            f"{sys.executable} -c \"import shutil, sys; shutil.copy('text', sys.argv[2])\" {{source}} {{out}}"
        )
        with pytest.raises(EditError, match="not an image that can be read"):
            which.edit(IMAGES[:1], [""], [""])


@pytest.mark.parametrize(
    "command, said",
    [
        ("cp {source} out.png", "lacks {out}"),
        ("cp {sorce} {out}", "has {sorce}; did you mean {source}"),
        ("cp '{source} {out}", "cannot be split into words: no closing quotation"),
        ("no-such-program {source} {out}", "no program 'no-such-program'"),
        ("{source} {out}", "no program '{source}'"),
    ],
)
def test_a_command_with_a_fault_is_refused_at_once(command, said):
    with pytest.raises(EditError, match=said):
        mmgen.editor(command)
    with pytest.raises(EditError, match="timeout must be above 0"):
        mmgen.editor("cp {source} {out}", timeout=0)
    with pytest.raises(EditError, match="has no steps; it has timeout"):
        mmgen.editor("cp {source} {out}", steps=3)
