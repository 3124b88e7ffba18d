"""Prompts from files of four kinds, and shipped files that are what the manifest says."""

import json

import pytest

from minippo import data
from minippo.data import load_prompts, load_texts, read_jsonl, sha256, shipped, write_jsonl
from tests.shapes import refuses

ROWS = [{"prompt": "The soup"}, {"prompt": 'A "film", they said: è bello 🙂'}]
TEXTS = [row["prompt"] for row in ROWS]


def test_jsonl_survives_a_round_trip_and_is_readable(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    assert read_jsonl(path) == ROWS
    assert "è bello 🙂" in path.read_text(encoding="utf-8")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_sha256_is_the_published_one(tmp_path):
    # FIPS 180-2, appendix B.1.
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == expected


# ---- load_prompts


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "txt"])
def test_prompts_come_from_every_kind_of_file(tmp_path, monkeypatch, kind):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path, table = tmp_path / f"prompts.{kind}", datasets.Dataset.from_list(ROWS)
    if kind == "txt":
        path.write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n", encoding="utf-8")
    elif kind == "jsonl":
        write_jsonl(path, ROWS)
    elif kind == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif kind == "csv":
        table.to_csv(path)
    else:
        table.to_parquet(path)
    assert load_prompts(path) == load_prompts(str(path)) == TEXTS


def test_no_such_file_names_the_shipped_prompts():
    with refuses("load_prompts: source", "no-such.jsonl"):
        load_prompts("no-such.jsonl")
    with pytest.raises(ValueError, match="one of prompts-train, prompts-held-out"):
        load_prompts("no-such.jsonl")


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "prompts.docx").write_text("x")
    with refuses("load_prompts: source", "prompts.docx"):
        load_prompts(tmp_path / "prompts.docx")


def test_a_table_without_the_column_names_the_columns_it_has(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "a", "label": 1}])
    with refuses("load_prompts: rows.jsonl", "columns question, label"):
        load_prompts(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(("bad", "came"), [("", "''"), (None, "None")])
def test_a_row_without_a_prompt_is_refused_by_its_number(tmp_path, bad, came):
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": bad}])
    with refuses("load_prompts: row 2", came):
        load_prompts(tmp_path / "rows.jsonl")


def test_a_text_of_blank_lines_holds_no_prompt(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n  \n\n")
    with refuses("load_prompts: prompts.txt", "none"):
        load_prompts(tmp_path / "prompts.txt")


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "prompts.csv"])
def test_an_empty_file_is_refused_with_our_message(tmp_path, name):
    (tmp_path / name).write_text("")
    with refuses(f"load_prompts: {name}", "an empty file"):
        load_prompts(tmp_path / name)


# ---- shipped


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with one text and its manifest."""
    write_jsonl(tmp_path / "prompts-train.jsonl", ROWS)
    digest = sha256(tmp_path / "prompts-train.jsonl")
    manifest = {"files": {"prompts-train.jsonl": {"sha256": digest}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(data, "DATA", tmp_path)
    return tmp_path


def test_a_shipped_text_is_found_by_its_name(folder):
    assert load_texts("prompts-train") == ROWS
    assert load_prompts("prompts-train") == TEXTS


def test_only_shipped_names_are_shipped():
    with refuses("shipped: name", "../secrets"):
        shipped("../secrets")


def test_an_altered_text_is_refused_by_its_name(folder):
    write_jsonl(folder / "prompts-train.jsonl", ROWS[::-1])
    with refuses("shipped: data/prompts-train.jsonl", "another content"):
        load_prompts("prompts-train")


def test_a_text_that_is_gone_is_refused_by_its_name(folder):
    (folder / "prompts-train.jsonl").unlink()
    with refuses("shipped: data/prompts-train.jsonl", "no file"):
        load_prompts("prompts-train")


def test_a_name_that_the_manifest_does_not_know_is_refused(folder):
    with refuses("shipped: data/preferences", "neither"):
        load_texts("preferences")
