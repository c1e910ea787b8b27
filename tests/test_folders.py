"Folders of images with captions in many layouts; data sets with captions under other names."
import io
import json
import warnings

import datasets
import numpy as np
import pytest
from PIL import Image

from mmgen.data.folders import SourceError, SourceNotice, read_folder, spaced, with_captions
from mmgen.data.loading import load_source, to_arrays


def stored(n):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (n, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def write(tmp_path):
    def put(files, images=3, folder=tmp_path/"set"):
        for name, content in ({f"{n:02}.png": stored(n) for n in range(images)} | files).items():
            (folder/name).parent.mkdir(parents=True, exist_ok=True)
            (folder/name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder
    return put


def quiet(folder, *rest):
    "What is read, and that nothing was said about it"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_folder(folder, *rest)
    assert [pixel.getpixel((0, 0))[0] for pixel in data["image"]] == sorted(pixel.getpixel((0, 0))[0] for pixel in data["image"])
    return list(data["tags" if "tags" in data.column_names else "text"])


def test_text_files_of_tags(write):
    folder = write({"00.txt": "green hair, smile", "01.caption": "red hair,\nhat", "02.png.txt": "blue_hair\nsolo"})
    assert quiet(folder) == [["green hair", "smile"], ["red hair", "hat"], ["blue hair", "solo"]]


def test_text_files_of_sentences(write):
    folder = write({"00.txt": "A frog sits on a leaf.\nIt is green.", "01.txt": "a dog that runs along the long beach", "02.txt": "cat, hat"})
    with pytest.warns(SourceNotice, match="1 of 3 images in .* have several captions; the first is taken: 00.png"): data = read_folder(folder)
    assert data["text"][:] == ["A frog sits on a leaf.", "a dog that runs along the long beach", "cat, hat"]


def test_json_beside_each_image(write):
    danbooru = {"id": 1, "tag_string": "1girl long_hair someone", "tag_string_general": "1girl long_hair ^_^", "tag_string_artist": "someone",
                "tag_string_character": "saber_(fate)", "tag_string_copyright": "", "tag_string_meta": "highres"}
    folder = write({"00.json": json.dumps(danbooru), "01.png.json": json.dumps({"tags": {"general": ["hat", "red_hair"], "artist": []}}),
                    "02.json": json.dumps({"caption": "cat, hat", "tags": "hat, indoors", "score": 3})})
    assert quiet(folder) == [["saber (fate)", "1girl", "long hair", "^_^"], ["hat", "red_hair"], ["cat", "hat", "indoors"]]


def test_tags_of_gallery_dl_by_category(write):
    folder = write({"00.png.json": json.dumps({"tags": "1girl long_hair", "tags_general": ["1girl", "long_hair"], "tags_artist": ["x"]})}, images=1)
    assert quiet(folder) == [["1girl", "long hair"]]


def test_gallery_dl_says_a_danbooru_tag_once(write):
    # its files have the site's own strings and, beside them, lists by category
    entry = {"tags": ["1girl", "long_hair", "x"], "tag_string": "1girl long_hair x", "tag_string_general": "1girl long_hair", "tag_string_artist": "x",
             "tags_general": ["1girl", "long_hair"], "tags_artist": ["x"]}
    assert quiet(write({"00.png.json": json.dumps(entry)}, images=1)) == [["1girl", "long hair"]]


def test_brackets_with_backslashes(write):
    folder = write({"00.txt": r"1girl, saber \(fate\), \m/, rem \(re:zero\)", "01.txt": "(smile:1.2), a (b)", "02.txt": r"\(^o^)/, \o/"})
    assert quiet(folder) == [["1girl", "saber (fate)", r"\m/", "rem (re:zero)"], ["smile", "a (b)"], [r"\(^o^)/", r"\o/"]]
    folder = write({f"{n:02}.txt": rf"Saber \(fate\) is number {n} here." for n in range(3)})
    assert quiet(folder)[1] == "Saber (fate) is number 1 here."


def test_names_in_capitals_and_folders_in_folders(write):
    folder = write({"a/b/1.JPG": stored(3), "a/b/1.TXT": "one, a", "a/2.Png": stored(2), "a/2.txt": "two, a", "3.WEBP": stored(1), "3.WEBP.JSON": '{"tags": ["three"]}'}, images=0)
    assert sorted(quiet(folder)) == [["one", "a"], ["three"], ["two", "a"]]


def test_avif(write):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 0, 0)).save(file, "AVIF")
    assert quiet(write({"x.avif": file.getvalue(), "x.txt": "a, b"}, images=0)) == [["a", "b"]]


def test_kohya_table(write):
    # after docs/dataset_metadata.md of sd-scripts: tags are a string, the caption comes first, names may lack ending or folder
    table = {"00.png": {"caption": "a cat sitting on a sofa in the sun", "tags": "cat, sofa", "image_size": [8, 8]},
             "01": {"caption": "a dog running along a wide beach"}, "sub/02.png": {"tags": "dog, beach"}}
    folder = write({"meta_lat.json": json.dumps(table), "meta_cap.json": json.dumps({"00": {"caption": "old"}}), "sub/02.png": stored(2)}, images=2)
    assert quiet(folder) == ["a cat sitting on a sofa in the sun, cat, sofa", "a dog running along a wide beach", "dog, beach"]
    full = {rf"D:\train\{n:02}.png": {"tags": f"tag {n}, tag"} for n in range(3)}
    (folder/"meta_lat.json").write_text(json.dumps(full))
    assert quiet(folder) == [[f"tag {n}", "tag"] for n in range(3)]


def test_kohya_lines_and_a_table_of_any_name(write):
    lines = "".join(json.dumps({"image_path": f"{n:02}.png", "caption": f"number {n}, red"}) + "\n" for n in range(20))
    folder = write({"my_captions.jsonl": lines}, images=20)
    assert quiet(folder)[1] == ["number 1", "red"]
    (folder/"other.json").write_text(json.dumps({"00": {"caption": "another"}}))
    with pytest.raises(SourceError, match="has 2 tables, my_captions.jsonl, other.json; name one"): read_folder(folder)
    assert len(load_source(str(folder/"my_captions.jsonl"))) == 16


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_imagefolder(write, suffix):
    rows = [{"file_name": f"{n:02}.png", "text": f"This picture shows the number {n}."} for n in range(3)]
    folder = write({})
    if suffix == "jsonl": (folder/"metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    elif suffix == "csv": (folder/"metadata.csv").write_text("file_name,text\n" + "".join(f'{r["file_name"]},"{r["text"]}"\n' for r in rows))
    else: datasets.Dataset.from_list(rows).to_parquet(str(folder/"metadata.parquet"))
    assert quiet(folder) == [row["text"] for row in rows]


def test_imagefolder_as_the_library_reads_it(write, tmp_path, monkeypatch):
    folder = write({"metadata.jsonl": "".join(json.dumps({"file_name": f"{n:02}.png", "text": f"This picture shows the number {n}."}) + "\n" for n in range(3))})
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path/"cache"))
    ours = read_folder(folder)
    assert ours["text"][:] == theirs["text"][:] and ours.features == theirs.features
    assert all(np.array_equal(a, b) for a, b in zip(ours["image"], theirs["image"]))


def test_splits_with_one_table_above(write):
    lines = "".join(json.dumps({"file_name": f"{part}/{n}.png", "tags": [part, str(n)]}) + "\n" for part in ("train", "test") for n in range(3))
    folder = write({f"{part}/{n}.png": stored(n) for part in ("train", "test") for n in range(3)} | {"metadata.jsonl": lines}, images=0)
    assert sorted(load_source(str(folder), "test")["tags"]) == [["test", str(n)] for n in range(3)]
    assert sorted(load_source(str(folder), "train")["tags"]) == [["train", str(n)] for n in range(3)]


def test_folders_that_name_repeats(write):
    files = {f"10_sls frog/{n}.png": stored(n) for n in range(20)} | {f"5_dog/{n}.png": stored(100 + n) for n in range(20)}
    folder = write(files | {f"5_dog/{n}.txt": f"dog, number {n}" for n in range(20)}, images=0)
    with pytest.warns(SourceNotice, match="20 of 40 images .* take their folder's name"): data = read_folder(folder)
    assert data["tags"][0] == ["sls frog"] and data["repeats"][:] == [2]*20 + [1]*20
    with pytest.warns(SourceNotice): parts = {split: load_source(str(folder), split) for split in ("train", "validation", "test")}
    for part in parts.values(): assert part.column_names == ["image", "tags"]
    images, tags = to_arrays(parts["train"], 8)
    shown = [int(image[0, 0, 0]) for image in images]
    frogs = {n for n in shown if n < 100}
    assert all(shown.count(n) == (2 if n in frogs else 1) for n in shown)
    assert len(parts["validation"]) == len(parts["test"]) == 2
    held = {int(i[0, 0, 0]) for split in ("validation", "test") for i in to_arrays(parts[split], 8)[0]}
    assert not held & set(shown) and len(held) == 4


def test_a_year_is_no_number_of_repeats(write):
    folder = write({f"2020_trip/{n}.png": stored(n) for n in range(2)} | {f"2020_trip/{n}.txt": "a, b" for n in range(2)} |
                   {"0001_x/9.png": stored(9), "0001_x/9.txt": "c"}, images=0)
    assert read_folder(folder).column_names == ["image", "tags"]


def test_encodings(write):
    folder = write({"00.txt": "\ufeffgrün, a".encode(), "01.txt": "rot, b".encode("utf-16"), "02.txt": "blau, é".encode()})
    assert quiet(folder) == [["grün", "a"], ["rot", "b"], ["blau", "é"]]
    (folder/"02.txt").write_bytes("blau, é".encode("latin-1"))
    with pytest.raises(SourceError, match="1 of 3 captions .* are not in UTF-8: 02.txt, for example; please save them so"): read_folder(folder)
    (folder/"metadata.csv").write_bytes("file_name,text\n00.png,é\n".encode("latin-1"))
    with pytest.raises(SourceError, match="metadata.csv is not in UTF-8"): read_folder(folder)


def test_empty_captions_are_counted(write):
    folder = write({"00.txt": "a, b", "01.txt": "", "02.txt": " \n"})
    with pytest.warns(SourceNotice, match="2 of 3 captions .* are empty"): data = read_folder(folder)
    assert data["tags"][:] == [["a", "b"], [], []]
    (folder/"00.txt").write_text("")
    with pytest.raises(SourceError, match="All 3 captions .* are empty"): read_folder(folder)


def test_captions_without_image(write):
    folder = write({f"{n:02}.txt": "a, b" for n in range(5)} | {"02.png.txt": "x"})
    with pytest.warns(SourceNotice, match="2 captions in .* have no image: 03.txt"): assert len(read_folder(folder)) == 3


def test_images_without_caption(write):
    folder = write({"more/00.png": stored(0), "00.txt": "a"}, images=1)
    with pytest.raises(SourceError, match="1 of 2 images in .* have no tags: .*more/00.png needs 00.txt"): read_folder(folder)
    (folder/"more"/"00.png").unlink()
    folder = write({"00.txt": "a", "01.json": '{"md5": "0"}'})
    with pytest.raises(SourceError, match="2 of 3 images in .* have no tags: .*01.png needs 01.txt"): read_folder(folder)
    with pytest.raises(SourceError, match="holds no images"): read_folder(write({"a.txt": "a"}, images=0, folder=folder/"inner"/"x"))


def test_tables_that_do_not_fit(write):
    folder = write({"metadata.jsonl": '{"file_name": "00.png", "text": "a, b"}\n{"file_name": "99.png", "text": "c"}\n'})
    with pytest.warns(SourceNotice) as seen: assert read_folder(folder)["tags"][:] == [["a", "b"]]
    said = " ".join(str(one.message) for one in seen)
    assert "1 of 2 images that metadata.jsonl names are not in" in said and "2 of 3 images" in said and "01.png, for example" in said
    for content, message in (('{"file_name": "00.png"\n', "metadata.jsonl, line 1 is not JSON"), ('{"path": "00.png", "text": "a"}\n', "needs file_name"), ('{"file_name": "00.png", "description": "a"}\n', "columns file_name, description; it needs tags, or a text as one of text"),
                             ('{"file_name": "x.png", "text": "a"}\n', "names 1 images, and none of them lies in")):
        (folder/"metadata.jsonl").write_text(content)
        with pytest.raises(SourceError, match=message): read_folder(folder)


def test_tables_that_cannot_be_read(write):
    folder = write({"metadata.parquet": b"PAR1 nonsense"})
    with pytest.raises(SourceError, match="metadata.parquet cannot be read as parquet"): read_folder(folder)
    (folder/"metadata.csv").write_text('file_name,text\n00.png,"' + "x"*200_000 + '"\n')
    with pytest.raises(SourceError, match="metadata.csv cannot be read as csv: field larger than field limit"): read_folder(folder)


def test_captions_with_line_breaks_in_tables(write):
    folder = write({"metadata.csv": 'file_name,text\r\n00.png,"One line.\nAnother line."\r\n'}, images=1)
    with pytest.warns(SourceNotice, match="several captions"): assert read_folder(folder)["text"][:] == ["One line."]
    (folder/"metadata.csv").write_text('file_name,text\n00.png,"A text that was\nbroken into lines."\n')
    assert quiet(folder) == ["A text that was broken into lines."]
    (folder/"metadata.csv").unlink()
    (folder/"metadata.jsonl").write_text('{"file_name": "00.png", "text": "One line.\u2028Another line."}\r\n')
    assert quiet(folder) == ["One line. Another line."]


def test_no_file_outside_is_read(write, tmp_path):
    (tmp_path/"secret.png").write_bytes(stored(200))
    folder = write({"metadata.jsonl": "".join(json.dumps({"file_name": name, "text": "a, b"}) + "\n"
                                              for name in ("00.png", "../secret.png", str(tmp_path/"secret.png")))}, images=1)
    with pytest.warns(SourceNotice, match="2 of 3 images that metadata.jsonl names are not in"): data = read_folder(folder)
    assert len(data) == 1 and data["image"][0].getpixel((0, 0))[0] == 0


def test_hidden_files_are_no_images(write):
    folder = write({"00.txt": "a", "._00.png": b"x", ".thumbs/00.png": b"x", "__MACOSX/00.png": b"x"}, images=1)
    assert quiet(folder) == [["a"]]


def test_tags_between_spaces(write):
    "As boorus show them: most have an underscore somewhere, and no commas."
    assert quiet(write({"00.txt": "1girl long_hair smile", "01.txt": "1girl solo smile", "02.txt": "red_eyes hat long_hair bow 1girl simple_background white_shirt"})) == [
        ["1girl", "long hair", "smile"], ["1girl", "solo", "smile"], ["red eyes", "hat", "long hair", "bow", "1girl", "simple background", "white shirt"]]
    folder = write({"00.txt": "a girl", "01.txt": "a girl with x_x eyes", "02.txt": "two girls"}, folder=write({}, 0).parent/"other")
    assert quiet(folder)[2] in (["two girls"], "two girls")


def test_tags_as_objects(write):
    "Danbooru's own JSON, and what is no tag."
    said = lambda n, tags: {f"{n:02}.json": json.dumps({"tags": tags})}
    folder = write(said(0, [{"id": "1", "name": "long_hair", "category": "0"}, {"name": "smile"}]) | said(1, ["hat", None, 2000]) | said(2, "hat, bow"))
    assert quiet(folder) == [["long hair", "smile"], ["hat", "2000"], ["hat", "bow"]]
    for tags, text in ((5, "tags are 5; they must be a list"), ([["a"]], r"a tag is \['a'\]; it must be a word"), ([{"id": 1}], "a tag is {'id': 1}")):
        write(said(1, tags))
        with pytest.raises(SourceError, match=f"01.json: {text}"): read_folder(folder)


def test_a_csv_with_commas_in_captions(write):
    folder = write({"metadata.csv": "file_name,tags\n00.png,hat\n01.png,1girl, long hair\n02.png,bow\n"})
    with pytest.raises(SourceError, match="metadata.csv has more fields in line 3 than in its first line: put captions with commas in quotes"): read_folder(folder)
    assert quiet(write({"metadata.csv": 'file_name,tags\n00.png,hat,\n01.png,"1girl, long hair"\n02.png,bow\n'})) == [["hat"], ["1girl", "long hair"], ["bow"]]


def test_names_that_no_system_can_say_and_links_to_folders(write, tmp_path):
    folder = write({f"{n:02}.txt": "hat" for n in range(3)})
    (folder/"more").symlink_to(write({}, folder=tmp_path/"elsewhere"))
    with pytest.warns(SourceNotice, match="more is a link to a folder, and links are not followed; name .*elsewhere"): assert len(read_folder(folder)) == 3
    (folder/"more").unlink()
    try: (folder/b"\x83J.png".decode("utf-8", "surrogateescape")).write_bytes(stored(1))
    except OSError: pytest.skip("the file system takes only UTF-8")
    with pytest.raises(SourceError, match=r"The file name '\\udc83J.png' .* is not in UTF-8; rename it"): read_folder(folder)


def test_columns_of_other_kinds():
    classes, name = datasets.ClassLabel(names=["hat", "bow"]), "a set"
    rows = lambda values, feature, name="tags": datasets.Dataset.from_dict({name: values}, features=datasets.Features({name: feature}))
    for values, feature, wanted in (
            ([["a", None, "b"], ["c"]], datasets.List(datasets.Value("string")), [["a", "b"], ["c"]]), ([[1, 2], []], datasets.List(datasets.Value("int64")), [["1", "2"], []]),
            ([[0, 1], [1]], datasets.List(classes), [["hat", "bow"], ["bow"]]), ([0, 1], classes, [["hat"], ["bow"]]),
            ([[{"name": "long_hair", "category": "0"}]], datasets.List({"name": datasets.Value("string"), "category": datasets.Value("string")}), [["long hair"]])):
        assert list(with_captions(rows(values, feature), name)["tags"]) == wanted
    assert list(with_captions(rows([3, 4], datasets.Value("int64"), "text"), name)["text"]) == ["3", "4"]
    with pytest.raises(SourceError, match="The column tags of the data set a set cannot be used: a tag is"): with_captions(rows([[[1]]], datasets.List(datasets.List(datasets.Value("int64")))), name)


def test_damaged_json(write):
    with pytest.raises(SourceError, match="00.json is not JSON"): read_folder(write({"00.json": "{"}, images=1))


@pytest.mark.parametrize("tag, words", [("long_hair", "long hair"), ("^_^", "^_^"), (">_<", ">_<"), ("o_o", "o_o"), ("x_x", "x_x"), ("+_+", "+_+"),
                                        ("|_|", "|_|"), ("(o)_(o)", "(o)_(o)"), ("<o>_<o>", "<o>_<o>"), ("=_=", "=_="), ("0_0", "0_0"),
                                        ("saber_(fate)", "saber (fate)"), (":d", ":d"), ("fate/stay_night", "fate/stay night"), ("3_girls", "3 girls")])
def test_spaced(tag, words): assert spaced(tag) == words


def as_parquet(path, **columns):
    datasets.Dataset.from_dict(columns).to_parquet(str(path))
    return str(path)


@pytest.mark.parametrize("name", ["caption", "captions", "prompt", "caption_text"])
def test_captions_of_other_names(tmp_path, name, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    texts = [f"number {n}" for n in range(6)]
    path = as_parquet(tmp_path/"a.parquet", image=[stored(n) for n in range(6)], **{name: texts})
    with pytest.warns(SourceNotice, match=f"its {name} is taken for the text"): data = load_source(path)
    images, found = to_arrays(data, 8)
    assert len(found) == 4 and all(int(i[0, 0, 0]) == int(t.split()[1]) for i, t in zip(images, found))


def test_several_captions_for_an_image(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for name in ("captions", "text"):
        path = as_parquet(tmp_path/f"{name}.parquet", image=[stored(n) for n in range(6)], **{name: [[f"number {n}", "another"] for n in range(5)] + [[]]})
        with pytest.warns(SourceNotice, match=f"up to 2 texts for an image in {name}; the first is taken"): data = load_source(path)
        assert set(data["text"]) <= {f"number {n}" for n in range(5)} | {""}


def test_rows_without_a_caption(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for name, values, wanted in (("text", ["a dog"]*5 + [None], {"a dog", ""}), ("caption", ["a dog"]*5 + [None], {"a dog", ""}),
                                 ("tags", [["a", "b"]]*5 + [None], {("a", "b"), ()})):
        path = as_parquet(tmp_path/f"{name}.parquet", image=[stored(n) for n in range(6)], **{name: values})
        with pytest.warns(SourceNotice, match=f"1 rows of .* have no {name}"): parts = [load_source(path, split) for split in ("train", "validation", "test")]
        assert {tuple(v) if name == "tags" else v for part in parts for v in part["tags" if name == "tags" else "text"]} == wanted


def test_tags_in_a_string(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    path = as_parquet(tmp_path/"a.parquet", image=[stored(n) for n in range(6)], tags=["1girl long_hair", "red hair, hat"]*3)
    assert sorted(map(tuple, load_source(path)["tags"])) == [("1girl", "long hair")]*2 + [("red hair", "hat")]*2


def test_a_saved_data_set_of_paths(tmp_path):
    paths = []
    for n in range(6):
        paths.append(str(tmp_path/f"{n}.png"))
        (tmp_path/f"{n}.png").write_bytes(stored(n))
    datasets.Dataset.from_dict({"image": paths, "prompt": [f"number {n}" for n in range(6)]}).save_to_disk(str(tmp_path/"saved"))
    with pytest.warns(SourceNotice): data = load_source(str(tmp_path/"saved"), "test")
    images, texts = to_arrays(data, 8)
    assert texts == [f"number {images[0, 0, 0, 0]}"]


def test_columns_that_are_right_are_left_alone():
    for columns in ({"tags": [["a"]], "caption": ["b"]}, {"text": ["a"], "caption": ["b"]}, {"label": [1]}):
        data = datasets.Dataset.from_dict(columns)
        assert with_captions(data, "x") is data
