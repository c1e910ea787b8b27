"""mmgen.data.edited_captions: what a user's one tag says agrees with what the exact counterfactual's tags say."""

import pytest

from mmgen.data import portraits
from mmgen.data.captions import caption
from mmgen.data.edited_captions import edited_caption, face_of
from mmgen.data.edits import KINDS, edits


def told(text):
    return set(text.split(", "))


@pytest.mark.parametrize("tag", ["green hair", "red eyes", "tan"])
def test_for_colours_the_caption_is_the_exact_one(tag):
    for seed in range(200):
        face = portraits.sample(seed)
        try:
            target = portraits.change(face, tag)
        except portraits.PortraitError:
            continue
        assert told(edited_caption(caption(portraits.tags(face)), tag)) == set(portraits.tags(target))


@pytest.mark.parametrize("kind", KINDS)
def test_for_every_kind_of_edit_little_but_the_revealed_differs(kind):
    some, right = edits(kind, 200), 0
    for edit in some:
        source, exact = portraits.tags(edit.source), set(portraits.tags(edit.target))
        said = told(edited_caption(caption(source), edit.tag))
        assert edit.tag in said or edit.tag.startswith("no ")
        hidden = {
            t
            for name, value in portraits.attributes(edit.source).items()
            if value is None
            for t in tags_of(edit.target, name)
        }
        right += said | hidden == exact | hidden
    assert right >= 190


def tags_of(face, name):
    "The tags that one option of a face would have if nothing covered it."
    spec, value = portraits.table(face.style), face[name] if name != "hair_length" else None
    return [value] if name in spec["colors"] else spec["parts"][name][value]["tags"] if value else []


def test_what_is_true_already_changes_nothing():
    for seed in range(50):
        text = caption(portraits.tags(portraits.sample(seed)))
        for tag in told(text):
            assert told(edited_caption(text, tag)) == told(text)


def test_a_face_is_read_back_from_its_tags():
    for seed in range(100):
        face = portraits.sample(seed)
        read = face_of(portraits.tags(face))
        assert (read["hair_color"], read["glasses"] is None) == (face["hair_color"], face["glasses"] is None)
    assert portraits.tags(face_of([]))  # a face all the same


def test_other_vocabularies_follow_the_plain_rule():
    text = "1girl, solo, brown hair, long hair, ponytail, glasses, round eyewear, eyewear, smile"
    assert told(edited_caption(text, "short hair")) >= {"short hair", "ponytail", "1girl"}
    assert "long hair" not in told(edited_caption(text, "short hair"))
    assert "eyewear" not in edited_caption(text, "no glasses")
    assert edited_caption(text, "sunglasses").startswith("sunglasses") and "round" not in edited_caption(
        text, "sunglasses"
    )
    assert edited_caption(text, "hat") == "hat, " + text and edited_caption("", "smile") == "smile"
