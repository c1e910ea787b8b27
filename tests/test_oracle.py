"""The oracle."""

import numpy as np
import pytest
import torch

from mmgen.base.images import to_float
from mmgen.base.weights import packaged
from mmgen.data import portraits
from mmgen.data.edits import KINDS, as_batch, edits
from mmgen.editing.editor import CopyInput
from mmgen.metrics.oracle import Oracle, accuracy, classes, edit_scores, labels, score_editor

needs_weights = pytest.mark.skipif("oracle-portraits" not in packaged(), reason="none")


class Perfect:
    "An Editor that knows the answers."

    name, strength = "perfect", 1.0

    def __init__(self, some):
        self.answers = as_batch(some)[3]

    def edit(self, images, source, target, strength=None):
        return self.answers


def test_labels_are_classes_and_covered_parts_have_none():
    faces = [portraits.sample(seed) for seed in range(200)]
    found, known = labels(faces), classes()
    assert found.shape == (200, len(known))
    assert all(found[:, i].max() < len(values) for i, values in enumerate(known.values()))
    for face, row in zip(faces, found):
        hidden = dict(zip(known, row.tolist()))["eyes_color"] == -100
        assert hidden == (portraits.attributes(face)["eyes_color"] is None)


def test_accuracy_ignores_what_cannot_be_seen():
    truth = torch.tensor([[0, -100], [1, -100], [1, 2]])
    assert accuracy(torch.tensor([[0, 7], [0, 7], [1, 2]]), truth, ["a", "b"]) == {"a": pytest.approx(2 / 3), "b": 1.0}


def test_edit_scores_have_known_answers():
    before = torch.tensor([[0, 5, 1], [0, 5, 1]])
    wanted = torch.tensor([[2, 5, 3], [2, 5, 1]])
    seen = torch.tensor([[2, 5, 9], [0, 4, 1]])
    scores = edit_scores(seen, before, wanted, [0, 0])
    assert scores["reached"] == 0.5
    assert scores["kept"] == pytest.approx((0.5 + 1.0) / 2)  # column 2: only where the edit leaves it


@pytest.mark.parametrize("kind", KINDS)
def test_edits_change_what_they_name_and_are_deterministic(kind):
    some = edits(kind, 20, "test")
    assert some == edits(kind, 20, "test") and len({e.seed for e in some}) == 20
    for edit in some:
        before, after = portraits.attributes(edit.source), portraits.attributes(edit.target)
        assert before[edit.attribute] != after[edit.attribute]
        if kind == "glasses on":
            assert before["glasses"] == "none"
        if kind == "glasses off":
            assert after["glasses"] == "none"
    images, source, target, exact = as_batch(some)
    assert images.shape == exact.shape == (20, 3, 64, 64) and source != target
    assert (images != exact).flatten(1).any(1).all()


def test_unknown_edits_are_refused():
    with pytest.raises(portraits.PortraitError, match="choose from hair color"):
        edits("nose", 1)
    with pytest.raises(portraits.PortraitError, match="choose from train, validation, test, held_out"):
        edits("hair color", 1, "testing")


def test_edits_of_combinations_never_trained_on():
    some = edits("hair color", 20, "held_out")
    assert len(some) == 20 and all(portraits.is_held_out(e.source) for e in some)


@needs_weights
def test_the_packaged_oracle_names_what_is_there():
    oracle = Oracle.load(device="cpu")
    faces = [portraits.sample(seed) for seed in portraits.seeds(300, "test")]
    images = to_float(np.stack([portraits.render(face) for face in faces]))
    found = accuracy(oracle.predict(images), labels(faces), list(classes()))
    assert min(found[name] for name in ("hair_color", "skin", "glasses")) >= 0.99, found
    assert found["eyes_color"] >= 0.95, found
    rest = [value for name, value in found.items() if name not in ("hair_color", "skin", "glasses", "eyes_color")]
    assert np.mean(rest) >= 0.90, found


@needs_weights
def test_copying_keeps_all_and_reaches_nothing_and_the_answer_reaches_all():
    oracle = Oracle.load(device="cpu")
    some = edits("hair color", 60, "test")
    copied, _ = score_editor(oracle, CopyInput(), some)
    assert copied["reached"] < 0.05 and copied["kept"] > 0.9 and copied["skill"] == 0
    exact, _ = score_editor(oracle, Perfect(some), some)
    assert exact["reached"] > 0.95 and exact["kept"] > 0.9 and exact["skill"] == 1
