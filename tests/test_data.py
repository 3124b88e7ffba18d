"""Prompts from files of four kinds, and shipped files that are what the manifest says."""

import bz2
import contextlib
import gzip
import hashlib
import json
import socket
from types import SimpleNamespace

import huggingface_hub
import pytest

from minippo import data
from minippo.data import (
    load_prompts,
    load_study,
    load_texts,
    read_jsonl,
    sha256,
    shipped,
    write_jsonl,
)
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


def test_a_packed_file_has_the_rows_and_the_sha256_of_what_is_in_it(tmp_path):
    plain, packed = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.bz2"
    write_jsonl(plain, ROWS * 100)
    write_jsonl(packed, ROWS * 100)
    assert bz2.decompress(packed.read_bytes()) == plain.read_bytes()
    assert packed.stat().st_size < plain.stat().st_size / 10
    assert read_jsonl(packed) == read_jsonl(plain) == ROWS * 100
    assert sha256(packed) == sha256(plain) == hashlib.sha256(plain.read_bytes()).hexdigest()


# ---- load_prompts


@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "csv", "parquet", "txt", "jsonl.gz", "jsonl.bz2", "txt.gz"]
)
def test_prompts_come_from_every_kind_of_file(tmp_path, monkeypatch, kind):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path, table = tmp_path / f"prompts.{kind}", datasets.Dataset.from_list(ROWS)
    lines = f"{TEXTS[0]}\n\n{TEXTS[1]}\n".encode()
    if kind == "txt":
        path.write_bytes(lines)
    elif kind == "txt.gz":
        path.write_bytes(gzip.compress(lines))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    elif kind in ("jsonl", "jsonl.bz2"):
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
    (tmp_path / "prompts.docx").write_text("x", encoding="utf-8")
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
    (tmp_path / "prompts.txt").write_text("\n  \n\n", encoding="utf-8")
    with refuses("load_prompts: prompts.txt", "none"):
        load_prompts(tmp_path / "prompts.txt")


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "prompts.csv"])
def test_an_empty_file_is_refused_with_our_message(tmp_path, name):
    (tmp_path / name).write_text("", encoding="utf-8")
    with refuses(f"load_prompts: {name}", "an empty file"):
        load_prompts(tmp_path / name)


def test_a_column_of_another_name_is_asked_for_by_its_name(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "a", "label": 1}, {"question": "b"}])
    assert load_prompts(f"{tmp_path}/rows.jsonl:question") == ["a", "b"]
    with refuses("load_prompts: rows.jsonl", "columns question, label"):
        load_prompts(f"{tmp_path}/rows.jsonl:answer")
    (tmp_path / "a:b.jsonl").write_text('{"prompt": "c"}', encoding="utf-8")
    assert load_prompts(tmp_path / "a:b.jsonl") == ["c"]  # a file's name may hold a colon


def test_a_folder_of_tables_is_read_split_train(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "b"}])
    write_jsonl(tmp_path / "test.jsonl", [{"text": "held out"}])
    assert load_prompts(f"{tmp_path}:text") == ["a", "b"]


@pytest.mark.parametrize(("name", "text"), [("x.jsonl", '{"prompt"'), ("x.parquet", "junk")])
def test_a_damaged_table_is_refused_with_our_message(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    must = r"^load_prompts: source must be a table that datasets can read, got "
    with pytest.raises(ValueError, match=f"{must}.*{name} \\("):
        load_prompts(tmp_path / name)


# ---- the hub's data sets


def test_a_hub_data_set_is_asked_for_by_name_and_column(monkeypatch):
    datasets, asked = pytest.importorskip("datasets"), []

    def load_dataset(*arguments, **keywords):
        asked.append((arguments, keywords))
        return datasets.Dataset.from_list([{"text": "Well", "label": 1}, {"text": "Bad"}])

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_prompts("stanfordnlp/imdb:text") == ["Well", "Bad"]
    assert asked == [(("stanfordnlp/imdb",), {"split": "train"})]  # no code of the hub's is run
    with refuses("load_prompts: imdb", "columns text, label"):
        load_prompts("stanfordnlp/imdb")


def test_a_hub_that_never_answers_is_given_up_soon_and_the_message_says_what_helps(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes calls, says nothing
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE=1.*'someone/unknown' \(Read"):
            load_prompts("someone/unknown:text")
        server.setblocking(False)
        calls = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                server.accept()[0].close()
                calls += 1
        print(f"{calls} calls")
        assert 1 <= calls <= 2  # of three seconds each: the library tries twice


def test_offline_a_data_set_that_is_not_cached_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"^load_prompts: source .*someone/unknown \(Couldn't"):
        load_prompts("someone/unknown:text")


@pytest.mark.parametrize("name", ["imdb", "json", "a/b/c", "two words/x", "/no/where", "../up"])
def test_a_source_that_is_no_name_of_the_hub_is_not_asked_for(monkeypatch, name):
    monkeypatch.setattr(data, "ask_for_dataset", None)
    with refuses("load_prompts: source", name):
        load_prompts(name)


# ---- shipped


@pytest.mark.parametrize("name", data.SHIPPED_STUDIES)
def test_each_row_of_a_study_is_one_run_with_its_case_and_its_seed(name):
    rows = load_study(name)
    cases = [json.dumps(row["case"], sort_keys=True) for row in rows]
    assert len(set(cases)) == len(cases) > 0
    assert all(type(row["case"]["seed"]) is int and len(row) > 1 for row in rows)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with one text and its manifest."""
    write_jsonl(tmp_path / "prompts-train.jsonl", ROWS)
    digest = sha256(tmp_path / "prompts-train.jsonl")
    manifest = {"files": {"prompts-train.jsonl": {"sha256": digest}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
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
    with refuses("shipped: data/prompts-train.jsonl", "different content"):
        load_prompts("prompts-train")


def test_a_damaged_packed_text_is_refused_by_its_name(folder):
    (folder / "preferences.jsonl.bz2").write_bytes(bz2.compress(b"{}")[:-9])
    listed = '{"files": {"preferences.jsonl.bz2": {"sha256": ""}}}'
    (folder / "manifest.json").write_text(listed, encoding="utf-8")
    with refuses("shipped: data/preferences.jsonl.bz2", "different content"):
        load_texts("preferences")


def test_a_text_that_is_gone_is_refused_by_its_name(folder):
    (folder / "prompts-train.jsonl").unlink()
    with refuses("shipped: data/prompts-train.jsonl", "no file"):
        load_prompts("prompts-train")


def test_a_name_that_the_manifest_does_not_know_is_refused(folder):
    with refuses("shipped: data/preferences", "neither"):
        load_texts("preferences")
