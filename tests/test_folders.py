"Folders of images with captions in many layouts; data sets with captions under other names."

import io
import json
import warnings

import datasets
import numpy as np
import pytest
from PIL import Image

from mmgen.data.caption_text import SourceError, SourceNotice, spaced
from mmgen.data.folders import read_folder, with_captions
from mmgen.data.sources import load_source, to_arrays


def stored(n):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (n, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def write(tmp_path):
    def put(files, images=3, folder=tmp_path / "set"):
        for name, content in ({f"{n:02}.png": stored(n) for n in range(images)} | files).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return put


def quiet(folder, *rest):
    "What is read, and that nothing was said about it"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_folder(folder, *rest)
    assert [pixel.getpixel((0, 0))[0] for pixel in data["image"]] == sorted(
        pixel.getpixel((0, 0))[0] for pixel in data["image"]
    )
    return list(data["tags" if "tags" in data.column_names else "text"])


def test_text_files_of_tags(write):
    folder = write({"00.txt": "green hair, smile", "01.caption": "red hair,\nhat", "02.png.txt": "blue_hair\nsolo"})
    assert quiet(folder) == [["green hair", "smile"], ["red hair", "hat"], ["blue hair", "solo"]]


def test_text_files_of_sentences(write):
    folder = write(
        {
            "00.txt": "A frog sits on a leaf.\nIt is green.",
            "01.txt": "a dog that runs along the long beach",
            "02.txt": "cat, hat",
        }
    )
    with pytest.warns(SourceNotice, match="1 of 3 images in .* have several captions; the first is used: 00.png"):
        data = read_folder(folder)
    assert data["text"][:] == ["A frog sits on a leaf.", "a dog that runs along the long beach", "cat, hat"]


def test_json_beside_each_image(write):
    danbooru = {
        "id": 1,
        "tag_string": "1girl long_hair someone",
        "tag_string_general": "1girl long_hair ^_^",
        "tag_string_artist": "someone",
        "tag_string_character": "saber_(fate)",
        "tag_string_copyright": "",
        "tag_string_meta": "highres",
    }
    folder = write(
        {
            "00.json": json.dumps(danbooru),
            "01.png.json": json.dumps({"tags": {"general": ["hat", "red_hair"], "artist": []}}),
            "02.json": json.dumps({"caption": "cat, hat", "tags": "hat, indoors", "score": 3}),
        }
    )
    assert quiet(folder) == [
        ["saber (fate)", "1girl", "long hair", "^_^"],
        ["hat", "red_hair"],
        ["cat", "hat", "indoors"],
    ]


def test_tags_of_gallery_dl_by_category(write):
    folder = write(
        {
            "00.png.json": json.dumps(
                {"tags": "1girl long_hair", "tags_general": ["1girl", "long_hair"], "tags_artist": ["x"]}
            )
        },
        images=1,
    )
    assert quiet(folder) == [["1girl", "long hair"]]


def test_gallery_dl_says_a_danbooru_tag_once(write):
    # its files have the site's own strings and, beside them, lists by category
    entry = {
        "tags": ["1girl", "long_hair", "x"],
        "tag_string": "1girl long_hair x",
        "tag_string_general": "1girl long_hair",
        "tag_string_artist": "x",
        "tags_general": ["1girl", "long_hair"],
        "tags_artist": ["x"],
    }
    assert quiet(write({"00.png.json": json.dumps(entry)}, images=1)) == [["1girl", "long hair"]]


def test_brackets_with_backslashes(write):
    folder = write(
        {
            "00.txt": r"1girl, saber \(fate\), \m/, rem \(re:zero\)",
            "01.txt": "(smile:1.2), a (b)",
            "02.txt": r"\(^o^)/, \o/",
        }
    )
    assert quiet(folder) == [
        ["1girl", "saber (fate)", r"\m/", "rem (re:zero)"],
        ["smile", "a (b)"],
        [r"\(^o^)/", r"\o/"],
    ]
    folder = write({f"{n:02}.txt": rf"Saber \(fate\) is number {n} here." for n in range(3)})
    assert quiet(folder)[1] == "Saber (fate) is number 1 here."


def test_names_in_capitals_and_folders_in_folders(write):
    folder = write(
        {
            "a/b/1.JPG": stored(3),
            "a/b/1.TXT": "one, a",
            "a/2.Png": stored(2),
            "a/2.txt": "two, a",
            "3.WEBP": stored(1),
            "3.WEBP.JSON": '{"tags": ["three"]}',
        },
        images=0,
    )
    assert sorted(quiet(folder)) == [["one", "a"], ["three"], ["two", "a"]]


def test_avif(write):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 0, 0)).save(file, "AVIF")
    assert quiet(write({"x.avif": file.getvalue(), "x.txt": "a, b"}, images=0)) == [["a", "b"]]


def test_kohya_table(write):
    # docs/dataset_metadata.md of sd-scripts: tags are a string, the caption is first, names may lack ending or folder
    table = {
        "00.png": {"caption": "a cat sitting on a sofa in the sun", "tags": "cat, sofa", "image_size": [8, 8]},
        "01": {"caption": "a dog running along a wide beach"},
        "sub/02.png": {"tags": "dog, beach"},
    }
    folder = write(
        {
            "meta_lat.json": json.dumps(table),
            "meta_cap.json": json.dumps({"00": {"caption": "old"}}),
            "sub/02.png": stored(2),
        },
        images=2,
    )
    assert quiet(folder) == [
        "a cat sitting on a sofa in the sun, cat, sofa",
        "a dog running along a wide beach",
        "dog, beach",
    ]
    full = {rf"D:\train\{n:02}.png": {"tags": f"tag {n}, tag"} for n in range(3)}
    (folder / "meta_lat.json").write_text(json.dumps(full))
    assert quiet(folder) == [[f"tag {n}", "tag"] for n in range(3)]


def test_kohya_lines_and_a_table_of_any_name(write):
    lines = "".join(json.dumps({"image_path": f"{n:02}.png", "caption": f"number {n}, red"}) + "\n" for n in range(20))
    folder = write({"my_captions.jsonl": lines}, images=20)
    assert quiet(folder)[1] == ["number 1", "red"]
    (folder / "other.json").write_text(json.dumps({"00": {"caption": "another"}}))
    with pytest.raises(SourceError, match="has 2 tables, my_captions.jsonl, other.json; name one"):
        read_folder(folder)
    assert len(load_source(str(folder / "my_captions.jsonl"))) == 16


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_imagefolder(write, suffix):
    rows = [{"file_name": f"{n:02}.png", "text": f"This picture shows the number {n}."} for n in range(3)]
    folder = write({})
    if suffix == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    elif suffix == "csv":
        (folder / "metadata.csv").write_text(
            "file_name,text\n" + "".join(f'{r["file_name"]},"{r["text"]}"\n' for r in rows)
        )
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(folder / "metadata.parquet"))
    assert quiet(folder) == [row["text"] for row in rows]


def test_imagefolder_as_the_library_reads_it(write, tmp_path, monkeypatch):
    folder = write(
        {
            "metadata.jsonl": "".join(
                json.dumps({"file_name": f"{n:02}.png", "text": f"This picture shows the number {n}."}) + "\n"
                for n in range(3)
            )
        }
    )
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    ours = read_folder(folder)
    assert ours["text"][:] == theirs["text"][:] and ours.features == theirs.features
    assert all(np.array_equal(a, b) for a, b in zip(ours["image"], theirs["image"]))


def test_splits_with_one_table_above(write):
    lines = "".join(
        json.dumps({"file_name": f"{part}/{n}.png", "tags": [part, str(n)]}) + "\n"
        for part in ("train", "test")
        for n in range(3)
    )
    folder = write(
        {f"{part}/{n}.png": stored(n) for part in ("train", "test") for n in range(3)} | {"metadata.jsonl": lines},
        images=0,
    )
    assert sorted(load_source(str(folder), "test")["tags"]) == [["test", str(n)] for n in range(3)]
    assert sorted(load_source(str(folder), "train")["tags"]) == [["train", str(n)] for n in range(3)]


def test_folders_that_name_repeats(write):
    files = {f"10_sls frog/{n}.png": stored(n) for n in range(20)} | {
        f"5_dog/{n}.png": stored(100 + n) for n in range(20)
    }
    folder = write(files | {f"5_dog/{n}.txt": f"dog, number {n}" for n in range(20)}, images=0)
    with pytest.warns(SourceNotice, match="20 of 40 images .* get the name of their folder"):
        data = read_folder(folder)
    assert data["tags"][0] == ["sls frog"] and data["repeats"][:] == [2] * 20 + [1] * 20
    with pytest.warns(SourceNotice):
        parts = {split: load_source(str(folder), split) for split in ("train", "validation", "test")}
    for part in parts.values():
        assert part.column_names == ["image", "tags"]
    images, tags = to_arrays(parts["train"], 8)
    shown = [int(image[0, 0, 0]) for image in images]
    frogs = {n for n in shown if n < 100}
    assert all(shown.count(n) == (2 if n in frogs else 1) for n in shown)
    assert len(parts["validation"]) == len(parts["test"]) == 2
    held = {int(i[0, 0, 0]) for split in ("validation", "test") for i in to_arrays(parts[split], 8)[0]}
    assert not held & set(shown) and len(held) == 4


def test_a_year_is_no_number_of_repeats(write):
    folder = write(
        {f"2020_trip/{n}.png": stored(n) for n in range(2)}
        | {f"2020_trip/{n}.txt": "a, b" for n in range(2)}
        | {"0001_x/9.png": stored(9), "0001_x/9.txt": "c"},
        images=0,
    )
    assert read_folder(folder).column_names == ["image", "tags"]


def test_encodings(write):
    folder = write(
        {"00.txt": "\ufeffgrün, a".encode(), "01.txt": "rot, b".encode("utf-16"), "02.txt": "blau, é".encode()}
    )
    assert quiet(folder) == [["grün", "a"], ["rot", "b"], ["blau", "é"]]
    (folder / "02.txt").write_bytes("blau, é".encode("latin-1"))
    with pytest.raises(
        SourceError, match="1 of 3 captions .* are not in UTF-8: 02.txt, for example; save them as UTF-8"
    ):
        read_folder(folder)
    (folder / "metadata.csv").write_bytes("file_name,text\n00.png,é\n".encode("latin-1"))
    with pytest.raises(SourceError, match="metadata.csv is not in UTF-8"):
        read_folder(folder)


def test_empty_captions_are_counted(write):
    folder = write({"00.txt": "a, b", "01.txt": "", "02.txt": " \n"})
    with pytest.warns(SourceNotice, match="2 of 3 captions .* are empty"):
        data = read_folder(folder)
    assert data["tags"][:] == [["a", "b"], [], []]
    (folder / "00.txt").write_text("")
    with pytest.raises(SourceError, match="All 3 captions .* are empty"):
        read_folder(folder)


def test_captions_without_image(write):
    folder = write({f"{n:02}.txt": "a, b" for n in range(5)} | {"02.png.txt": "x"})
    with pytest.warns(SourceNotice, match="2 captions in .* have no image: 03.txt"):
        assert len(read_folder(folder)) == 3


def test_images_without_caption(write):
    folder = write({"more/00.png": stored(0), "00.txt": "a"}, images=1)
    with pytest.raises(SourceError, match="1 of 2 images in .* have no tags: .*more/00.png needs 00.txt"):
        read_folder(folder)
    (folder / "more" / "00.png").unlink()
    folder = write({"00.txt": "a", "01.json": '{"md5": "0"}'})
    with pytest.raises(SourceError, match="2 of 3 images in .* have no tags: .*01.png needs 01.txt"):
        read_folder(folder)
    with pytest.raises(SourceError, match="has no images"):
        read_folder(write({"a.txt": "a"}, images=0, folder=folder / "inner" / "x"))


def test_tables_that_do_not_fit(write):
    folder = write(
        {"metadata.jsonl": '{"file_name": "00.png", "text": "a, b"}\n{"file_name": "99.png", "text": "c"}\n'}
    )
    with pytest.warns(SourceNotice) as seen:
        assert read_folder(folder)["tags"][:] == [["a", "b"]]
    said = " ".join(str(one.message) for one in seen)
    assert (
        "1 of 2 images that metadata.jsonl names are not in" in said
        and "2 of 3 images" in said
        and "01.png, for example" in said
    )
    for content, message in (
        ('{"file_name": "00.png"\n', "metadata.jsonl, line 1 is not JSON"),
        ('{"path": "00.png", "text": "a"}\n', "needs file_name"),
        (
            '{"file_name": "00.png", "description": "a"}\n',
            "columns file_name, description; it needs tags, or a text as one of text",
        ),
        ('{"file_name": "x.png", "text": "a"}\n', "names 1 images, but none of them is in"),
    ):
        (folder / "metadata.jsonl").write_text(content)
        with pytest.raises(SourceError, match=message):
            read_folder(folder)


def test_tables_that_cannot_be_read(write):
    folder = write({"metadata.parquet": b"PAR1 nonsense"})
    with pytest.raises(SourceError, match="metadata.parquet cannot be read as parquet"):
        read_folder(folder)
    (folder / "metadata.csv").write_text('file_name,text\n00.png,"' + "x" * 200_000 + '"\n')
    with pytest.raises(SourceError, match="metadata.csv cannot be read as csv: field larger than field limit"):
        read_folder(folder)


def test_captions_with_line_breaks_in_tables(write):
    folder = write({"metadata.csv": 'file_name,text\r\n00.png,"One line.\nAnother line."\r\n'}, images=1)
    with pytest.warns(SourceNotice, match="several captions"):
        assert read_folder(folder)["text"][:] == ["One line."]
    (folder / "metadata.csv").write_text('file_name,text\n00.png,"A text that was\nbroken into lines."\n')
    assert quiet(folder) == ["A text that was broken into lines."]
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "One line.\u2028Another line."}\r\n')
    assert quiet(folder) == ["One line. Another line."]


def test_no_file_outside_is_read(write, tmp_path):
    (tmp_path / "secret.png").write_bytes(stored(200))
    folder = write(
        {
            "metadata.jsonl": "".join(
                json.dumps({"file_name": name, "text": "a, b"}) + "\n"
                for name in ("00.png", "../secret.png", str(tmp_path / "secret.png"))
            )
        },
        images=1,
    )
    with pytest.warns(SourceNotice, match="2 of 3 images that metadata.jsonl names are not in"):
        data = read_folder(folder)
    assert len(data) == 1 and data["image"][0].getpixel((0, 0))[0] == 0


def test_hidden_files_are_no_images(write):
    folder = write({"00.txt": "a", "._00.png": b"x", ".thumbs/00.png": b"x", "__MACOSX/00.png": b"x"}, images=1)
    assert quiet(folder) == [["a"]]


def test_tags_between_spaces(write):
    "As boorus show them: most have an underscore somewhere, and no commas."
    assert quiet(
        write(
            {
                "00.txt": "1girl long_hair smile",
                "01.txt": "1girl solo smile",
                "02.txt": "red_eyes hat long_hair bow 1girl simple_background white_shirt",
            }
        )
    ) == [
        ["1girl", "long hair", "smile"],
        ["1girl", "solo", "smile"],
        ["red eyes", "hat", "long hair", "bow", "1girl", "simple background", "white shirt"],
    ]
    folder = write(
        {"00.txt": "a girl", "01.txt": "a girl with x_x eyes", "02.txt": "two girls"},
        folder=write({}, 0).parent / "other",
    )
    assert quiet(folder)[2] in (["two girls"], "two girls")


def test_tags_as_objects(write):
    "Danbooru's own JSON, and what is no tag."
    said = lambda n, tags: {f"{n:02}.json": json.dumps({"tags": tags})}
    folder = write(
        said(0, [{"id": "1", "name": "long_hair", "category": "0"}, {"name": "smile"}])
        | said(1, ["hat", None, 2000])
        | said(2, "hat, bow")
    )
    assert quiet(folder) == [["long hair", "smile"], ["hat", "2000"], ["hat", "bow"]]
    for tags, text in (
        (5, "tags are 5; they must be a list"),
        ([["a"]], r"a tag is \['a'\]; it must be a word"),
        ([{"id": 1}], "a tag is {'id': 1}"),
    ):
        write(said(1, tags))
        with pytest.raises(SourceError, match=f"01.json: {text}"):
            read_folder(folder)


def test_a_csv_with_commas_in_captions(write):
    folder = write({"metadata.csv": "file_name,tags\n00.png,hat\n01.png,1girl, long hair\n02.png,bow\n"})
    with pytest.raises(
        SourceError,
        match="metadata.csv has more fields in line 3 than in its first line: put captions with commas in quotes",
    ):
        read_folder(folder)
    assert quiet(write({"metadata.csv": 'file_name,tags\n00.png,hat,\n01.png,"1girl, long hair"\n02.png,bow\n'})) == [
        ["hat"],
        ["1girl", "long hair"],
        ["bow"],
    ]


def test_names_that_no_system_can_say_and_links_to_folders(write, tmp_path):
    folder = write({f"{n:02}.txt": "hat" for n in range(3)})
    (folder / "more").symlink_to(write({}, folder=tmp_path / "elsewhere"))
    with pytest.warns(SourceNotice, match="more is a link to a folder, and links are not followed; name .*elsewhere"):
        assert len(read_folder(folder)) == 3
    (folder / "more").unlink()
    try:
        (folder / b"\x83J.png".decode("utf-8", "surrogateescape")).write_bytes(stored(1))
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    with pytest.raises(SourceError, match=r"The file name '\\udc83J.png' .* is not in UTF-8; rename it"):
        read_folder(folder)


def test_columns_of_other_kinds():
    classes, name = datasets.ClassLabel(names=["hat", "bow"]), "a set"
    rows = lambda values, feature, name="tags": datasets.Dataset.from_dict(
        {name: values}, features=datasets.Features({name: feature})
    )
    for values, feature, wanted in (
        ([["a", None, "b"], ["c"]], datasets.List(datasets.Value("string")), [["a", "b"], ["c"]]),
        ([[1, 2], []], datasets.List(datasets.Value("int64")), [["1", "2"], []]),
        ([[0, 1], [1]], datasets.List(classes), [["hat", "bow"], ["bow"]]),
        ([0, 1], classes, [["hat"], ["bow"]]),
        (
            [[{"name": "long_hair", "category": "0"}]],
            datasets.List({"name": datasets.Value("string"), "category": datasets.Value("string")}),
            [["long hair"]],
        ),
    ):
        assert list(with_captions(rows(values, feature), name)["tags"]) == wanted
    assert list(with_captions(rows([3, 4], datasets.Value("int64"), "text"), name)["text"]) == ["3", "4"]
    with pytest.raises(SourceError, match="The column tags of the data set a set cannot be used: a tag is"):
        with_captions(rows([[[1]]], datasets.List(datasets.List(datasets.Value("int64")))), name)


def test_damaged_json(write):
    with pytest.raises(SourceError, match="00.json is not JSON"):
        read_folder(write({"00.json": "{"}, images=1))


@pytest.mark.parametrize(
    "tag, words",
    [
        ("long_hair", "long hair"),
        ("^_^", "^_^"),
        (">_<", ">_<"),
        ("o_o", "o_o"),
        ("x_x", "x_x"),
        ("+_+", "+_+"),
        ("|_|", "|_|"),
        ("(o)_(o)", "(o)_(o)"),
        ("<o>_<o>", "<o>_<o>"),
        ("=_=", "=_="),
        ("0_0", "0_0"),
        ("saber_(fate)", "saber (fate)"),
        (":d", ":d"),
        ("fate/stay_night", "fate/stay night"),
        ("3_girls", "3 girls"),
    ],
)
def test_spaced(tag, words):
    assert spaced(tag) == words


def as_parquet(path, **columns):
    datasets.Dataset.from_dict(columns).to_parquet(str(path))
    return str(path)


@pytest.mark.parametrize("name", ["caption", "captions", "prompt", "caption_text"])
def test_captions_of_other_names(tmp_path, name, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    texts = [f"number {n}" for n in range(6)]
    path = as_parquet(tmp_path / "a.parquet", image=[stored(n) for n in range(6)], **{name: texts})
    with pytest.warns(SourceNotice, match=f"its {name} is used as text"):
        data = load_source(path)
    images, found = to_arrays(data, 8)
    assert len(found) == 4 and all(int(i[0, 0, 0]) == int(t.split()[1]) for i, t in zip(images, found))


def test_several_captions_for_an_image(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for name in ("captions", "text"):
        path = as_parquet(
            tmp_path / f"{name}.parquet",
            image=[stored(n) for n in range(6)],
            **{name: [[f"number {n}", "another"] for n in range(5)] + [[]]},
        )
        with pytest.warns(SourceNotice, match=f"up to 2 texts for an image in {name}; the first is used"):
            data = load_source(path)
        assert set(data["text"]) <= {f"number {n}" for n in range(5)} | {""}


def test_rows_without_a_caption(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for name, values, wanted in (
        ("text", ["a dog"] * 5 + [None], {"a dog", ""}),
        ("caption", ["a dog"] * 5 + [None], {"a dog", ""}),
        ("tags", [["a", "b"]] * 5 + [None], {("a", "b"), ()}),
    ):
        path = as_parquet(tmp_path / f"{name}.parquet", image=[stored(n) for n in range(6)], **{name: values})
        with pytest.warns(SourceNotice, match=f"1 rows of .* have no {name}"):
            parts = [load_source(path, split) for split in ("train", "validation", "test")]
        assert {
            tuple(v) if name == "tags" else v for part in parts for v in part["tags" if name == "tags" else "text"]
        } == wanted


def test_tags_in_a_string(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    path = as_parquet(
        tmp_path / "a.parquet", image=[stored(n) for n in range(6)], tags=["1girl long_hair", "red hair, hat"] * 3
    )
    assert sorted(map(tuple, load_source(path)["tags"])) == [("1girl", "long hair")] * 2 + [("red hair", "hat")] * 2


def test_a_saved_data_set_of_paths(tmp_path):
    paths = []
    for n in range(6):
        paths.append(str(tmp_path / f"{n}.png"))
        (tmp_path / f"{n}.png").write_bytes(stored(n))
    datasets.Dataset.from_dict({"image": paths, "prompt": [f"number {n}" for n in range(6)]}).save_to_disk(
        str(tmp_path / "saved")
    )
    with pytest.warns(SourceNotice):
        data = load_source(str(tmp_path / "saved"), "test")
    images, texts = to_arrays(data, 8)
    assert texts == [f"number {images[0, 0, 0, 0]}"]


def test_columns_that_are_right_are_left_alone():
    for columns in ({"tags": [["a"]], "caption": ["b"]}, {"text": ["a"], "caption": ["b"]}, {"label": [1]}):
        data = datasets.Dataset.from_dict(columns)
        assert with_captions(data, "x") is data


# layouts that real tools write


def said(folder, *rest):
    "What is read, and what is told"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = read_folder(folder, *rest)
    return list(data["tags" if "tags" in data.column_names else "text"]), [
        str(one.message).replace(str(folder), "…") for one in told
    ]


def test_one_tag_a_line(write):
    "gallery-dl, hydrus, taggui: underscores, spaces, a long title, empty lines and Windows' line ends."
    folder = write(
        {
            "00.txt": "1girl\nlong_hair\nblue_eyes\n",
            "01.txt": "1girl\r\nlong hair\r\nthe legend of zelda breath of the wild\r\nhat\r\n",
            "02.txt": "solo\n\n^_^\nsaber_(fate)\nsolo",
        }
    )
    assert quiet(folder) == [
        ["1girl", "long hair", "blue eyes"],
        ["1girl", "long hair", "the legend of zelda breath of the wild", "hat"],
        ["solo", "^_^", "saber (fate)"],
    ]


@pytest.mark.parametrize(
    "text, read",
    [
        ("A cat sits on a mat.\nA small cat is on the floor.\nThe cat.", "A cat sits on a mat."),  # COCO, Flickr
        ("a cat sitting on a small mat\na cat is lying on the floor", "a cat sitting on a small mat"),  # BLIP
        (
            "a photo of a cat that sits on a\nmat in front of a red door.",
            "a photo of a cat that sits on a mat in front of a red door.",
        ),  # broken into lines
        (
            "The image shows a small cat.\n\nIt sits on a mat.",
            "The image shows a small cat. It sits on a mat.",
        ),  # paragraphs
        ("这是一只猫。\n它很小。", "这是一只猫。"),
    ],
)
def test_several_lines_of_sentences(write, text, read):
    found, told = said(write({f"{n:02}.txt": text for n in range(3)}))
    assert found == [read] * 3 and any(
        "3 of 3 images in … have several captions; the first is used" in one for one in told
    ) == (text.split("\n")[0] == read)


def test_several_captions_in_json_are_told(write):
    folder = write(
        {
            "00.json": json.dumps({"captions": ["A cat sits on a mat.", "A cat."]}),
            "01.json": json.dumps({"text": ["A dog runs along here."]}),
            "02.json": json.dumps({"captions": [{"raw": "A cow stands still."}, {"raw": "A cow."}]}),
        }
    )
    assert said(folder) == (
        ["A cat sits on a mat.", "A dog runs along here.", "A cow stands still."],
        ["2 of 3 images in … have several captions; the first is used: 00.png, for example."],
    )


@pytest.mark.parametrize(
    "written, read",
    [
        ("(green hair:1.2), ((smile)), [hat], {bow}", ["green hair", "smile", "hat", "bow"]),
        ("(red hair, (hat:1.3), bow:0.8), solo", ["red hair", "hat", "bow", "solo"]),
        ("((red hair, hat)), solo", ["red hair", "hat", "solo"]),
        (r"(saber \(fate\):1.1), rem \(re:zero\), \m/", ["saber (fate)", "rem (re:zero)", r"\m/"]),
        ("1girl BREAK green hair, BREAK, hat", ["1girl", "green hair", "hat"]),
        ("<lora:some style:0.8>, hat <lyco:x:1>", ["hat"]),
        ("{red|blue} hair, __color__ eyes, [cat|dog]", ["red hair", "eyes", "cat"]),
        ("“green hair”, 'hat', \"bow\"", ["green hair", "hat", "bow"]),
        ('"green hair, hat"', ["green hair", "hat"]),
        ("['green hair', 'hat']", ["green hair", "hat"]),
        ("green\xa0hair,\u200b hat\ufeff,\x00 bow", ["green hair", "hat", "bow"]),
        ("1girl ||| green hair", ["1girl", "green hair"]),
        ("hat &amp; bow, it&#039;s", ["hat & bow", "it's"]),
        ("微笑，长发、帽子", ["微笑", "长发", "帽子"]),
        (
            ":), :(, ^_^, (o)_(o), d:<, ..., !?, a (b), (9), >:)",
            [":)", ":(", "^_^", "(o)_(o)", "d:<", "...", "!?", "a (b)", "(9)", ">:)"],
        ),
    ],
)
def test_signs_of_prompts_are_no_tags(write, written, read):
    assert quiet(write({"00.txt": written}, images=1)) == [read]
    assert quiet(write({"00.json": json.dumps({"tags": written})}, images=1, folder=write({}, 0) / "json")) == [read]


def test_sentences_keep_their_brackets(write):
    written = "“A frog (a small (green:1.2) one) sits on a leaf (at 10:30).” BREAK <lora:a:1>"
    assert (
        quiet(write({f"{n:02}.txt": written for n in range(3)}))[0]
        == "A frog (a small green one) sits on a leaf (at 10:30)."
    )
    assert (
        quiet(write({f"{n:02}.txt": '"A frog sits on a leaf."' for n in range(3)}, folder=write({}, 0) / "quoted"))[0]
        == "A frog sits on a leaf."
    )


def test_utf_16_without_a_mark(write):
    folder = write(
        {
            "00.txt": "green hair, hat".encode("utf-16-le"),
            "01.txt": "red hair, bow".encode("utf-16-be"),
            "02.txt": "grün, é".encode("utf-32"),
        }
    )
    assert quiet(folder) == [["green hair", "hat"], ["red hair", "bow"], ["grün", "é"]]


def test_masks_are_no_pictures(write):
    files = {
        name: stored(200)
        for name in (
            "00-masklabel.png",
            "01_mask.png",
            "masks/00.png",
            "a/mask/02.png",
            "02-condlabel.png",
            "alpha_masks/01.png",
            "conditioning/00.png",
        )
    }
    files |= {
        "girl_mask.png": stored(3),
        "girl_mask.txt": "mask, hat",
        "girl.png": stored(4),
        "girl.txt": "hat",
        "carnival/masks/07.png": stored(5),
        "carnival/masks/07.txt": "mask",
    }  # those have captions
    found, told = said(write(files | {f"{n:02}.txt": f"hat, number {n}" for n in range(3)}))
    assert len(found) == 6 and ["mask"] in found and ["mask", "hat"] in found
    assert told == [
        "7 masks or conditioning images in … are left out: 00-masklabel.png, 01_mask.png, 02-condlabel.png and 4 "
        "more; to use one for training, put a caption beside it."
    ]


def test_masks_beside_repeats(write):
    files = (
        {f"10_frog/{n}.png": stored(n) for n in range(3)}
        | {f"10_frog/{n}-masklabel.png": stored(100 + n) for n in range(3)}
        | {"5_dog/9.png": stored(9)}
    )
    found, told = said(write(files, images=0))
    assert found == [["frog"]] * 3 + [["dog"]] and told[0].startswith(
        "3 masks or conditioning images in … are left out: 10_frog/0-masklabel.png"
    )
    folder = write(
        {f"train/{n}.png": stored(n) for n in range(3)}
        | {f"train/{n}.txt": "hat" for n in range(3)}
        | {f"masks/{n}.png": stored(n) for n in range(3)},
        images=0,
        folder=write({}, 0) / "split",
    )
    assert sum(len(load_source(str(folder), split)) for split in ("train", "validation", "test")) == 3


def test_formats_are_opened_or_named(write, monkeypatch):
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8), (3, 0, 0)).save(jpeg, "JPEG")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    folder = write(
        {
            "03.jfif": jpeg.getvalue(),
            "03.txt": "jfif",
            "04.jpe": jpeg.getvalue(),
            "04.txt": "jpe",
            "05.heic": heic,
            "05.txt": "a",
            "06.HEIF": heic,
            "07.jxl": b"\xff\x0a",
            "08.mp4": b"x",
            "08.mp4.txt": "a",
            "09.psd": b"8BPS",
        }
        | {f"{n:02}.txt": "png" for n in range(3)}
    )
    monkeypatch.setattr("mmgen.data.folders.image_formats", lambda: ["PNG", "JPEG", "MPO"])  # as without plug-ins
    found, told = said(folder)
    assert found == [["png"]] * 3 + [["jfif"], ["jpe"]]
    assert told == [
        "Files in … are left out: 2 (05.heic, 06.HEIF): Pillow needs a plug-in: pip install pillow-heif; 1 "
        "(07.jxl): Pillow needs a plug-in: pip install pillow-jxl-plugin; 1 (08.mp4): a video; 1 (09.psd): an "
        "unsupported image format."
    ]


def test_names_that_lead_to_no_file(write):
    import os

    folder = write({f"{n:02}.txt": "hat" for n in range(3)})
    (folder / "10.png").mkdir()
    (folder / "11.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "12.png")
    os.mkfifo(folder / "other.json")  # reading it would never end
    assert said(folder) == (
        [["hat"]] * 3,
        ["Files in … are left out: 1 (10.png): a folder; 1 (11.png): a broken link; 1 (12.png): not a file."],
    )


@pytest.mark.parametrize(
    "name, content",
    [
        (
            "posts.json",
            [
                {
                    "id": 100000 + n,
                    "file_url": f"https://example.org/data/{n:02}.png?{n}",
                    "tag_string": f"1girl long_hair number_{n}",
                    "tag_string_general": f"long_hair number_{n}",
                    "tag_string_artist": "x",
                }
                for n in range(3)
            ],
        ),  # Danbooru
        (
            "posts.json",
            {
                "@attributes": {"count": 3},
                "post": [{"id": n, "image": f"{n:02}.png", "tags": f"long_hair number_{n}"} for n in range(3)],
            },
        ),  # Gelbooru
        (
            "posts.json",
            {
                "posts": [
                    {
                        "id": n,
                        "file": {"md5": f"{n:02}", "ext": "png", "url": None},
                        "tags": {"general": ["long_hair", f"number_{n}"], "artist": ["x"], "meta": ["hi_res"]},
                    }
                    for n in range(3)
                ]
            },
        ),  # e621
        (
            "data.jsonl",
            [
                {
                    "category": "danbooru",
                    "filename": f"{n:02}",
                    "extension": "png",
                    "tags": ["long_hair", f"number_{n}"],
                }
                for n in range(3)
            ],
        ),  # gallery-dl
        ("captions.json", {f"{n:02}.png": f"long hair, number {n}" for n in range(3)}),
        ("tags.json", {f"{n:02}": ["long hair", f"number {n}"] for n in range(3)}),
    ],
)
def test_tables_of_boorus_and_downloaders(write, name, content):
    folder = write(
        {name: "".join(json.dumps(row) + "\n" for row in content) if name.endswith("l") else json.dumps(content)}
    )
    assert quiet(folder) == [["long hair", f"number {n}"] for n in range(3)]


def test_posts_are_found_by_number_and_hash_in_a_name(write):
    md5 = "0123456789abcdef" * 2
    files = {"danbooru_123456_ab.png": stored(0), f"__saber_fate__{md5}.png": stored(1), "sample-99999.png": stored(2)}
    posts = [
        {"id": 123456, "tags": "long_hair one"},
        {"id": 7, "md5": md5, "tags": "long_hair two"},
        {"id": 99999, "tags": "long_hair three"},
    ]
    found, told = said(write(files | {"posts.json": json.dumps(posts)}, images=0))
    assert sorted(found) == [["long hair", "one"], ["long hair", "three"], ["long hair", "two"]] and told == []


def test_coco_captions(write):
    coco = {
        "info": {},
        "images": [{"id": 10 + n, "file_name": f"{n:02}.png"} for n in range(3)],
        "annotations": [
            {"image_id": 10 + n, "caption": f"The {which} caption of number {n}."}
            for which in ("first", "second")
            for n in range(3)
        ],
    }
    found, told = said(write({"captions_val2017.json": json.dumps(coco)}))
    assert found == [f"The first caption of number {n}." for n in range(3)] and told == [
        "3 of 3 images in … have several captions; the first is used: 00.png, for example."
    ]
    karpathy = {
        "images": [
            {"filename": f"{n:02}.png", "sentences": [{"raw": f"The raw sentence of number {n}."}]} for n in range(3)
        ]
    }
    assert (
        quiet(write({"dataset_flickr8k.json": json.dumps(karpathy)}, folder=write({}, 0) / "karpathy"))[2]
        == "The raw sentence of number 2."
    )


def test_waifuc_and_taggers(write):
    folder = write(
        {
            ".00_meta.json": json.dumps({"danbooru": {"id": 1}, "tags": {"1girl": 0.98, "long hair": 0.91}}),
            "01.json": json.dumps({"1girl": 0.9, "hat": 0.4}),
            "02.txt": "hat",
            ".02_meta.json": "{}",
        }
    )
    assert quiet(folder) == [["1girl", "long hair"], ["1girl", "hat"], ["hat"]]


def test_what_lies_beside_and_is_not_read_is_named(write):
    labels = json.dumps({"labels": [["00.png", 3], ["01.png", 4]]})
    folder = write(
        {
            "dataset.json": labels,
            "info.json": '{"gallery_id": 5, "title": "x"}',
            "notes.csv": "a,b\n1,2\n",
            "broken.json": "{",
            "00.txt": "hat",
            "01.txt": "hat",
            "02.txt": "hat",
        }
    )
    found, told = said(folder)
    assert found == [["hat"]] * 3 and len(told) == 1
    assert told[0] == (
        "Not read in …: broken.json (is not JSON: Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1)); dataset.json (labels of StyleGAN: class numbers, not captions); "
        "info.json (names none of the images); notes.csv (names none of the images)."
    )
    (folder / "notes.csv").write_text("image,caption\n00.png,bow\n")
    assert "notes.csv (it names images: use its path instead of the folder to read its captions)" in said(folder)[1][
        0
    ] and said(folder, folder / "notes.csv")[0] == [["bow"]]
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{n:02}.png", "text": "bow"}) + "\n" for n in range(3))
    )
    assert "dataset.json (captions are taken from metadata.jsonl)" in said(folder)[1][0]
    with (
        pytest.warns(SourceNotice, match="dataset.json .labels of StyleGAN: class numbers, not captions"),
        pytest.raises(SourceError, match="3 of 3 images in .* have no tags"),
    ):
        read_folder(write({"dataset.json": labels}, folder=folder / "bare"))


def test_folders_that_are_none(tmp_path):
    for name in ("none", "a\0b", "x" * 5_000):
        with pytest.raises(SourceError, match="There is no folder|cannot be read"):
            read_folder(tmp_path / name)
    for name in ("x" * 5_000, "a\0b", "~nobody of that name/x"):
        with pytest.raises(SourceError, match="cannot be the name of a data set|is neither portraits"):
            load_source(name)
    with pytest.raises(SourceError, match="broken.json is not JSON: nested too deep"):
        (tmp_path / "broken.json").write_text("[" * 100_000)
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        read_folder(tmp_path, tmp_path / "broken.json")
