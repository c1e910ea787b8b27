"What the oracle and CLIP see of an edit, and pictures that are unlike portraits."

import json

import numpy as np
import pytest
from PIL import Image

import mmgen
from mmgen.app.cli import main
from mmgen.app.outcome import Outcome, outcome, outcome_of
from mmgen.app.targets import Target, unlike
from mmgen.clip.model import CLIP
from mmgen.data import portraits
from mmgen.editing.editor import CopyInput

FACES = [portraits.sample(seed) for seed in portraits.seeds(200, "test")]


class Portraits(CopyInput):
    "An Editor whose model knows the tags of the portraits; it returns its input."

    captioner = CLIP.load("clip-portraits", "cpu")


def test_the_requested_attribute_and_what_else_changed_are_seen():
    reached = spoilt = 0
    for face in FACES[:40]:
        tag = next(tag for tag in ("green hair", "pink hair") if tag not in portraits.tags(face))
        try:
            after = portraits.change(face, tag)
        except portraits.PortraitError:
            continue
        found = outcome_of(portraits.render(face), portraits.render(after), [tag])
        reached += found.reached[tag]
        spoilt += bool(found.changed)
    assert reached >= 30 and spoilt <= 2


def test_an_edit_that_did_nothing_is_told():
    face = next(face for face in FACES if face["glasses"] is None and "smile" not in portraits.tags(face))
    same = portraits.render(face)
    text = outcome_of(same, same, ["sunglasses", "no glasses"]).text
    assert text == "check: reached no glasses; not reached: sunglasses; nothing else changed"
    assert outcome(Portraits(), same, same, "smile", Target("grin", [], [], [])).reached == {
        "grin": False,
        "no smile": True,
    }
    assert outcome(CopyInput(), same, same, "", Target("a", [], [], [])) is None
    assert "0.210 → 0.250" in Outcome({}, {}, {}, (0.21, 0.25)).text


@pytest.mark.parametrize("size", [64, 300])
def test_grey_portraits_are_told_and_others_are_not(size):
    images = [portraits.render(face, size) for face in (FACES if size == 64 else FACES[:20])]
    grey = [np.asarray(Image.fromarray(image).convert("L").convert("RGB")) for image in images]
    assert not [unlike(image) for image in images if unlike(image)]
    assert {unlike(image) for image in grey} == {"it has almost no colour"}


def test_the_check_is_in_file_json_and_python_and_can_be_switched_off(tmp_path, capsys):
    me = tmp_path / "me.png"
    Image.fromarray(portraits.render(FACES[0], 128)).save(me)
    words = ["edit", str(me), "green hair", "--steps", "2", "--json", "-o", str(tmp_path / "out.png")]
    assert main(words) == 0
    printed = capsys.readouterr()
    text = json.loads(printed.out)["check"]["text"]
    assert text.startswith("check: ") and text in printed.err
    assert Image.open(tmp_path / "out.png").text["mmgen-check"] == text
    assert main([*words, "--check", "no"]) == 0
    assert json.loads(capsys.readouterr().out)["check"] is None
    assert "mmgen-check" not in Image.open(tmp_path / "out.png").text
    assert mmgen.edit(me, "green hair", editor=Portraits()).info["check"].startswith("check: ")
    assert "check" not in mmgen.edit(me, "green hair", editor=Portraits(), check=False).info
