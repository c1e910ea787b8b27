"""mmgen.data.edited_captions: the target caption of a tag agrees with the tags of the exact target."""

import pytest

from mmgen.data import portraits
from mmgen.data.captions import caption
from mmgen.data.edited_captions import edited_caption, face_of
from mmgen.data.edits import KINDS, edits


def split_tags(text):
    return set(text.split(", "))


@pytest.mark.parametrize("tag", ["green hair", "red eyes", "tan"])
def test_for_colours_the_caption_is_the_exact_one(tag):
    for seed in range(200):
        face = portraits.sample(seed)
        try:
            target = portraits.change(face, tag)
        except portraits.PortraitError:
            continue
        assert split_tags(edited_caption(caption(portraits.tags(face)), tag)) == set(portraits.tags(target))


@pytest.mark.parametrize("kind", KINDS)
def test_for_every_kind_of_edit_little_but_the_revealed_differs(kind):
    rows, right = edits(kind, 200), 0
    for edit in rows:
        source, exact = portraits.tags(edit.source), set(portraits.tags(edit.target))
        target_tags = split_tags(edited_caption(caption(source), edit.tag))
        assert edit.tag in target_tags or edit.tag.startswith("no ")
        hidden = {
            t
            for name, value in portraits.attributes(edit.source).items()
            if value is None
            for t in tags_of(edit.target, name)
        }
        right += target_tags | hidden == exact | hidden
    assert right >= 190


def tags_of(face, name):
    "The tags that one option of a face would have if nothing covered it."
    spec, value = portraits.table(face.style), face[name] if name != "hair_length" else None
    return [value] if name in spec["colors"] else spec["parts"][name][value]["tags"] if value else []


def test_what_is_true_already_changes_nothing():
    for seed in range(50):
        text = caption(portraits.tags(portraits.sample(seed)))
        for tag in split_tags(text):
            assert split_tags(edited_caption(text, tag)) == split_tags(text)


def test_a_face_is_read_back_from_its_tags():
    for seed in range(100):
        face = portraits.sample(seed)
        read = face_of(portraits.tags(face))
        assert (read["hair_color"], read["glasses"] is None) == (face["hair_color"], face["glasses"] is None)
    assert portraits.tags(face_of([]))  # a face all the same


def test_other_vocabularies_follow_the_plain_rule():
    text = "1girl, solo, brown hair, long hair, ponytail, glasses, round eyewear, eyewear, smile"
    assert split_tags(edited_caption(text, "short hair")) >= {"short hair", "ponytail", "1girl"}
    assert "long hair" not in split_tags(edited_caption(text, "short hair"))
    assert "eyewear" not in edited_caption(text, "no glasses")
    assert edited_caption(text, "sunglasses").startswith("sunglasses") and "round" not in edited_caption(
        text, "sunglasses"
    )
    assert edited_caption(text, "hat") == "hat, " + text and edited_caption("", "smile") == "smile"
