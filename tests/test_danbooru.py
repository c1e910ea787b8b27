"A dump's metadata becomes the table of posts: hand-written lines, known damage, archives, stops, DuckDB and Spark."

import gzip
import io
import json
import lzma
import shutil
import tarfile

import pyarrow.parquet as pq
import pytest
import zstandard
from danbooru_samples import NEW, NEW_ROWS, OLD, OLD_ROWS
from evil_archives import KINDS, evil_archive

import mmgen.danbooru.posts as danbooru
from mmgen.base.files import FolderInUse, locked
from mmgen.danbooru.metadata_files import MetadataError
from mmgen.danbooru.posts import write_posts
from mmgen.danbooru.synthetic_dump import LINE_DAMAGE, write_dump


def rows(out):
    return sorted(pq.read_table(out / "posts").to_pylist(), key=lambda row: row["id"])


def post(id, tags="smile", **more):
    names = [{"id": "1", "name": tag, "category": "0"} for tag in tags.split()]
    return json.dumps(
        {
            "id": str(id),
            "created_at": "2011-06-09 18:30:00 UTC",
            "md5": f"{id:032x}",
            "rating": "s",
            "file_ext": "jpg",
            "tags": names,
        }
        | more,
        ensure_ascii=False,
    )


def dump(folder, *lines, name="2017000000000000"):
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    (folder / "metadata" / name).write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n"
    )
    return folder


@pytest.mark.parametrize("lines, wanted", [(OLD, OLD_ROWS), (NEW, NEW_ROWS)], ids=["2017", "2021"])
def test_lines_written_after_the_public_descriptions(tmp_path, lines, wanted):
    counts = write_posts(dump(tmp_path / "d", *lines), tmp_path / "out")
    assert counts["posts"] == len(lines) and counts["lines"] == len(lines)
    for found, row in zip(rows(tmp_path / "out"), wanted, strict=True):
        assert {name: found[name] for name in row} == row


def test_s_is_safe_in_old_dumps_and_sensitive_in_new_ones(tmp_path):
    write_posts(dump(tmp_path / "old", post(1)), tmp_path / "a")
    new = {
        "id": "1",
        "created_at": "2021-06-09 18:30:00 UTC",
        "md5": "0" * 32,
        "rating": "s",
        "file_ext": "jpg",
        "tag_string_general": "smile",
    }
    write_posts(dump(tmp_path / "new", json.dumps(new)), tmp_path / "b")
    assert rows(tmp_path / "a")[0]["rating"] == "general" and rows(tmp_path / "b")[0]["rating"] == "sensitive"


@pytest.mark.parametrize("form", ["2017", "2021"])
def test_cores_that_share_a_file_keep_its_order(tmp_path, form):
    planted = write_dump(
        tmp_path / "d", 20_000, form=form, damage={"duplicate id": 40, "truncated line": 7}, images=False, files=1
    )
    found = [write_posts(tmp_path / "d", tmp_path / f"out{threads}", threads=threads) for threads in (1, 4)]
    alone, shared = (pq.read_table(tmp_path / f"out{threads}" / "posts") for threads in (1, 4))
    assert (
        found[0] == found[1]
        and found[0]["duplicate id"] == 40
        and len(alone) == planted["posts"]
        and alone.equals(shared)
    )


@pytest.mark.parametrize("form", ["2017", "2021"])
@pytest.mark.parametrize("compress, bom", [(None, False), (None, True), ("gz", True), ("zst", False), ("tar.xz", True)])
def test_every_damage_is_counted_exactly(tmp_path, form, compress, bom):
    damage = {name: 2 + i for i, name in enumerate(LINE_DAMAGE)}
    planted = write_dump(
        tmp_path / "d", 600, form=form, damage=damage, images=False, compress=compress, bom=bom, files=3
    )
    counts = write_posts(tmp_path / "d", tmp_path / "out")
    assert {name: counts[name] for name in LINE_DAMAGE} == damage
    assert (counts["posts"], counts["lines"], counts["tags"], counts["repeated tags"]) == (
        planted["posts"],
        planted["lines"],
        planted["tags"],
        planted["repeated tags"],
    )
    assert len({row["id"] for row in rows(tmp_path / "out")}) == planted["posts"]


@pytest.mark.parametrize("files", [1, 4, 7])
def test_a_bad_line_in_any_of_several_small_files(tmp_path, files):
    planted = write_dump(
        tmp_path / "d", 60, damage={"malformed line": 3, "truncated line": 2}, images=False, files=files
    )
    counts = write_posts(tmp_path / "d", tmp_path / "out")
    assert counts["malformed line"] == 3 and counts["truncated line"] == 2 and counts["posts"] == planted["posts"] == 55


BAD = [
    b'{"id": "2", "md5"',
    b"{'id': '3'}",
    b"[1]",
    b"null",
    b"\xff\xfe\x00",
    post(4).encode()[:-1],
    post(5).encode().replace(b"smile", b"sm\xe9le"),
    b"{}",
    b'{"id": "6"}',
]


def test_known_lines_one_by_one(tmp_path):
    counts = write_posts(
        dump(
            tmp_path / "d",
            post(1),
            *BAD,
            "",
            "   ",
            post(1, "other"),
            post(7, ""),
            post(8, "a&lt;b " + "x" * 300),
            post(9, "y" * 1_000_000),
        ),
        tmp_path / "out",
    )
    found = {row["id"]: row["general"] for row in rows(tmp_path / "out")}
    assert found == {1: ["smile"], 8: ["a<b"]}
    assert (
        counts["truncated line"] == 2
        and counts["wrong encoding"] == 2
        and counts["duplicate id"] == 1
        and counts["overlong tag"] == 2
        and counts["HTML entity"] == 1
    )
    assert (
        counts["lines"] == 1 + len(BAD) + 4
        and counts["malformed line"] + counts["no id"] == 4
        and counts["no tags"] == 3
    )


PACK = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress}


def archive(lines):
    "A tar with one member for each line."
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as out:
        for i, line in enumerate(lines):
            member, text = tarfile.TarInfo(f"metadata/2017{i:012d}"), f"{line}\n".encode()
            member.size = len(text)
            out.addfile(member, io.BytesIO(text))
    return file.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "posts.json.gz",
        "posts.json.xz",
        "posts.json.zst",
        pytest.param("metadata.json.tar", marks=pytest.mark.slow),
        pytest.param("metadata.json.tar.gz", marks=pytest.mark.slow),
        pytest.param("metadata.json.tar.xz", marks=pytest.mark.slow),
        "metadata.json.tar.zst",
    ],
)
def test_a_download_that_broke_off_is_never_taken_for_the_whole(tmp_path, name):
    lines = [post(i, f"tag_{i * 7919 % 1000}") for i in range(1, 41)]
    pack = PACK.get(name.rpartition(".")[2], bytes)
    data = pack(archive(lines) if ".tar" in name else "\n".join(lines).encode())
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(data)
    assert write_posts(tmp_path / "d", tmp_path / "whole")["posts"] == 40
    cuts = (
        [1024 * 8, 1024 * 20, 1024 * 40] if name.endswith(".tar") else [len(data) // 3, len(data) // 2, len(data) - 1]
    )  # a tar's are between two members
    for cut in cuts:
        (tmp_path / "d" / name).write_bytes(data[:cut])
        with pytest.raises(MetadataError, match="is damaged or ends early.*fetch it again"):
            write_posts(tmp_path / "d", tmp_path / "out")
    (tmp_path / "d" / name).write_bytes(data)
    assert write_posts(tmp_path / "d", tmp_path / "out")["posts"] == 40


def test_a_zst_of_several_frames(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "posts.json.zst").write_bytes(b"".join(PACK["zst"](f"{post(i)}\n".encode()) for i in range(1, 6)))
    assert write_posts(tmp_path / "d", tmp_path / "out")["posts"] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_archives_never_reach_outside(tmp_path, kind):
    (tmp_path / "d").mkdir()
    secret = tmp_path / "secret.json"
    secret.write_text(post(666) + "\n")
    evil_archive(tmp_path / "d" / "metadata.json.tar.xz", kind, secret, (post(1) + "\n" + post(2) + "\n").encode())
    counts = write_posts(tmp_path / "d", tmp_path / "out")
    assert [row["id"] for row in rows(tmp_path / "out")] == [1, 2] and counts["archive members left out"] >= 1
    assert secret.read_text() == post(666) + "\n" and sorted(p.name for p in tmp_path.iterdir()) == [
        "d",
        "out",
        "secret.json",
    ]


def test_other_tables_in_an_archive_are_left_alone(tmp_path):
    (tmp_path / "m").mkdir(), (tmp_path / "d").mkdir()
    for name, text in (
        ("README", "about"),
        ("artists000000000000.json", '{"id": "1", "name": "x"}'),
        ("posts000000000000.json", post(1) + "\n" + post(2)),
        ("tags.json", '{"id": "2"}'),
    ):
        (tmp_path / "m" / name).write_text(text + "\n")
    with tarfile.open(tmp_path / "d" / "metadata.json.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "m", "metadata")
    counts = write_posts(tmp_path / "d", tmp_path / "out")
    assert counts["posts"] == 2 == counts["lines"] and counts["no tags"] == counts["duplicate id"] == 0


def test_a_finished_table_is_not_made_again_and_a_stopped_one_goes_on(tmp_path, monkeypatch):
    write_dump(tmp_path / "d", 400, images=False, files=1, damage={"duplicate id": 5, "no tags": 3})
    for i in (1, 2):
        shutil.copy(
            tmp_path / "d" / "metadata" / "2017000000000000", tmp_path / "d" / "metadata" / f"201700000000000{i}"
        )
    whole = write_posts(tmp_path / "d", tmp_path / "whole")
    assert whole["lines"] == 3 * 405 and whole["posts"] == 397 and whole["duplicate id"] == 5 + 2 * 405
    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "whole" / "posts").iterdir()}
    assert write_posts(tmp_path / "d", tmp_path / "whole") == whole and stamp == {
        p: p.stat().st_mtime_ns for p in stamp
    }


def test_a_full_disk_is_said_and_a_rerun_goes_on(tmp_path, monkeypatch):
    write_dump(tmp_path / "d", 300, images=False, files=2)
    real, calls = danbooru.os.replace, []

    def full(*a):
        calls.append(a)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return real(*a)

    monkeypatch.setattr(danbooru.os, "replace", full)
    with pytest.raises(MetadataError, match="There is no room for .*make room and run again"):
        write_posts(tmp_path / "d", tmp_path / "out")
    monkeypatch.undo()
    assert (
        not list((tmp_path / "out").glob(".posts.tmp*"))
        and write_posts(tmp_path / "d", tmp_path / "out")["posts"] == 300
    )


def test_two_runs_into_one_folder(tmp_path):
    with locked(tmp_path / "out"), pytest.raises(FolderInUse, match="Another run writes into"):
        write_posts(dump(tmp_path / "d", post(1)), tmp_path / "out")


@pytest.mark.parametrize(
    "lines, form, said",
    [
        ((post(1),), "2021", "is of the form 2017, not 2021"),
        ((OLD[0],), "2022", "There is no form '2022'"),
        ((b"hello",), "auto", "holds no posts"),
        (("{}",), "auto", "holds no posts"),
        (
            ('{"id": 1, "tag_string": "smile", "rating": "g"}',),
            "auto",
            "neither a list `tags` nor `tag_string_general`",
        ),
        ((post(1).encode("utf-16"),), "auto", "is written in UTF-16"),
        (
            ("[", post(1) + ",", post(2), "]"),
            "auto",
            "is one JSON array; the metadata of a dump has a post on each line",
        ),
    ],
)
def test_what_is_no_dump_is_said(tmp_path, lines, form, said):
    with pytest.raises(MetadataError, match=said):
        write_posts(dump(tmp_path / "d", *lines), tmp_path / "out", form)


def test_mixed_forms_missing_dumps_and_other_dumps(tmp_path):
    mixed = dump(dump(tmp_path / "m", OLD[0]), NEW[0], name="2017000000000001")
    with pytest.raises(MetadataError, match="mixes two forms"):
        write_posts(mixed, tmp_path / "out")
    with pytest.raises(MetadataError, match="There is no dump at"):
        write_posts(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MetadataError, match="has no metadata"):
        write_posts(tmp_path / "empty", tmp_path / "out")
    write_posts(dump(tmp_path / "one", post(1)), tmp_path / "out")
    with pytest.raises(MetadataError, match="holds the posts of another dump"):
        write_posts(dump(tmp_path / "two", post(2), name="2018000000000000"), tmp_path / "out")
    assert [row["id"] for row in rows(tmp_path / "out")] == [1]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "posts.json.gz").write_bytes(b"\x1f\x8b\x08damaged")
    with pytest.raises(MetadataError, match="is damaged or ends early"):
        write_posts(broken, tmp_path / "out2")


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
@pytest.mark.parametrize("form", ["2017", "2021"])
def test_spark_reads_the_same(tmp_path, form):
    sql = pytest.importorskip("pyspark.sql")
    import ibis

    write_dump(tmp_path / "d", 200, form=form, damage={name: 2 for name in LINE_DAMAGE}, images=False)
    with open(next((tmp_path / "d" / "metadata").iterdir()), "a") as file:  # as other programs write
        for i, more in enumerate(
            (
                {"is_deleted": "1"},
                {"is_flagged": "T"},
                {"is_banned": "yes"},
                {"id": "777000003.0"},
                {"image_width": "50.0"},
                {"created_at": "2262-05-10 00:00:00 UTC"},
            )
        ):
            tags = (
                {"tags": [{"id": "1", "name": "hat", "category": "0"}]}
                if form == "2017"
                else {"tag_string_general": "hat"}
            )
            file.write(
                json.dumps(
                    {
                        "id": f"77700000{i}",
                        "md5": f"{i:032x}",
                        "rating": "s",
                        "file_ext": "png",
                        "created_at": "2019-01-01 00:00:00 UTC",
                    }
                    | tags
                    | more
                )
                + "\n"
            )
    one = write_posts(tmp_path / "d", tmp_path / "duckdb")
    session = (
        sql.SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    try:
        other = write_posts(tmp_path / "d", tmp_path / "spark", connection=ibis.pyspark.connect(session))
    finally:
        session.stop()
    assert one == other and rows(tmp_path / "duckdb") == rows(tmp_path / "spark")
    odd = [row for row in rows(tmp_path / "spark") if row["id"] >= 777_000_000]
    assert len(odd) == 6 and [[row[f"is_{flag}"] for row in odd[:3]] for flag in ("deleted", "flagged", "banned")] == [
        [n == at for n in range(3)] for at in range(3)
    ]
    assert odd[4]["width"] == 50 and odd[5]["created_at"].year == 2262


@pytest.mark.parametrize("form", ["2017", "2021"])
def test_the_expression_and_the_reader_give_the_same_posts(tmp_path, form):
    "`posts`, for tables that an engine holds, and `write_posts`, for files, apply the same rules"
    import ibis

    from mmgen.danbooru.metadata_table import duckdb_raw, posts

    damage = {name: 5 for name in LINE_DAMAGE} | {"overlong tag": 2}
    planted = write_dump(tmp_path / "d", 500, form=form, damage=damage, images=False)
    extra = [
        post(900_000_000 + n, tags) for n, tags in enumerate(("a&amp;b a&b", "x" * 255, "a  b a", "&lt;3 &amp;lt;3"))
    ]
    with open(planted["metadata"][0], "a") as file:
        file.writelines(line + "\n" for line in extra if form == "2017")
    write_posts(tmp_path / "d", tmp_path / "out")
    raw = duckdb_raw(ibis.duckdb.connect(), planted["metadata"], form)
    table = posts(raw.mutate(line=ibis.row_number()), form).order_by("id").to_pyarrow().to_pylist()
    assert table == rows(tmp_path / "out") and len(table) == planted["posts"] + (4 if form == "2017" else 0)


def test_times_are_utc_on_every_engine(tmp_path):
    import ibis

    from mmgen.danbooru.metadata_table import canonical, duckdb_raw

    written = [
        "2008-06-10 03:08:07.342 UTC",
        "2023-05-06T10:40:45.524-04:00",
        "2023-05-06T20:10:45.524+0530",
        "2023-05-06 14:40:45.524+00",
        "2023-05-06 14:40:45.524",
    ]
    path = tmp_path / "posts.json"
    path.write_text(
        "".join(
            json.dumps({"id": i, "created_at": time, "tag_string_general": "smile"}) + "\n"
            for i, time in enumerate(written)
        )
    )
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET TimeZone='Asia/Tokyo'")
    typed = duckdb_raw(connection, [path], "2021")
    text = typed.drop("created_at").mutate(created_at=ibis.array(written)[typed.id])  # as Spark and BigQuery have it
    for raw in (typed, text):
        found = canonical(raw, "2021").order_by("id").created_at.to_pyarrow().to_pylist()
        assert [str(time) for time in found] == ["2008-06-10 03:08:07.342000", *4 * ["2023-05-06 14:40:45.524000"]]


def test_a_line_that_no_post_has(tmp_path):
    source = dump(tmp_path / "d", post(1), b"\0" * 40_000_000)
    with pytest.raises(MetadataError, match="more than 16 million bytes"):
        write_posts(source, tmp_path / "out")
    assert not list((tmp_path / "out" / "posts").iterdir())
