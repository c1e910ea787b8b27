"""Instructions in plain English: held-out texts, texts that ask for something unknown, and the seam that uses them."""

import json
import random
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmgen.app.cli import main
from mmgen.app.targets import check_request, reads_tags, target_of, with_edits
from mmgen.app.workbench import edit
from mmgen.clip.model import CLIP
from mmgen.data import portraits
from mmgen.editing.editor import CopyInput
from mmgen.editing.protocol import EditError
from mmgen.instructions.phrases import ADD, REMOVE, instruction, material
from mmgen.instructions.train import TaggerConfig, train_tagger
from mmgen.instructions.understand import edits_of, has_evidence, nearest, understand
from mmgen.instructions.words import corrected, split_words
from mmgen.ldm.editors.sdedit import Reconstruction
from mmgen.ldm.pipeline import random_pipeline

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from instructions import is_exact, read_texts, scene_texts  # noqa: E402


def edits(text):
    "The edits of an instruction, none if it is refused."
    try:
        return understand(text).edits
    except EditError:
        return []


class Portraits(CopyInput):
    "An Editor whose model knows the tags of the portraits; it returns its input."

    captioner = CLIP.load("clip-portraits", "cpu")


def test_held_out_instructions_are_understood():
    rows = read_texts("held_out") | scene_texts(360, 0)[0]
    assert len(rows) >= 500
    exact = [is_exact(edits(text), tags) for text, tags in rows.items()]
    assert sum(exact) / len(exact) >= 0.88, [text for text, right in zip(rows, exact) if not right]


def test_what_the_model_does_not_know_is_never_edited():
    rows = {**read_texts("unknown"), **scene_texts(0, 120)[1]}
    assert len(rows) >= 260 and not {text: edits(text) for text in rows if edits(text)}


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("make her hair green", ["green hair"]),
        ("give him sunglasses", ["sunglasses"]),
        ("remove the glasses", ["no eyewear"]),
        ("without glasses", ["no eyewear"]),
        ("turn the blonde hair pink and add freckles", ["pink hair", "freckles"]),
        ("hair: green", ["green hair"]),
        ("green-haired girl", ["green hair"]),
        ("smiling", ["smile"]),
        ("(green hair:1.2)", ["green hair"]),
        ("Green_Hair, no earrings", ["green hair", "no earrings"]),
        ("make her hair gren", ["green hair"]),
        ("blue hair, but leave the eyes green", ["blue hair"]),
        ("remove the glasses and make him smile", ["no eyewear", "smile"]),
        ("take off the earrings, make her hair pink and close her eyes", ["no earrings", "pink hair", "closed eyes"]),
        ("make her smile and remove the freckles", ["smile", "no freckles"]),
        ("remove the freckles and the earrings", ["no freckles", "no earrings"]),
        ("give her an open smile", ["open mouth", "smile"]),
        ("make the hair green, " * 30 + "remove the glasses", ["green hair", "no eyewear"]),
    ],
)
def test_known_answers(text, wanted):
    assert understand(text).edits == wanted


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "prompt is empty"),
        (" , ", "prompt is empty"),
        ("give him a beard", "'beard'.*nearest that it knows: mustache"),
        ("make her hair rainbow", "rainbow.*black hair"),
        ("haare grün", "'haare grün'.*mmgen tags.*--caption"),
        ("???", "mmgen tags"),
        ("keep the glasses", "asks for no change"),
        ("緑の髪", "mmgen tags"),
        ("green hair, blue hair", "exclude each other"),
        ("z" * 5000, "no edit 'z{60}';"),
        ("smile, no smile", "both adds and removes 'smile'"),
    ],
)
def test_a_refusal_says_what_is_near(text, message):
    with pytest.raises(EditError, match=message):
        understand(text)


def test_a_part_that_is_unknown_is_named():
    found = understand("green hair, a dragon")
    assert found.edits == ["green hair"] and found.dropped == ["dragon"]
    with pytest.raises(EditError, match="not sure that you ask for green hair, .* 'dragon'; write only 'green hair'"):
        understand("green hair and a dragon")
    for text, word in (line.split("|")[::2] for line in PARTLY):
        try:
            named = " ".join(understand(text).dropped)
        except EditError as error:
            named = str(error)
        assert word.strip() in named, text


PARTLY = [
    line
    for line in (Path(__file__).parent.parent / "benchmarks/instruction_texts/held_out.txt").read_text().splitlines()
    if line.count("|") == 2 and not line.startswith("#")
]


def test_words_and_spelling():
    assert split_words("Don't add a V-shaped_mouth!") == ["do", "not", "add", "a", "v", "shaped", "mouth"]
    assert corrected("freckels") == "freckles" and corrected("grain") == "grain" and corrected("bears") == "bears"
    assert has_evidence("green hair", ["green"], ["green", "hair"]) and not has_evidence(
        "long hair", ["long"], ["long"]
    )
    assert nearest(["nose ring"]) and not nearest(["zzzz"])


def test_training_instructions_are_seeded_and_cover_every_tag():
    draw = lambda seed: [instruction(rng) for rng in [random.Random(seed)] for _ in range(4000)]
    rows = draw(1)
    assert rows[:50] == draw(1)[:50]
    named = {role: {word.tag for row in rows for word in row if word.role == role} for role in (ADD, REMOVE)}
    assert named[ADD] == set(material().groups) and len(named[REMOVE]) > 100


def test_a_short_training_learns_and_repeats():
    config, losses = TaggerConfig(instructions=2000, epochs=1, batch=20, width=16), []
    first = train_tagger(config, lambda step, loss: losses.append(loss))
    again = train_tagger(config)
    assert losses[-1] < 6 and all(
        (a == b).all() for a, b in zip(first.state_dict().values(), again.state_dict().values())
    )
    assert edits_of("green hair", first).edits in ([], ["green hair"])


def test_edits_change_the_caption_and_covered_ones_are_named():
    face = "brown hair, blue eyes, swept bangs, glasses, eyewear, smile"
    assert with_edits(face, ["no bangs"])[0] == "brown hair, blue eyes, glasses, eyewear, smile"
    caption, covered = with_edits(face, ["red eyes", "sunglasses"])
    assert "sunglasses" in caption and covered == ["red eyes"]
    assert with_edits("", ["green hair", "no glasses"]) == ("green hair, no glasses", [])


def test_a_caption_is_given_and_not_guessed():
    which, face = Portraits(), "brown hair, smile"
    assert target_of(which, face, "", "a girl in the rain").caption == "a girl in the rain"
    assert target_of(which, face, "put long green hair on her").caption.startswith("green hair, long hair")
    with pytest.raises(EditError, match="no edit 'girl.*|knows no edit"):
        target_of(which, face, "a girl in the rain")
    with pytest.raises(EditError, match="not both"):
        check_request("green hair", "a caption")
    with pytest.warns(UserWarning, match="already fits smile"):
        target_of(which, face, "make her smile")
    with pytest.warns(UserWarning, match="already fits no earrings, so only the rest is edited"):
        assert "green hair" in target_of(which, face, "remove the earrings and make her hair green").caption


def test_a_model_that_reads_any_text_takes_the_prompt_as_it_is():
    assert not reads_tags(CopyInput()) and reads_tags(Portraits())
    assert target_of(CopyInput(), "", "a dragon on a beach").caption == "a dragon on a beach"
    other = Reconstruction(random_pipeline())
    other.pipeline.tags = ["night", "car"]
    assert target_of(other, "night, car", "no car").caption == "night"


def test_python_and_shell_say_what_was_understood(tmp_path, capsys):
    face = portraits.sample(200_000_007)
    Image.fromarray(portraits.render(face, 64)).save(tmp_path / "me.png")
    with pytest.warns(UserWarning, match="Edited without dragon. Understood: green hair; not understood: dragon"):
        edit(str(tmp_path / "me.png"), "green hair, a dragon", "brown hair, smile", editor=Portraits())
    words = ["edit", str(tmp_path / "me.png"), "green hair, a dragon", "--steps", "2", "--json"]
    assert main([*words, "-o", str(tmp_path / "out.png")]) == 0
    out, err = capsys.readouterr()
    about = json.loads(out)
    assert about["edits"] == ["green hair"] and about["dropped"] == ["dragon"]
    assert list(about["check"]["reached"]) == ["green hair"]
    assert "understood: green hair; not understood: dragon" in err
    assert main(["edit", str(tmp_path / "me.png"), "a dragon", "--steps", "2"]) == 1
    assert "knows no edit 'dragon'" in capsys.readouterr().err
    assert main(["edit", str(tmp_path / "me.png"), "--steps", "2"]) == 1
    assert "prompt is empty" in capsys.readouterr().err


def test_the_shell_lists_tags(capsys):
    assert main(["tags", "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)
    assert "green hair" in kinds["hair colour"] and sum(map(len, kinds.values())) == len(portraits.vocabulary())
    assert main(["tags"]) == 0 and "hair colour: black hair" in capsys.readouterr().out
