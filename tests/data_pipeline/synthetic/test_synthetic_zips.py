"""The zips as a reader meets them: AIHub's tree and schema, its oddities, and planted faults only on demand."""

from __future__ import annotations

import itertools
import json
import struct
import unicodedata
import zipfile
from pathlib import Path

import pytest

from data_pipeline.synthetic.config import FaultsConfig, SyntheticConfig
from data_pipeline.synthetic.documents import documents
from data_pipeline.synthetic.zips import DATASET_FOLDER, Made653, make_653

SMALL = SyntheticConfig(num_documents=31, num_heldout_documents=7)
BOM = "\ufeff".encode()
LABELS = Path("01.데이터/1.Training/라벨링데이터")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made653:
    return make_653(SMALL, tmp_path_factory.mktemp("aihub"))


def members_of(path: Path) -> dict[str, bytes]:
    """Members by name, the names decoded as notes/aihub.md says."""
    members = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename
            if not info.flag_bits & 0x800:
                raw = name.encode("cp437")
                try:
                    name = raw.decode()
                except UnicodeDecodeError:
                    name = raw.decode("cp949")
            members[name] = archive.read(info)
    return members


def texts_of(members: dict[str, bytes]) -> list[str]:
    trees = [json.loads(data.decode("utf-8-sig")) for name, data in members.items() if "_INFO" not in name]
    return [
        "\n".join(" ".join(sentence["text"] for sentence in paragraph["sentences"]) for paragraph in tree["paragraphs"])
        for tree in trees
    ]


def label_texts(folder: Path, split_folder: str) -> list[str]:
    zips = sorted((folder / "01.데이터" / split_folder / "라벨링데이터").glob("*.zip"))
    return [text for path in zips for text in texts_of(members_of(path))]


def test_tree_has_the_published_shape(made: Made653) -> None:
    found = sorted(str(path.relative_to(made.folder)) for path in made.folder.rglob("*.zip"))

    assert made.folder.name == DATASET_FOLDER
    assert found == sorted(
        f"01.데이터/{split}/{role}/{prefix}_{kdc}.zip"
        for split, letter in (("1.Training", "T"), ("2.Validation", "V"))
        for role, prefix in (("라벨링데이터", f"{letter}L"), ("원천데이터", f"{letter}S"))
        for kdc in ("330", "590", "810")
    )


def test_member_has_the_published_schema(made: Made653) -> None:
    members = members_of(made.folder / LABELS / "TL_810.zip")
    tree = json.loads(members["한국문학_0000003.json"])
    paragraph = tree["paragraphs"][0]
    sentence = paragraph["sentences"][0]

    assert list(tree) == ["paragraphs"]
    assert list(paragraph) == ["id", "info", "sentences"]
    assert list(paragraph["info"]) == ["kdc", "class", "author", "published_year"]
    assert list(paragraph["info"]["author"]) == ["birth_year", "write_age", "jobs"]
    assert list(sentence) == ["id", "text", "original_text", "char_count", "word_count", "noise_ratio"]
    assert (sentence["char_count"], sentence["word_count"]) == (len(sentence["text"]), len(sentence["text"].split()))
    assert isinstance(paragraph["info"]["kdc"], str)


def test_label_zips_hold_each_document_once(made: Made653) -> None:
    train, heldout = label_texts(made.folder, "1.Training"), label_texts(made.folder, "2.Validation")

    assert sorted(train) == sorted(one.text for one in documents(SMALL, "train"))
    assert sorted(heldout) == sorted(one.text for one in documents(SMALL, "heldout"))
    assert (made.num_documents, made.num_heldout_documents) == (31, 7)
    assert made.num_characters == sum(len(text) for text in (*train, *heldout))


def test_equal_configs_give_equal_bytes(made: Made653, tmp_path: Path) -> None:
    again = make_653(SMALL, tmp_path / "again")
    other = make_653(SMALL.model_copy(update={"seed": 1}), tmp_path / "other")

    assert again.files == made.files
    assert not {file.sha256 for file in other.files} & {file.sha256 for file in made.files}


@pytest.mark.parametrize(
    ("zip_name", "name", "encoding", "flag"),
    [
        ("TL_810.zip", "한국문학_INFO.json", "cp949", 0),
        ("TL_330.zip", "사회학_INFO.json", "utf-8", 0x800),
        ("TL_590.zip", "생활과학_INFO.json", "utf-8", 0),
    ],
)
def test_member_names_are_spelled_three_ways(made: Made653, zip_name: str, name: str, encoding: str, flag: int) -> None:
    """Read from the bytes of the first local header and of the first central one."""
    data = (made.folder / LABELS / zip_name).read_bytes()
    central = data.index(b"PK\x01\x02")
    raw = name.encode(encoding)

    assert struct.unpack_from("<H", data, 6)[0] & 0x800 == flag
    assert data[30 : 30 + len(raw)] == raw
    assert struct.unpack_from("<H", data, central + 8)[0] & 0x800 == flag
    assert data[central + 46 : central + 46 + len(raw)] == raw


def test_some_members_start_with_a_bom(made: Made653) -> None:
    members = members_of(made.folder / LABELS / "TL_330.zip")
    with_bom = [name for name, data in members.items() if data.startswith(BOM)]

    assert 0 < len(with_bom) < len(members) / 2


def test_info_members_hold_no_text(made: Made653) -> None:
    members = members_of(made.folder / LABELS / "TL_590.zip")
    info = [json.loads(data) for name, data in members.items() if name.endswith("_INFO.json")]

    assert len(info) == 1
    assert "paragraphs" not in info[0]


def test_source_is_a_headerless_table_of_six_columns(made: Made653) -> None:
    source = members_of(made.folder / "01.데이터/1.Training/원천데이터/TS_810.zip")
    rows = [line.split("\t") for line in source["한국문학.tsv"].decode().splitlines()]
    labels = members_of(made.folder / LABELS / "TL_810.zip")
    sentences = [
        (sentence["id"], sentence["text"])
        for name, data in labels.items()
        if "_INFO" not in name
        for paragraph in json.loads(data.decode("utf-8-sig"))["paragraphs"]
        for sentence in paragraph["sentences"]
    ]

    assert {len(row) for row in rows} == {6}
    assert [(row[0], row[1]) for row in rows] == sentences


def test_a_book_shows_by_a_change_of_author(made: Made653) -> None:
    members = members_of(made.folder / LABELS / "TL_810.zip")
    trees = [json.loads(data.decode("utf-8-sig")) for name, data in members.items() if "_INFO" not in name]
    authors = [[paragraph["info"]["author"] for paragraph in tree["paragraphs"]] for tree in trees]

    assert all(author == book[0] for book in authors for author in book)
    assert all(before[0] != after[0] for before, after in itertools.pairwise(authors))


def test_planted_faults_are_there_and_move_nothing_else(made: Made653, tmp_path: Path) -> None:
    faults = FaultsConfig(num_broken_members=2, num_empty_members=1, num_duplicate_documents=3, num_nfd_documents=2)
    spoiled = make_653(SMALL.model_copy(update={"faults": faults}), tmp_path)
    members = members_of(spoiled.folder / LABELS / "TL_810.zip")
    broken = [data for name, data in members.items() if "깨진파일" in name]
    sound = [
        text
        for path in sorted((spoiled.folder / LABELS).glob("*.zip"))
        for text in texts_of({k: v for k, v in members_of(path).items() if "깨진파일" not in k and "빈파일" not in k})
    ]
    clean = label_texts(made.folder, "1.Training")
    nfd = [text for text in sound if not unicodedata.is_normalized("NFC", text)]

    assert [data for name, data in members.items() if "빈파일" in name] == [b""]
    assert len(broken) == 2
    for data in broken:
        with pytest.raises(ValueError):
            json.loads(data.decode(errors="replace"))
    assert len(nfd) == 2
    assert len(sound) == spoiled.num_documents == 31 + 3 + 2
    assert sorted(set(sound) - set(nfd)) == sorted(clean)
