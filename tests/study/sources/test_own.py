"""A user's own questions: what can be read, and what is refused by the name of its row before a model is loaded."""

import io
import json

import pandas as pd
import pytest
from PIL import Image

from idsel_core.study.dataset import read_data, read_split
from idsel_core.study.paths import DATA
from idsel_core.study.sources import tables

COLOURS = {"a.png": (255, 0, 0), "b.png": (0, 0, 255), "img/c.png": (0, 255, 0)}


@pytest.fixture
def folder(tmp_path):
    """A folder with three images."""
    for name, colour in COLOURS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), colour).save(tmp_path / name)
    return tmp_path


ROWS = [
    {"image": "a.png", "question": "Which colour?", "answer": "red"},
    {"image": ["b.png", "img/c.png"], "question": "The same?", "answer": "no"},
    {"image": "./a.png", "question": "Which?", "answer": "red"},
]


def write(folder, rows, name):
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        whole = [{**row, "image": row["image"] if isinstance(row["image"], list) else [row["image"]]} for row in rows]
        pd.DataFrame(whole).to_parquet(path)
    else:
        flat = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        pd.DataFrame(flat).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv", "mine.jsonl", "mine.parquet"])
def test_each_kind_of_table_gives_the_same_questions(folder, name):
    split = read_data(write(folder, ROWS, name), "whatever")
    assert (split.name, split.dataset, split.has_boxes, split.new_tokens) == ("mine", "mine", False, None)
    asked = split.questions
    assert asked["question_id"].tolist() == ["0", "1", "2"]
    assert asked["image_ids"].tolist() == [["a.png"], ["b.png", "img/c.png"], ["a.png"]]
    assert asked["image_id"].tolist() == ["a.png", '["b.png", "img/c.png"]', "a.png"]
    assert asked["question"].tolist() == [row["question"] for row in ROWS]
    assert asked["answers"].tolist() == [["red"], ["no"], ["red"]]
    assert asked["answer"].tolist() == ["red", "no", "red"]
    assert asked["choices"].tolist() == [[], [], []]
    assert set(asked["metric"]) == {"exact_match"} and set(asked["question_type"]) == {"mine"}
    assert list(split.images.index) == list(COLOURS)
    for image, colour in COLOURS.items():
        assert split.picture(image).getpixel((0, 0)) == colour


def test_the_scenes_are_read_as_before():
    split = read_data(DATA, "hard", 24)
    old = read_split("hard", DATA, 24)
    assert split.questions.equals(old.questions) and split.images_hash == old.images_hash
    assert split.has_boxes and split.dataset == "scenes" and set(split.questions["metric"]) == {"equal"}
    assert [ids for (ids,) in split.questions["image_ids"]] == split.questions["image_id"].tolist()


def content(image):
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


@pytest.mark.parametrize("form", ["bytes", "struct", "list"])
def test_images_inside_a_parquet_file(tmp_path, form, monkeypatch):
    pictures = [content(Image.new("RGB", (8, 6), (number, 0, 0))) for number in (0, 1, 0, 3, 4)]
    cells = {
        "bytes": pictures,
        "struct": [{"bytes": one, "path": "x.png"} for one in pictures],
        "list": [[one, pictures[0]] for one in pictures],
    }[form]
    table = pd.DataFrame({"image": cells, "question": "Which?", "answer": [f"n{number}" for number in range(5)]})
    table.to_parquet(tmp_path / "mine.parquet", row_group_size=2)
    split = read_data(tmp_path / "mine.parquet")
    assert len(split.images) == 4  # equal ones are one
    reds = [[split.picture(name).getpixel((0, 0))[0] for name in names] for names in split.questions["image_ids"]]
    assert reds == [[number, 0] if form == "list" else [number] for number in (0, 1, 0, 3, 4)]
    assert not any(isinstance(source, bytes) for source in split.images["image"])
    groups = []
    inner = tables.stored_files
    monkeypatch.setattr("idsel_core.study.sources.own.stored_files", lambda *a, **k: groups.append(k) or inner(*a, **k))
    split = read_data(tmp_path / "mine.parquet", limit=2)
    assert len(split.images) == 2 and len(split.questions) == 2


def test_a_folder_holds_one_table_a_split(folder):
    write(folder, ROWS[:1], "train.csv")
    write(folder, ROWS[1:], "test.jsonl")
    assert len(read_data(folder, "train").questions) == 1
    split = read_data(folder, "test")
    assert (len(split.questions), split.name, split.dataset) == (2, "test", folder.name)
    with pytest.raises(FileNotFoundError, match=r"no split 'dev' in .*; there are: test, train"):
        read_data(folder, "dev")
    with pytest.raises(FileNotFoundError, match=r"no split '' in .*; there are: test, train"):
        read_data(folder)
    write(folder, ROWS[:1], "test.csv")
    with pytest.raises(ValueError, match=r"several tables of split 'test' \(test.csv, test.jsonl\)"):
        read_data(folder, "test")


def test_a_column_divides_a_table_into_splits(folder):
    path = write(folder, [{**row, "split": split} for row, split in zip(ROWS, ["x", "y", "y"], strict=True)], "m.csv")
    assert read_data(path, "y").questions["question_id"].tolist() == ["1", "2"]
    assert read_data(path, "y").name == "y"
    for split in ("z", ""):
        with pytest.raises(FileNotFoundError, match=rf"no split '{split}' in .*m.csv; there are: x, y"):
            read_data(path, split)


def test_a_limit_takes_the_first_of_each_type(folder):
    rows = [{**ROWS[0], "question_type": kind} for kind in "aaabb"]
    split = read_data(write(folder, rows, "m.csv"), limit=4)
    assert split.questions["question_id"].tolist() == ["0", "1", "3", "4"]
    with pytest.raises(ValueError, match="limit must be a number of questions"):
        read_data(folder / "m.csv", limit=-1)


def test_options_are_put_below_the_question_and_scored_by_letter(folder):
    rows = [{**ROWS[0], "choices": ["blue", "red"], "id": 7, "question_type": "colour"}]
    (asked,) = read_data(write(folder, rows, "m.jsonl")).questions.to_dict("records")
    assert asked["question"] == (
        "Which colour?\nA. blue\nB. red\nAnswer with the option's letter from the given choices directly."
    )
    assert (asked["choices"], asked["metric"]) == (["blue", "red"], "choice_letter")
    assert (asked["question_id"], asked["question_type"]) == ("7", "colour")


def test_what_several_people_answered(folder):
    rows = [{"image": "a.png", "question": "Which?", "answers": ["blue", "red", "red", "rose"]}]
    split = read_data(write(folder, rows, "m.csv"), metric="vqa_accuracy")
    assert split.questions["answer"].tolist() == ["red"]
    assert split.questions["answers"].tolist() == [["blue", "red", "red", "rose"]]
    assert split.questions["metric"].tolist() == ["vqa_accuracy"]


def test_text_is_kept_as_it_is_written(folder):
    (folder / "m.csv").write_text(
        'image,question,answer\na.png,"One, two?",007\na.png,Null?,NA\n', encoding="utf-8-sig"
    )
    asked = read_data(folder / "m.csv").questions
    assert asked["answer"].tolist() == ["007", "NA"] and asked["question"].tolist() == ["One, two?", "Null?"]
    (folder / "m.jsonl").write_text('{"image": "a.png", "question": "How many?", "answer": 3}\n')
    assert read_data(folder / "m.jsonl").questions["answer"].tolist() == ["3"]


def test_an_image_is_turned_upright(folder):
    image = Image.new("RGB", (8, 6))
    orientation = image.getexif()
    orientation[0x0112] = 6
    image.save(folder / "a.png", exif=orientation)
    assert read_data(write(folder, ROWS, "m.csv")).picture("a.png").size == (6, 8)


def test_the_hash_follows_the_images_and_nothing_else(folder):
    path = write(folder, ROWS, "m.csv")
    first = read_data(path).images_hash
    write(folder, [{**row, "question": "Other?"} for row in ROWS], "m.csv")
    assert read_data(path).images_hash == first
    Image.new("RGB", (8, 6), "pink").save(folder / "b.png")
    assert read_data(path).images_hash != first


def changed(**values):
    return [ROWS[0], {**ROWS[1], **values}]


def without(name):
    return [{key: value for key, value in row.items() if key != name} for row in ROWS]


def renamed(old, new):
    return [{new if key == old else key: value for key, value in row.items()} for row in ROWS]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (without("image"), r"no column 'image' and no column 'audio'. It has 'question', 'answer'"),
        (without("answer"), r"no column 'answer'. It has"),
        (renamed("question", "Question"), r"no column 'question'; rename 'Question' if that is it"),
        (renamed("image", "image_path"), r"no column 'image' and no column 'audio'; rename 'image_path'"),
        (renamed("answer", "label"), r"no column 'answer'; rename 'label'"),
        ([{**ROWS[0], "choice": ["a", "b"]}], r"the column 'choice' is not read; rename it to 'choices'"),
        ([{**ROWS[0], "Question Type": "x"}], r"the column 'Question Type' is not read; rename it to 'question_type'"),
        ([{**ROWS[0], "answers": ["red"]}], r"a column 'answer' and a column 'answers'; keep one"),
        (changed(answer=" "), r"line 2: answer is empty"),
        (changed(question=""), r"line 2: question is empty"),
        (changed(answer=True), r"line 2: answer must be one text, not True; write yes or no"),
        (changed(answer=None), r"line 2: answer must be one text, not nothing"),
        (
            changed(answer=["a"]),
            r"line 2: answer must be one text, not \['a'\]; a list belongs into a column 'answers'",
        ),
        (changed(answer=float("nan")), r"line 2: answer must be one text, not nan"),
        (changed(image=[]), r"line 2: image is an empty list"),
        (changed(image=5.5), r"line 2: there is no image .*5.5"),
        (changed(image=None), r"line 2: image must be one text, not nothing"),
        (changed(image="no.png"), r"line 2: there is no image .*no.png; paths count from the folder of the table"),
        (changed(image="img\\c.png"), r"line 2: there is no image .*; write / instead of"),
        (changed(image="https://host/x.png"), r"line 2: there is no image .*; files are read from disk, so download"),
        (changed(image="img"), r"line 2: .*img cannot be read"),
        (changed(choices="red"), r'line 2: choices must be a list such as \["red", "blue"\], not \'red\''),
        (changed(choices=["no", "No"]), r"line 2: metric 'choice_letter' does not fit: choices are alike"),
        (changed(choices=["yes", "maybe"]), r"line 2: metric 'choice_letter' does not fit: the answer 'no' is neither"),
        (changed(metric="exact"), r"line 2: unknown metric 'exact'.* known: equal, exact_match"),
        (
            changed(metric="yes_no", answer="maybe"),
            r"line 2: metric 'yes_no' does not fit: the answer must be yes or no",
        ),
        (changed(question_type="all"), r"line 2: question_type 'all' is what tables call the mean"),
        ([{**ROWS[0], "id": 1}, {**ROWS[1], "id": "1"}], r"line 2: the id '1' is that of line 1 already"),
        ([], "holds no questions"),
    ],
)
def test_bad_rows_are_refused_by_name(folder, rows, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_data(write(folder, rows, "m.jsonl"))


def test_bad_images_are_refused_by_their_row(folder):
    path = write(folder, ROWS, "m.csv")
    (folder / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"line 3: .*b.png is no image that can be read"):
        read_data(path)
    Image.new("I;16", (8, 6)).save(folder / "b.png")
    with pytest.raises(ValueError, match=r"line 3: .*b.png has more than 8 bits a channel \(mode I;16\)"):
        read_data(path)


@pytest.mark.parametrize("side", [40, 50])
def test_a_huge_image_is_refused_before_it_is_decoded(folder, side, monkeypatch):
    path = write(folder, ROWS, "m.csv")
    Image.new("RGB", (side, side)).save(folder / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"line 3: .*b.png (has 40 x 40 pixels|is too large)"):
        read_data(path)


def test_a_cut_image_is_named_when_it_is_read(folder):
    picture = Image.effect_noise((64, 64), 50)
    picture.save(folder / "a.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:600])
    split = read_data(write(folder, ROWS, "m.csv"))
    with pytest.raises(ValueError, match=r"image 'a.png' of m cannot be read"):
        split.picture("a.png")


def test_bytes_that_are_no_image_are_refused_by_their_row(tmp_path):
    table = pd.DataFrame({"image": [content(Image.new("L", (3, 3))), b"x"], "question": "?", "answer": "a"})
    table.to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"m.parquet, row 2: the image is no image that can be read"):
        read_data(tmp_path / "m.parquet")
    table.assign(image=[None, b""]).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=r"row 1: image is empty"):
        read_data(tmp_path / "m.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "m.csv",
            "image,question,answer\na.png,Couleur?,bl\xe9u\n".encode("latin-1"),
            r"not in UTF-8 but in another enc",
        ),
        ("m.csv", "image,question,answer\na.png,x,y\n".encode("utf-16"), r"not in UTF-8 but in UTF-16"),
        ("m.csv", b"image;question;answer\na.png;x;y\n", r"columns are separated by ';'; a .csv file needs commas"),
        (
            "m.csv",
            b"image,question,answer\na.png,One, two?,y\n",
            r"line 2: 4 values for 3 columns; put values that hold",
        ),
        ("m.csv", b"image,question,answer\na.png,x\n", r"line 2: 2 values for 3 columns"),
        ("m.csv", b'image,question,answer\na.png,"x,y\n', r"line 2: "),
        ("m.csv", b"image,question,question\na.png,x,y\n", r"the column 'question' twice"),
        ("m.csv", b"image,question,answer\n", r"holds no questions"),
        ("m.csv", b"", r"holds no questions"),
        ("m.jsonl", b'{"image": "a.png"\n', r"line 1: no JSON"),
        ("m.jsonl", b"[1]\n", r"line 1: each line must be one object, not list"),
        ("m.parquet", b"PAR1", r"cannot be read"),
        ("m.xlsx", b"x", r"is no table of questions; these can be read: .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_files_that_are_no_table_are_refused(folder, name, data, message):
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_data(folder / name)


def test_data_that_is_not_there(folder):
    with pytest.raises(FileNotFoundError, match=r"no data .*mien; beside it are: .*img"):
        read_data(folder / "mien")
    with pytest.raises(FileNotFoundError, match=r"no table of questions in .*img; it may end in .csv"):
        read_data(folder / "img")
