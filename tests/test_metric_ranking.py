"""Planted errors are graded as they claim, and rank correlations agree with known answers and scipy."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from mmgen.base.files import repo_root
from mmgen.benchmark.metric_ranking import measure, rank_correlation, ranking, set_ranking
from mmgen.benchmark.planted_errors import GRADES, KINDS, blended, planted
from mmgen.benchmark.scene_edits import scene_edit
from mmgen.benchmark.seasons import judge_of, season_rows
from mmgen.data.characters import attributes
from mmgen.metrics.features import extractor
from mmgen.metrics.pairs import pair_metric
from mmgen.report.measurements import latest, measured_by, read_rows
from mmgen.report.metric_ranking import ranking_section, reading

COLOR, SKIN, PORTRAIT = scene_edit("dev", 0), scene_edit("dev", 6), season_rows("portraits", 1)[0]


def test_the_first_grade_is_exact_and_each_next_one_is_further_from_it():
    for row, size in ((COLOR, 96), (PORTRAIT, 64)):
        target = row.pictures(size)[1].astype(float)
        for error, grades in GRADES.items():
            pictures = planted(row, error, size)
            if pictures is None:
                assert row is PORTRAIT and error == "background drift"
                continue
            apart = [np.square(picture - target).mean() for picture in pictures]
            assert len(apart) == len(grades) and apart[0] == 0, error
            assert sorted(apart) == apart and len(set(apart)) == len(apart), (error, apart)
    assert (planted(COLOR, "half-done edit", 96)[-1] == COLOR.pictures(96)[0]).all()


def test_rows_without_a_colour_have_no_wrong_shade():
    row = scene_edit("dev", 1)
    assert row.kind == "hair" and planted(row, "wrong shade", 48) is None


def test_a_mixture_of_two_colours_is_the_render_between():
    "Half way between two shades of the same drawing no pixel lies outside them, and plain areas have the mean."
    person, attribute, value = SKIN.changes[0]
    assert SKIN.kind == "skin" and attributes(SKIN.target.people[person].character)[attribute] == value
    one, other = SKIN.pictures(96)
    half = blended(one, other, 0.5).astype(int)
    assert (half >= np.minimum(one, other)).all() and (half <= np.maximum(one, other)).all()
    assert np.abs(half - (one.astype(int) + other) / 2).max() <= 0.5


def test_flips_are_those_that_the_judge_finds():
    judge = judge_of(SKIN, 128)
    verdicts = [judge(picture) for picture in planted(SKIN, "flipped attributes", 128)]
    assert [len(v.flips) for v in verdicts] == [0, 1, 2, 3] and all(v.reached for v in verdicts)


def test_planted_errors_are_the_same_every_time():
    for error in GRADES:
        first, again = (planted(COLOR, error, 48) for _ in range(2))
        assert all((a == b).all() for a, b in zip(first, again))


def test_rank_correlation_agrees_with_scipy():
    rng = np.random.default_rng(0)
    values, truth = rng.integers(0, 4, (50, 6)).astype(float), -np.arange(6)
    assert np.allclose(rank_correlation(values, truth), [spearmanr(row, truth).statistic for row in values])
    assert rank_correlation(np.ones((2, 6)), truth).tolist() == [0, 0]


def test_rankings_have_known_answers():
    exact = np.tile([-9.0, 0, -1, -2, -3], (30, 1))
    assert ranking(exact) == {"within": [1, 1, 1], "pooled": [1, 1, 1], "source": [0, 0, 0]}
    assert ranking(-exact)["within"][0] == -1 and ranking(-exact)["source"][0] == 1
    assert ranking(0 * exact)["within"] == [0, 0, 0] and ranking(0 * exact)["source"][0] == 0.5
    noise = np.random.default_rng(0).normal(size=(400, 5))
    value, low, high = ranking(noise)["within"]
    assert low < 0 < high and abs(value) < 0.1
    with_gap = np.concatenate([exact, [[0, np.nan, 0, 0, 0]]])
    assert ranking(with_gap)["within"] == [1, 1, 1]  # a row without a number counts nowhere
    half = np.concatenate([exact, -exact])
    value, low, high = ranking(half)["within"]
    assert value == 0 and -0.5 < low < 0 < high < 0.5


def test_the_frechet_distance_ranks_sets():
    rng = np.random.default_rng(0)
    sets = np.stack([rng.normal(shift, 1, (60, 8)) for shift in (3, 0, 0.7, 1.4, 2)], 1)
    found = set_ranking(sets, rng.normal(size=(60, 8)), draws=20)
    assert found["within"] == [1, 1, 1] and found["source"][0] == 0


@pytest.mark.parametrize("season", ["dev", "portraits"])
def test_metrics_of_rows(season):
    rows = [r for r in season_rows(season, 3) if season == "portraits" or r.kind in KINDS]
    clip = extractor("clip", "cpu") if season == "portraits" else None
    table = measure(rows, 32, [pair_metric("psnr", "cpu")], extractor("oracle", "cpu"), clip)
    assert ("CLIP direction" in table["blur"]) == (season == "portraits")
    for error, found in table.items():
        count = len(found["rows"])
        assert all(len(values) == count for values in found.values())
        assert found["PSNR"].shape == (count, 1 + len(GRADES[error])) and (found["PSNR"][:, 1] > 100).all()
        assert (found["skill"][:, 1] == 1).all() and (found["reached"][:, 1] == 1).all()
        assert found["oracle"].shape[:2] == found["PSNR"].shape
    outside = table["half-done edit"]["PSNR, outside"]
    assert (outside == outside[:, :1]).all()  # nothing outside the mask changes, in the source neither


ROWS = repo_root() / "reports" / "metric_ranking.jsonl"


@pytest.mark.skipif(not ROWS.is_file(), reason="python benchmarks/metric_ranking.py has not run")
def test_the_report_reads_the_rows():
    rows = latest(read_rows("metric_ranking"), ("images", "metric", "error"))
    text = ranking_section(rows, measured_by(rows, "metric_ranking"))
    assert "| skill |" in text and "`python benchmarks/metric_ranking.py" in text
    assert all(f"**{row['images'].capitalize()}**" in text for row in rows)
    assert all(json.dumps(row) for row in rows) and reading({"X": {"blur": rows[0] | {"within": [1, 1, 1]}}})
