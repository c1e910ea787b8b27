"""Rows of scenes are exact and repeatable; the judge says what a picture shows."""

import json

import numpy as np
import pytest

from mmgen.benchmark.registration import SIZE, at_size, moved, register
from mmgen.benchmark.scene_edits import KINDS, LEVELS, scene_edit
from mmgen.benchmark.scene_judge import SceneJudge
from mmgen.data.characters import attributes, values, with_value
from mmgen.data.scenes import Scene, render_scene

ROWS = [scene_edit("test", n) for n in range(len(KINDS))]


@pytest.mark.parametrize("row", ROWS, ids=KINDS)
def test_a_row_is_what_it_says(row):
    assert row.kind in KINDS and row.level in LEVELS and all(text.endswith(".") for text in row.instructions)
    assert len(row.instructions) == len(row.scenes) - 1 == {"turns": 3, "back": 2}.get(row.kind, 1)
    assert len(row.captions) == len(row.tags) == len(row.scenes)
    assert row == scene_edit("test", int(row.id.split("-")[1]))
    plain = json.loads(json.dumps(row.to_dict()))
    assert tuple(map(Scene.from_dict, plain["scenes"])) == row.scenes
    assert row.mask(96).any() == (row.kind != "nothing")
    for person, attribute, value in row.changes:
        assert attributes(row.target.people[person].character)[attribute] == value
    if row.changes and row.kind != "nothing":
        named = {(person, attribute) for person, attribute, _ in row.changes}
        for person, (old, new) in enumerate(zip(row.source.people, row.target.people)):
            before, after = attributes(old.character), attributes(new.character)
            parts = {a for a in after if after[a] != before[a] and None not in (after[a], before[a])}
            shared = {a for p, a in named if p == person}
            assert not parts - shared - {"hat", "hair", "glasses", "eyes"}, row.instructions


@pytest.mark.parametrize("row", ROWS, ids=KINDS)
def test_the_judge_reaches_the_exact_answer_and_no_copy(row):
    judge = SceneJudge(row)
    verdict = judge(render_scene(row.target, 512))
    assert verdict.reached and not verdict.flips and verdict.registration == (0, 0, 1)
    copied = judge(render_scene(row.source, 512))
    assert copied.reached == (row.kind in ("nothing", "back")) and not copied.flips
    grey = judge(np.full((300, 200, 3), 128, np.uint8))
    assert grey.flips or not grey.reached


@pytest.mark.parametrize("row", ROWS[1:6:4] + ROWS[7:11:3], ids=lambda row: row.kind)
def test_a_flip_is_found_with_and_without_the_requested_change(row):
    judge = SceneJudge(row)
    for scene in (row.source, row.target):
        person = len(scene.people) - 1
        character, asked = scene.people[person].character, {(p, a) for p, a, _ in row.changes}
        known, shown = ("skin", "clothes color", "hair color"), attributes(character)
        attribute = next(a for a in known if shown.get(a) and (person, a) not in asked)
        value = next(v for v in values(character.style)[attribute][::-1] if v != attributes(character)[attribute])
        wrong = scene.with_character(person, with_value(character, attribute, value))
        assert attribute in [flip[1] for flip in judge(render_scene(wrong, 512)).flips]


@pytest.mark.parametrize("motion", [(0, 0, 1.0), (3, -2, 1.0), (-15, 14, 1.0), (0, 0, 1.03), (6, 2, 0.97)])
def test_shift_and_zoom_are_measured(motion):
    image = render_scene(ROWS[0].target, SIZE)
    found = register(moved(image, *motion), image, np.ones((SIZE, SIZE), bool))
    assert np.abs(np.subtract(found, motion))[:2].max() <= 1 and abs(found[2] - motion[2]) <= 0.01
    assert register(image, image, np.zeros((SIZE, SIZE), bool)) == (0, 0, 1)


@pytest.mark.parametrize("row", ROWS[::4], ids=KINDS[::4])
def test_what_the_edit_changes_does_not_disturb_the_registration(row):
    source, target = row.pictures(SIZE)
    motion = register(moved(source, 5, -4, 1.02), target, ~row.mask(SIZE))
    assert np.abs(np.subtract(motion, (5, -4, 1.02)))[:2].max() <= 1.5 and abs(motion[2] - 1.02) <= 0.015


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 3)),
        np.zeros((64, 64, 4), np.uint8),
    ],
)
def test_what_is_no_result_is_said(image):
    with pytest.raises(ValueError, match="A result is uint8"):
        at_size(image)


def test_results_of_any_size_are_reduced_by_one_rule():
    image = render_scene(ROWS[0].target, 512)
    wide = np.concatenate([np.zeros((512, 100, 3), np.uint8), image, np.zeros((512, 100, 3), np.uint8)], 1)
    assert (at_size(wide) == at_size(image)).all() and at_size(image[::8, ::8]).shape == (SIZE, SIZE, 3)
