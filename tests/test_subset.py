"Which posts are chosen: every filter with its count, the seeded choice, the vocabulary; DuckDB and Spark agree."

import random
import shutil
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmgen.danbooru.subset import CATEGORIES, DROPPED, FLAGS, SubsetError, ordered, place, select, split_of

TYPES = {"id": pa.int64(), "parent_id": pa.int64(), "score": pa.int32(), "width": pa.int32(), "height": pa.int32()} | {
    name: pa.list_(pa.string()) for name in CATEGORIES
}


def post(id, **more):
    plain = {
        "id": id,
        "md5": f"{id:032x}",
        "ext": "jpg",
        "rating": "general",
        "score": 1,
        "created_at": datetime(2020, 1, 1),
        "width": 100,
        "height": 90,
        "parent_id": None,
    }
    return (
        plain
        | {f"is_{flag}": False for flag in FLAGS}
        | {name: [] for name in CATEGORIES}
        | {"general": ["1girl", "smile"]}
        | more
    )


def write(folder, posts, parts=1):
    (folder / "posts").mkdir(parents=True)
    for i in range(parts):
        some = posts[i::parts]
        table = pa.table({name: pa.array([p[name] for p in some], TYPES.get(name)) for name in posts[0]})
        pq.write_table(table, folder / "posts" / f"part-{i:05d}.parquet")
    return folder / "posts"


def chosen(folder):
    return pq.read_table(folder / "selection.parquet").to_pylist()


EACH = [
    post(1),
    post(2, is_deleted=True),
    post(3, is_banned=True),
    post(4, is_flagged=True),
    post(5, is_pending=True),
    post(6, rating=None),
    post(7, rating="sensitive"),
    post(8, ext="mp4"),
    post(9),
    post(10, md5=f"{1:032x}"),
    post(11, parent_id=1),
    post(12, general=[]),
    post(13, is_deleted=True, rating="explicit"),
    post(14, ext="PNG"),
    post(15, ext=None),
    post(16, md5=None),
    post(17, md5=None),
    post(18, parent_id=999),
]
WANTED = {
    "deleted": 2,
    "banned": 1,
    "flagged": 1,
    "pending": 1,
    "rating unknown": 1,
    "rating not wanted": 1,
    "no image format": 2,
    "no file": 1,
    "same picture": 1,
    "child of a kept post": 1,
    "too few tags": 1,
}


def test_every_reason_is_counted_once_and_in_order(tmp_path):
    files = pa.table({"id": [p["id"] for p in EACH if p["id"] != 9]})
    counts = select(write(tmp_path, EACH), tmp_path, relatives=False, files=files)
    assert counts["dropped"] == WANTED and list(WANTED) == list(DROPPED)
    assert [row["id"] for row in chosen(tmp_path)] == [1, 14, 16, 17, 18]
    assert counts["posts"] == 18 == sum(WANTED.values()) + counts["usable"] and counts["chosen"] == 5


def test_what_is_asked_for_stays(tmp_path):
    counts = select(
        write(tmp_path, EACH), tmp_path, ratings=("general", "sensitive", "explicit"), keep=FLAGS, min_tags=0
    )
    assert {row["id"] for row in chosen(tmp_path)} == {p["id"] for p in EACH} - {6, 8, 10, 12, 15}
    assert counts["dropped"]["too few tags"] == 1, "a post without any tag has no caption"


def many(n=2_000):
    rng = random.Random(0)
    return [
        post(
            3 * i + rng.randrange(3) + 1,
            general=["1girl", *rng.sample([f"tag_{k}" for k in range(30)], 4), f"rare_{i // 3}"],
            artist=["someone"],
        )
        for i in range(n)
    ]


def test_a_larger_choice_contains_the_smaller_and_files_order_means_nothing(tmp_path):
    posts = many()
    few = select(write(tmp_path / "a", posts), tmp_path / "a", n=300)
    select(write(tmp_path / "b", posts[::-1], parts=3), tmp_path / "b", n=900)
    select(write(tmp_path / "c", posts), tmp_path / "c", n=300, seed=1)
    a, b, c = ({row["id"] for row in chosen(tmp_path / name)} for name in "abc")
    assert len(a) == 300 == few["chosen"] and a < b and len(b) == 900
    assert 20 < len(a & c) < 80, "another seed, another choice: about 45 in common"
    assert {i for i in a} == set(sorted((p["id"] for p in posts), key=place)[:300])
    ids = [row["id"] for row in chosen(tmp_path / "b")]
    assert ids == sorted(ids) and all(row["split"] == split_of(row["id"]) for row in chosen(tmp_path / "b"))


def test_rare_tags_go_before_posts_with_too_few(tmp_path):
    posts = [post(i, general=["1girl", "smile"], character=["miku"] if i < 4 else []) for i in range(1, 6)] + [
        post(9, general=["odd", "stranger"])
    ]
    counts = select(write(tmp_path, posts), tmp_path, min_tag_count=3)
    assert counts["dropped"]["too few tags"] == 1 and counts["usable"] == 5
    words = pq.read_table(tmp_path / "vocabulary.parquet").to_pylist()
    assert [(w["tag"], w["category"], w["count"]) for w in words] == [
        ("1girl", "general", 5),
        ("smile", "general", 5),
        ("miku", "character", 3),
    ]
    assert chosen(tmp_path)[0]["tags"] == ["1girl", "miku", "smile"]


def test_the_order_of_a_caption():
    tags = {
        "general": ["long_hair", "2girls", "o_o", "multiple_boys", "smile"],
        "character": ["miku_(vocaloid)"],
        "copyright": ["some_series"],
        "artist": ["some_artist"],
        "meta": ["highres"],
    }
    assert ordered(tags) == [
        "2girls",
        "multiple boys",
        "miku (vocaloid)",
        "some series",
        "some artist",
        "long hair",
        "o_o",
        "smile",
        "highres",
    ]
    assert ordered({"general": ["smile", "smile"], "character": None}) == ["smile"]


def test_places_are_spread_evenly_and_fit_in_64_bits():
    places = [place(i, 7) for i in range(1, 20_001)]
    assert len(set(places)) == 20_000 and abs(sum(places) / 20_000 / 2**30 - 1) < 0.02
    assert 0 <= place(2**62) < 2**31 - 1 and place(5, 10**9) != place(5)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"ratings": ("safe",)}, "ratings has 'safe'; there are general"),
        ({"keep": ("old",)}, "keep has 'old'"),
        ({"categories": ("faults",)}, "categories has 'faults'"),
        ({"n": 0}, "at least 1 post"),
        ({"ratings": ()}, "At least one rating"),
    ],
)
def test_mistakes_are_named(tmp_path, given, said):
    with pytest.raises(SubsetError, match=said):
        select(write(tmp_path, EACH), tmp_path, **given)
    assert not (tmp_path / "selection.parquet").exists()


@pytest.mark.parametrize(
    "posts, safe",
    [
        (
            [post(i, rating="sensitive" if i % 4 else "explicit") for i in range(1, 401)],
            300,
        ),  # Danbooru2021: three letters, no g
        ([post(i, rating="sensitive" if i > 1 else "general") for i in range(1, 401)], 0),  # one g: the new ratings
        (
            [
                post(i, rating="sensitive", created_at=datetime(2023, 1, 1) if i == 7 else datetime(2020, 1, 1))
                for i in range(1, 401)
            ],
            0,
        ),  # a choice from a newer dump
        (
            [
                post(
                    i,
                    rating="sensitive" if i % 4 else "explicit",
                    created_at=datetime(9999, 12, 31, 23, 59) if i == 7 else datetime(2020, 1, 1),
                )
                for i in range(1, 401)
            ],
            300,
        ),  # a damaged date
        ([post(i, rating="sensitive") for i in range(1, 100)], 0),
    ],
)  # too few to tell
def test_s_was_safe_until_may_2022(tmp_path, posts, safe):
    table = write(tmp_path, posts)
    counts = select(table, tmp_path)
    assert counts["safe"] == safe and counts["usable"] == (safe or sum(p["rating"] == "general" for p in posts))
    assert {row["rating"] for row in chosen(tmp_path)} <= {"general"}
    if safe:
        assert select(table, tmp_path, ratings=("explicit",))["usable"] == 100


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("IO Error: Could not write file: No space left on device")],
)
def test_a_full_disk_is_one_sentence_and_a_rerun_does_it(tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    posts = write(tmp_path, EACH)
    monkeypatch.setattr("mmgen.danbooru.subset.atomic_write", full)
    with pytest.raises(SubsetError, match="There is no room for .* make room and run again"):
        select(posts, tmp_path)
    monkeypatch.undo()
    assert select(posts, tmp_path)["chosen"] == len(chosen(tmp_path)) > 0


def test_a_folder_without_posts_is_said(tmp_path):
    with pytest.raises(SubsetError, match="holds no table of posts"):
        select(tmp_path / "posts", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark_chooses_the_same(tmp_path):
    sql = pytest.importorskip("pyspark.sql")
    import ibis

    files = pa.table({"id": [p["id"] for p in EACH if p["id"] != 9]})
    one = select(write(tmp_path / "duckdb", EACH), tmp_path / "duckdb", relatives=False, files=files, n=3, seed=2)
    session = (
        sql.SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    try:
        connection = ibis.pyspark.connect(session)
        posts = connection.read_parquet(str(tmp_path / "duckdb" / "posts"))
        other = select(posts, tmp_path / "spark", relatives=False, files=files, n=3, seed=2)
    finally:
        session.stop()
    assert one == other and chosen(tmp_path / "duckdb") == chosen(tmp_path / "spark")
    assert (
        pq.read_table(tmp_path / "spark" / "vocabulary.parquet").to_pylist()
        == pq.read_table(tmp_path / "duckdb" / "vocabulary.parquet").to_pylist()
    )
