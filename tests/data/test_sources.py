"""Every accepted form gives the same rows; everything else is refused with what was found."""

import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scst.data.sources import check_layout, read_rows
from scst.errors import DataError
from tests.support.paths import ROOT
from tests.support.rows import CAPTIONS, dataset_of, encoded, picture, rows_of, write_risc


def test_every_form_gives_the_same_rows(any_form, toy_rows):
    rows = read_rows(any_form)
    assert {"image", "references", "image_id", "split", "source"} == set(rows.column_names)
    assert rows.features["image"] == datasets.Image(decode=False)
    assert rows["image_id"][:] == [f"img_{n}" for n in range(11)]
    assert rows["split"][:] == ["train"] * 8 + ["val"] * 3
    assert rows["references"][:] == [CAPTIONS] * 11
    assert rows.cast_column("image", datasets.Image())[4]["image"].getpixel((1, 7)) == picture(4).getpixel(
        (1, 7)
    )


def test_every_form_has_a_quick_layout_check(any_form):
    layout = check_layout(any_form)
    assert layout["splits"] == {"train": 8, "val": 3}
    assert layout["form"] in ("risc", "parquet", "saved")


def test_parquet_paths_are_relative_to_its_folder_and_stay_inside(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(1))
    for name, inside in (("a.png", True), ("../a.png", False), ("/etc/a.png", False)):
        table = pa.table({"image": [name], "captions": [["x"]], "image_id": ["a"], "split": ["train"]})
        pq.write_table(table, tmp_path / "t.parquet")
        if inside:
            assert read_rows(str(tmp_path))[0]["image"]["path"] == str(tmp_path / "a.png")
        else:
            with pytest.raises(DataError, match="stay inside"):
                read_rows(str(tmp_path))


def test_shards_named_like_the_hub_names_them(tmp_path, toy_rows):
    (tmp_path / "data").mkdir()
    part = dataset_of(toy_rows).remove_columns("split")
    part.to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    assert check_layout(str(tmp_path)) == {"form": "parquet", "splits": {"validation": 11}}
    assert set(read_rows(str(tmp_path))["split"]) == {"validation"}


def test_file_name_serves_as_id_when_there_is_none(tmp_path, toy_rows):
    names = [f"folder/{n}.jpg" for n in range(11)]
    dataset_of(toy_rows).remove_columns("image_id").add_column("filename", names).save_to_disk(tmp_path / "d")
    assert read_rows(str(tmp_path / "d"))["image_id"][:3] == ["0", "1", "2"]


@pytest.fixture
def six_scenes(monkeypatch):
    """Two embedded scenes of each split, for their drawing takes seconds; the calls of the drawing."""
    drawn = []

    def scene_rows(split):
        drawn.append(split)
        return [
            {"image": picture(n), "references": ["a river ."], "image_id": f"{split}_{n}", "kind": "river"}
            for n in (0, 1)
        ]

    monkeypatch.setattr("scst.data.scenes.rows.scene_rows", scene_rows)
    return drawn


def test_embedded_scenes_become_png_bytes(six_scenes):
    rows = read_rows("embedded:scenes")
    assert rows["split"][:] == ["train", "train", "val", "val", "test", "test"]
    assert rows[3]["image"]["bytes"] == encoded(1)
    assert rows[0]["kind"] == "river"
    assert check_layout("embedded:scenes")["splits"] == {"train": 1500, "val": 200, "test": 300}


def test_embedded_scenes_are_drawn_once(six_scenes, tmp_path):
    first = read_rows("embedded:scenes").to_list()
    assert read_rows("embedded:scenes").to_list() == first
    assert six_scenes == ["train", "val", "test"]
    (kept,) = (tmp_path / "cache").rglob("rows-*.arrow")
    beginning = kept.read_bytes()[:100]
    kept.unlink()  # not cut while it is mapped
    kept.write_bytes(beginning)
    assert read_rows("embedded:scenes").to_list() == first
    assert len(six_scenes) == 6, "a damaged file is drawn anew"


def test_scenes_drawn_by_other_code_are_drawn_anew(six_scenes, monkeypatch):
    read_rows("embedded:scenes")
    monkeypatch.setattr("PIL.__version__", "0.1")
    read_rows("embedded:scenes")
    assert len(six_scenes) == 6


def test_the_real_embedded_scenes_have_the_promised_shape():
    scenes = pytest.importorskip("scst.data.scenes.dataset")
    row = scenes.scene_rows("val")[0]
    assert {"image", "references", "image_id", "kind"} <= set(row)
    assert len(row["references"]) == 5
    assert sum(check_layout("embedded:scenes")["splits"].values()) >= 1000


def test_hub_rows_take_the_split_of_their_part(monkeypatch, toy_rows):
    part = dataset_of(toy_rows).remove_columns("split")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"test": part}))
    assert set(read_rows("somebody/something")["split"]) == {"test"}


@pytest.mark.parametrize("check", [read_rows, check_layout])
def test_hub_id_that_cannot_be_reached(check, monkeypatch):
    def offline(name):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(datasets, "load_dataset_builder", offline)
    with pytest.raises(DataError, match=r"'nobody/nothing' is no file.*hub id failed.*offline.*RISC folder"):
        check("nobody/nothing")


@pytest.mark.parametrize("check", [read_rows, check_layout])
class TestRefused:
    """Bad layouts, each with a message that names what was found."""

    def test_missing_path(self, check, tmp_path):
        with pytest.raises(DataError, match=r"no such file or folder.*accepted are a RISC folder"):
            check(str(tmp_path / "absent"))

    def test_unknown_embedded_name(self, check):
        with pytest.raises(DataError, match="there is one: embedded:scenes"):
            check("embedded:pets")

    def test_other_file(self, check, tmp_path):
        (tmp_path / "a.json").write_text("{}")
        with pytest.raises(DataError, match=r"is a \.json file; accepted are"):
            check(str(tmp_path / "a.json"))

    def test_other_folder_lists_its_content(self, check, tmp_path):
        (tmp_path / "d" / "pictures").mkdir(parents=True)
        (tmp_path / "d" / "notes.txt").write_text("x")
        with pytest.raises(
            DataError, match=r"not a dataset\. Found in it: notes\.txt, pictures/\. Accepted are"
        ):
            check(str(tmp_path / "d"))

    def test_captions_without_images(self, check, tmp_path):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "captions.csv").write_text("split,image,caption_1\ntrain,a.png,x\n")
        with pytest.raises(DataError, match=r"images in resized/ .*found only: captions\.csv"):
            check(str(tmp_path / "d"))

    def test_parquet_without_captions(self, check, tmp_path):
        pq.write_table(pa.table({"image": [b"x"], "text": ["a"], "image_id": ["1"]}), tmp_path / "t.parquet")
        with pytest.raises(
            DataError, match=r"missing: references or captions\. Found columns: image, text, image_id"
        ):
            check(str(tmp_path / "t.parquet"))

    def test_parquet_that_is_none(self, check, tmp_path):
        (tmp_path / "t.parquet").write_bytes(b"not parquet")
        with pytest.raises(DataError, match="expected a parquet file"):
            check(str(tmp_path / "t.parquet"))

    def test_saved_without_image(self, check, tmp_path, toy_rows):
        dataset_of(toy_rows).remove_columns("image").save_to_disk(tmp_path / "d")
        with pytest.raises(DataError, match=r"missing: image. Found columns: "):
            check(str(tmp_path / "d"))

    def test_saved_but_broken(self, check, tmp_path):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "dataset_dict.json").write_text("{")
        with pytest.raises(DataError, match="looks like a saved dataset but does not load"):
            check(str(tmp_path / "d"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"split,image,caption\ntrain,a.png,x\n", r"missing caption_1; found: split,image,caption"),
            (b"", r"missing split, image, caption_1; found: nothing"),
            (b"split,image,caption_1\n", r"header but not one row"),
            (b"split,image,caption_1,caption_1\n", r"names caption_1 more than once"),
            (
                b"split,image,caption_1\ntrain,a.png,fine\ntrain,b.png,caf\xe9\n",
                r"line 3: expected UTF-8, got the byte 0xe9",
            ),
            (b"split,image,caption_1\ntrain,a.png,red, blue\n", r"line 2: expected 3 cells .* got 4.*comma"),
            (b"split,image,caption_1\ntrain,,x\n", r"line 2: the image column is empty"),
            (
                b"split,image,caption_1\ntrain,../a.png,x\n",
                r"line 2: image names .* stay inside it; got '\.\./a\.png'",
            ),
            (b"split,image,caption_1\ntrain,/a.png,x\n", r"line 2: image names are relative"),
            (b"split,image,caption_1\ntrain,C:\\a.png,x\n", r"line 2: image names are relative"),
            (b"split,image,caption_1\ntrain,b\\..\\..\\a.png,x\n", r"line 2: image names are relative"),
        ],
    )
    def test_wrong_captions_file(self, check, tmp_path, text, message):
        (tmp_path / "d" / "resized").mkdir(parents=True)
        (tmp_path / "d" / "captions.csv").write_bytes(text)
        with pytest.raises(DataError, match=message):
            check(str(tmp_path / "d"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("captions", ["one text"], "column references should hold a list of strings per image; found"),
        ("captions", [[1, 2]], "column references should hold a list of strings per image; found"),
        ("image", [3.5], "column image should hold image bytes, a path, or both; found"),
    ],
)
def test_columns_of_the_wrong_type(tmp_path, column, values, message):
    columns = {"image": [b"x"], "captions": [["a"]], "image_id": ["1"], "split": ["train"], column: values}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        read_rows(str(tmp_path / "t.parquet"))


def test_numbers_as_ids_become_text(tmp_path):
    columns = {"image": [b"x"], "captions": [["a"]], "image_id": [17], "split": ["train"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert read_rows(str(tmp_path / "t.parquet"))["image_id"][:] == ["17"]


def test_byte_order_mark_quotes_and_accents_are_read(tmp_path):
    (tmp_path / "d" / "resized").mkdir(parents=True)
    text = '\ufeffsource,split,image,caption_1,caption_2\ntoy,train,a.png,"a caf\u00e9, and a river",\n'
    (tmp_path / "d" / "captions.csv").write_text(text, encoding="utf-8")
    assert read_rows(str(tmp_path / "d"))["references"][:] == [["a caf\u00e9, and a river", ""]]


def test_layout_counts_missing_images_and_refuses_when_all_are(tmp_path):
    rows = rows_of({"train": 3})
    rows[1]["image"] = {"bytes": None, "path": None}
    folder = write_risc(tmp_path / "d", rows)
    assert check_layout(str(folder))["missing_images"] == 1
    for file in (folder / "resized").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="none of the 3 images"):
        check_layout(str(folder))


@pytest.mark.slow
def test_data_room_does_not_import_torch(tmp_path, toy_rows):
    folder = write_risc(tmp_path / "d", toy_rows)
    dataset_of(toy_rows).to_parquet(tmp_path / "d.parquet")
    code = (
        "import sys\n"
        "from scst.data import images, load_splits, preview, risc, sources, splits, supervision, validate\n"
        f"for dataset in ({str(folder)!r}, {str(tmp_path / 'd.parquet')!r}):\n"
        "    data = load_splits.load_splits(dataset, ['train', 'val'])\n"
        "    supervision.CaptionChoice('all').expand(data.splits['train'])[0]\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    env = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("pack", "form"), [("rsicd-64", "parquet"), ("rsicd-224", "risc")])
def test_real_packs(shared_data, pack, form):
    layout = check_layout(str(shared_data / pack))
    assert (layout["form"], layout["splits"]) == (form, {"train": 8734, "val": 1094})
    assert layout.get("missing_images", 0) == 0
    rows = read_rows(str(shared_data / pack))
    assert len(set(rows["image_id"])) == len(rows) == 9828
    assert rows[0]["image_id"] == "RSICD_0"
    assert all(len(captions) == 5 for captions in rows["references"])


@pytest.mark.parametrize("column", ["image_id", "references", "note"])
def test_text_that_is_no_utf_8_is_one_sentence(column, tmp_path):
    """A byte that changed on the disk: Arrow's files have no checksum."""
    values = {"image_id": "img_3", "references": "river number 3", "note": "some text 3"}
    rows = [
        {
            "image": {"bytes": encoded(i), "path": None},
            "references": [f"a river number {i} ."],
            "image_id": f"img_{i}",
            "note": f"some text {i}",
        }
        for i in range(5)
    ]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved" / "train").glob("*.arrow")
    content = file.read_bytes()
    place = content.index(values[column].encode()) + 1
    file.write_bytes(content[:place] + b"\xaa" + content[place + 1 :])
    with pytest.raises(DataError, match=f"the column {column} is damaged: .*Invalid UTF8"):
        read_rows(str(tmp_path / "saved"))
