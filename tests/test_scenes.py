"""Characters and scenes: exact, complete, and refused where they cannot be drawn."""

import json

import numpy as np
import pytest

from mmgen.data.characters import (
    Character,
    CharacterError,
    attributes,
    colored,
    describe,
    licence,
    phrases,
    render,
    render_svg,
    sample,
    styles,
    svg,
    tags,
    values,
    with_value,
)
from mmgen.data.scenes import (
    Background,
    Scene,
    changed_pixels,
    describe_scene,
    references,
    render_scene,
    sample_scene,
    scene_svg,
    scene_tags,
)


@pytest.mark.parametrize("style", styles())
def test_every_value_of_every_style_can_be_drawn_and_read_back(style):
    start = sample(0, style)
    for attribute, options in values(style).items():
        for value in options:
            changed = with_value(start, attribute, value)
            shown = attributes(changed)[attribute]
            assert shown == value or (shown is None and attribute.endswith("color")), (attribute, value)
            assert Character.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed
    assert render(start, 32).shape == (32, 32, 3) and render(start, 32).std() > 0
    assert licence(style) and describe(start).startswith("a person with ") and tags(start)


@pytest.mark.parametrize("seed", range(20))
def test_a_change_keeps_every_attribute_that_shares_no_part_with_it(seed):
    start = sample(seed)
    rng = np.random.default_rng(seed)
    options = values(start.style)
    attribute = rng.choice(list(options))
    value = rng.choice(options[attribute])
    before, after = attributes(start), attributes(with_value(start, attribute, value))
    for other, now in after.items():
        if other == attribute or now == before[other]:
            continue
        covers = {"hair", "hat", "eyes", "glasses"} | {a for a in after if a.endswith("color")}
        assert {attribute, other} <= covers | {attribute, other} and (other in covers), (attribute, value, other)


def test_the_same_seed_draws_the_same_pixels():
    assert sample(7) == sample(7) and (render(sample(7), 48) == render(sample(7), 48)).all()
    assert sample_scene(7) == sample_scene(7)
    assert (render_scene(sample_scene(7), 48) == render_scene(sample_scene(7), 48)).all()


@pytest.mark.parametrize("style", styles())
def test_a_drawing_is_that_of_dicebear_which_checks_its_options(style):
    from dicebear import Avatar, Style

    from mmgen.data.characters import _drawing, _table, palette

    character = sample(3, style)
    options = {"seed": "mmgen", "backgroundColor": "#00000000"}
    options |= {f"{r}Color": c["values"][0] for r, c in _drawing(style)["colors"].items() if r != "background"}
    options |= {f"{_table(style)['colors'][role]}Color": palette(role)[name] for role, name in character.colors}
    for part, variant in character.parts:
        options |= {f"{part}Variant": variant, f"{part}Probability": 100} if variant else {f"{part}Probability": 0}
    known = _drawing(style)["components"]
    options = {k: v for k, v in options.items() if not k.endswith("Probability") or "probability" in known[k[:-11]]}
    whole = render_svg(Avatar(Style(_drawing(style)), options).to_string(), 128)
    assert np.abs(whole.astype(int) - render(character, 128)).mean() < 0.2
    part, variant = next((p, v) for p, v in character.parts if v)
    parts = tuple((p, "no such variant" if p == part else v) for p, v in character.parts)
    with pytest.raises(CharacterError, match="no such variant"):
        svg(Character(style, parts, character.colors))


@pytest.mark.parametrize("style", ["adventurer", "lorelei"])
def test_a_portrait_is_that_of_dicebear_and_each_option_is_checked(style, monkeypatch):
    from dicebear import Avatar, Style
    from dicebear.errors import OptionsValidationError

    from mmgen.data import portraits
    from mmgen.data.characters import _drawing, dicebear_style, markup

    asked = []
    monkeypatch.setattr(portraits, "markup", lambda style, options: asked.append(options) or markup(style, options))
    for seed in range(5):
        portraits.png(portraits.sample(seed, style), 16)
    known, checked = dicebear_style(style), Style(_drawing(style))
    assert len(asked) == 5 and all(markup(known, o) == Avatar(checked, o).to_string() for o in asked)
    for _ in range(2):
        with pytest.raises(OptionsValidationError):
            markup(known, asked[0] | {"scale": "large"})


@pytest.mark.parametrize("seed", range(6))
def test_layers_and_one_svg_show_the_same_scene(seed):
    scene = sample_scene(seed)
    assert np.abs(render_scene(scene, 192).astype(int) - render_svg(scene_svg(scene), 192)).mean() < 0.3
    small, large = (render_scene(scene, size).astype(float) for size in (64, 256))
    assert np.abs(small - large.reshape(64, 4, 64, 4, 3).mean((1, 3))).mean() < 3


@pytest.mark.parametrize("people", [1, 2, 3, 4])
def test_a_changed_character_changes_only_its_own_pixels(people):
    scene = sample_scene(people, people, "personas")
    place = scene.people[0]
    value = next(v for v in values("personas")["clothes color"] if v != attributes(place.character)["clothes color"])
    edited = scene.with_character(0, with_value(place.character, "clothes color", value))
    ys, xs = np.nonzero(changed_pixels(scene, edited, 200))
    assert len(xs) and xs.min() >= 200 * place.x - 1 and xs.max() <= 200 * (place.x + place.size) + 1
    assert ys.min() >= 200 * place.y - 1
    assert not changed_pixels(scene, scene.with_character(0, place.character), 64).any()


def test_scenes_are_plain_json():
    for seed in range(12):
        scene = sample_scene(seed)
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
        assert describe_scene(scene).endswith(".") and len(scene_tags(scene)) > 2


def test_adding_taking_away_and_swapping():
    scene = sample_scene(5, 3)
    assert len(scene.without(1).people) == 2 and changed_pixels(scene, scene.without(1), 96).any()
    assert scene.swapped(0, 2).swapped(0, 2) == scene
    assert scene.swapped(0, 2).people[0].character == scene.people[2].character


@pytest.mark.parametrize("seed", range(10))
def test_a_reference_means_one_character(seed):
    scene = sample_scene(seed, 3)
    names = [references(scene, i) for i in range(3)]
    assert len({n for group in names for n in group}) == sum(map(len, names))
    for i, group in enumerate(names):
        for name in group[1:]:
            text = name.removeprefix("the person with ")
            bearers = [j for j, p in enumerate(scene.people) if text in phrases(p.character).values()]
            assert bearers == [i]


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: sample(0, "avataars"), "did you mean 'avataaars'"),
        (lambda: with_value(sample(0, "dylan"), "hats", "none"), "no attribute 'hats'"),
        (lambda: with_value(sample(0, "dylan"), "hair", "a bobb"), "did you mean 'a bob'"),
        (lambda: Character.from_dict({"style": "dylan"}), "has style, parts and colors"),
        (lambda: Character.from_dict({**sample(0, "dylan").to_dict(), "colors": {}}), "has the colours"),
        (lambda: Character.from_dict({**sample(0, "dylan").to_dict(), "parts": {"hair": "x"}}), "has the parts"),
        (lambda: Background("sea"), "no background 'sea'"),
        (lambda: Background("landscape", "1"), "no background"),
        (lambda: sample_scene(0, 5), "1 to 4 people, not 5"),
        (lambda: Scene.from_dict({"background": ["white", 0], "people": [{"at": [0, 0]}]}), "no description"),
        (lambda: Scene.from_dict([]), "no description"),
    ],
)
def test_what_cannot_be_drawn_is_said(build, words):
    with pytest.raises(CharacterError, match=words):
        build()


def test_colours_stand_where_english_puts_them():
    assert colored("long hair", "green") == "long green hair" and colored("an afro", "red") == "a red afro"
    assert colored("two buns", "pink") == "two pink buns" and colored("overalls", "blue") == "blue overalls"
    assert colored("a T-shirt", "orange") == "an orange T-shirt"
