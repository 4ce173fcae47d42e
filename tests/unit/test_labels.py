"""What somebody said of images, read strictly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy_factory import category, policy_of
from worker.authoring.labels import InvalidLabels, LabelledImage, Labels, read_labels, shown_by
from worker.policy import Category

CATEGORIES = policy_of(
    category("weapons", prompts=["a weapon"]),
    category("weapons.firearm", prompts=["a gun"]),
    category("hazard.fire", prompts=["fire"]),
    category("toys.firearm", prompts=["a toy gun"]),
).categories


def read(folder: Path, content: str | bytes, **options: object) -> Labels:
    file = folder / "labels.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_labels(file, CATEGORIES, **options)  # type: ignore[arg-type]


def problems(folder: Path, content: str | bytes, **options: object) -> list[str]:
    with pytest.raises(InvalidLabels) as refused:
        read(folder, content, **options)
    return [problem.removeprefix(f"{folder}/labels.csv") for problem in refused.value.problems]


def test_rows_become_images_with_all_that_is_said_of_them(tmp_path: Path) -> None:
    labels = read(
        tmp_path,
        "\ufeffurl, path ,label,split,weight,source,licence\n"
        ",a.jpg, fire ,train,2.5,site:1,MIT\n"
        "\n"
        'https://u:p@h/b.jpg?sig=secret,,"a cat, asleep",test,,,\n',
    )
    file = tmp_path / "labels.csv"
    assert labels.images == (
        LabelledImage(
            name="a.jpg",
            place=f"{file}:2",
            label="fire",
            path=tmp_path / "a.jpg",
            split="train",
            weight=2.5,
            source="site:1",
        ),
        LabelledImage(
            name="https://h/b.jpg",
            place=f"{file}:4",
            label="a cat, asleep",
            url="https://u:p@h/b.jpg?sig=secret",
            split="test",
        ),
    )
    assert labels.meanings == {"fire": "hazard.fire"}
    assert labels.notes == ("images with these labels count as showing no category: a cat, asleep",)


def test_the_source_is_taken_from_the_column_that_is_named_and_cut_where_it_is_said(
    tmp_path: Path,
) -> None:
    content = "path,label,source,origin\na.jpg,fire,x,site:1\n"
    options = {"source": "origin", "source_until": ":"}
    assert read(tmp_path, content, **options).images[0].source == "site"


def test_a_folder_has_a_folder_for_each_label(tmp_path: Path) -> None:
    for name in ("fire/a.JPG", "fire/deep/b.png", "cat/c.webp", "cat/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    labels = read_labels(tmp_path, CATEGORIES)
    found = [(image.name, image.label) for image in labels.images]
    assert found == [("cat/c.webp", "cat"), ("fire/a.JPG", "fire"), ("fire/deep/b.png", "fire")]


def test_an_image_beside_the_folders_of_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fire").mkdir()
    (tmp_path / "fire" / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    with pytest.raises(InvalidLabels, match=r"b\.jpg: lies in no class's folder; move it"):
        read_labels(tmp_path, CATEGORIES)


@pytest.mark.parametrize(
    ("label", "given", "meant"),
    [
        ("weapons.firearm", {}, "weapons.firearm"),
        ("fire", {}, "hazard.fire"),
        ("a photo of a gun", {"a photo of a gun": "weapons.firearm"}, "weapons.firearm"),
        ("firearm", {"firearm": "toys.firearm"}, "toys.firearm"),
        ("fires", {"fires": "none"}, None),
    ],
)
def test_a_label_is_an_id_its_last_part_or_what_it_is_said_to_mean(
    tmp_path: Path, label: str, given: dict[str, str], meant: str | None
) -> None:
    content = f"path,label\na.jpg,{label}\nb.jpg,weapons\n"
    assert read(tmp_path, content, given=given).meanings.get(label) == meant


def test_what_shows_a_category_shows_those_above_it_and_maybe_those_below(tmp_path: Path) -> None:
    content = "path,label\na,weapons.firearm\nb,weapons\nc,cat\n"
    labels = read(tmp_path, content)
    assert shown_by("weapons.firearm", labels, CATEGORIES) == {
        "weapons": True,
        "weapons.firearm": True,
        "hazard.fire": False,
        "toys.firearm": False,
    }
    assert shown_by("weapons", labels, CATEGORIES) == {
        "weapons": True,
        "hazard.fire": False,
        "toys.firearm": False,
    }
    assert not any(shown_by("cat", labels, CATEGORIES).values())
    assert len(shown_by("cat", labels, CATEGORIES)) == len(CATEGORIES)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", ":1: the first line must name the columns `path` or `url`, and `label`"),
        ("a.jpg,fire\nb.jpg,cat\n", ":1: the first line must name the columns"),
        ("path;label\na.jpg;fire\n", "separated by commas; it has path;label"),
        ("path,label,label\na.jpg,fire,fire\n", ":1: the column `label` is there twice"),
        ("path,label\n\xff".encode("latin-1"), ":2: is not UTF-8"),
        ('path,label\na.jpg,"fire\n', ":2: is no CSV from here on"),
        ('path,label\na.jpg,"fi"re\n', ":2: is no CSV from here on"),
        ("path,label\na.jpg,fire,\n", ":2: has 3 columns where the first line names 2"),
        ("path,label\na.jpg\n", ":2: has 1 column where the first line names 2"),
        ("path,label\n,fire\n", ":2: must have a `path` or a `url`"),
        ("path,url,label\na.jpg,http://h/a,fire\n", "or a `url`, and not both"),
        ("path,label\nhttps://h/a.jpg,fire\n", ":2: has a URL for its `path`"),
        ("url,label\nfile:///etc/passwd,fire\n", ":2: has a `url` that does not begin with"),
        ("path,label\na\0.jpg,fire\n", ":2: has a `path` with a NUL character"),
        ("path,label\na.jpg, \n", ":2: has no `label`"),
        ("path,label,split\na.jpg,fire,dev\n", ":2: has the split 'dev'; write train, test"),
        ("path,label,weight\na.jpg,fire,nan\n", ":2: has the weight 'nan'; write a number above 0"),
        ("path,label,weight\na.jpg,fire,-1\n", ":2: has the weight '-1'"),
        ("path,label,weight\na.jpg,fire,0\n", ":2: has the weight '0'"),
        ("path,label,weight\na.jpg,fire,many\n", ":2: has the weight 'many'"),
        ("path,label\na.jpg,fire\na.jpg,cat\n", ":3: a.jpg is labelled 'cat', and 'fire' at"),
        ("path,label,weight\na,fire,1\na,fire,2\n", ":3: a has another split or weight at"),
        ("path,label\na.jpg,firearm\n", "may mean weapons.firearm or toys.firearm; say which"),
        ("path,label\na.jpg,weapons.firearms\n", "if it is weapons.firearm, say so with --label"),
        ("path,label\na.jpg,cat\n", "none of the labels (cat) means a category (weapons, "),
        ("path,label\n", "there is no labelled image in it"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(
    tmp_path: Path, content: str | bytes, sentence: str
) -> None:
    found = problems(tmp_path, content)
    assert sentence in found[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"given": {"fire": "hazard.fier"}}, "no category is named 'hazard.fier'; there are: "),
        ({"given": {"smoke": "hazard.fire"}}, "no image is labelled 'smoke'; there are: fire"),
        ({"source": "origin"}, "there is no column `origin`"),
    ],
)
def test_an_option_that_fits_nothing_is_refused(
    tmp_path: Path, options: dict[str, object], sentence: str
) -> None:
    assert sentence in problems(tmp_path, "path,label\na.jpg,fire\n", **options)[0]


@pytest.mark.parametrize("content", [b"path,label\n\xff", None])
def test_a_file_that_cannot_be_read_has_no_other_problem(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "labels.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidLabels) as refused:
        read_labels(file, CATEGORIES)
    assert len(refused.value.problems) == 1


def test_the_label_none_means_none_whatever_the_categories_are(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("path,label\na.jpg,fire\nb.jpg,none\n")
    categories = [*CATEGORIES, replace(CATEGORIES[0], id="new.one")]
    assert read_labels(file, categories).meanings == {"fire": "hazard.fire"}


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    content = "path,label,weight\na.jpg,fire,0\nb.jpg\nc.jpg,,1\nd.jpg,fires,1\n"
    assert [problem[:3] for problem in problems(tmp_path, content)] == [":2:", ":3:", ":4:", ":5:"]


def test_of_very_many_problems_some_are_told_and_the_others_counted(tmp_path: Path) -> None:
    content = "path,label\n" + "a.jpg\n" * 100
    with pytest.raises(InvalidLabels, match=r"and 60 more of these$") as refused:
        read(tmp_path, content)
    assert len(refused.value.problems) == 100


def test_a_url_that_is_refused_is_not_repeated(tmp_path: Path) -> None:
    content = "url,path,label\nhttps://h/a?sig=secret,a.jpg,fire\nftp://u:secret@h/a,,fire\n"
    assert not any("secret" in problem for problem in problems(tmp_path, content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidLabels, match="No such file"):
        read_labels(tmp_path / "none.csv", CATEGORIES)


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_labels_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    for raw in (content, b"path,label,weight,split\n" + content):
        try:
            labels = read(folder, raw)
        except InvalidLabels as refused:
            assert refused.problems
        else:
            assert labels.images and labels.meanings


@given(st.lists(st.sampled_from([category.id for category in CATEGORIES]), min_size=1))
def test_an_image_shows_its_own_category(ids: list[str]) -> None:
    labels = Labels((), {id_: id_ for id_ in ids})
    assert all(shown_by(id_, labels, list[Category](CATEGORIES))[id_] for id_ in ids)
