"""Corpora on disk: what is read, and what is refused."""

import hashlib
import json
import subprocess
import sys

import pytest

from agartha.core.errors import DataError
from agartha.data.sources import Text, is_excluded, kind_of, load_held_out, open_hub, problem_digest, read


def write_jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read_all(path, fields=(), split="blank"):
    return list(read(str(path), kind_of(str(path)), fields, split))


def test_blank_lines_part_documents_of_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\ntwo\n \n\nthree é\r\n".encode())
    assert read_all(path) == [Text("one\ntwo"), Text("three é")]


def test_a_text_file_can_be_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    assert read_all(path, split="file") == [Text("one\n\ntwo\n")]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "a", "prompt": "x", "completion": "y"}, Text("a")),
        ({"prompt": "p ", "completion": "c"}, Text("c", "p ")),
        ({"prompt": "p", "completion": " c"}, Text(" c", "p")),
        ({"question": "q", "answer": "a", "id": 3}, Text("a", "q\n")),
    ],
)
def test_usual_fields_are_found(tmp_path, record, expected):
    assert read_all(write_jsonl(tmp_path / "a.jsonl", record)) == [expected]


def test_named_fields_go_before_usual_ones(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "no", "problem": "p\n", "solution": "s"})
    assert read_all(path, ["problem", "solution"]) == [Text("s", "p\n")]
    assert read_all(path, ["solution"]) == [Text("s")]


def test_records_of_white_space_are_passed_over(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": ""}, {"text": " \n"}, {"text": None}, {"text": "a"})
    assert read_all(path) == [Text("a")]


def test_a_folder_is_read_in_order_of_name(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", {"text": "second"})
    write_jsonl(tmp_path / "a.jsonl", {"text": "first"})
    assert read_all(tmp_path) == [Text("first"), Text("second")]


def test_parquet_gives_the_same_as_json_lines(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"question": f"q{i}\n", "answer": f"a{i}", "id": i} for i in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet") == read_all(write_jsonl(tmp_path / "a.jsonl", *rows))


def test_parquet_faults_are_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"] * 100, "id": [1] * 100}), path)
    with pytest.raises(DataError, match=r"lacks the field body; it has 'text', 'id'"):
        read_all(path, ["body"])
    with pytest.raises(DataError, match=r"row 0: field 'id' is int, must be text"):
        read_all(path, ["id"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="no readable parquet file"):
        read_all(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no document"),
        ("a.txt", b" \n\n\t\n", "holds no document"),
        ("a.txt", b"fine\nnot \0 fine\n", "line 2 holds a NUL byte"),
        ("a.txt", b"caf\xe9\n", r"not UTF-8: .*0xe9"),
        ("a.jsonl", b"", "holds no document"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1 is list, must be an object"),
        ("a.jsonl", b'{"body": "a"}\n', "line 1 lacks the field text or prompt.completion.*it has 'body'"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "a"}\n', "line 2 lacks the field text; it has 'txt'"),
        ("a.jsonl", b'{"text": 3}\n', "field 'text' is int, must be text"),
        ("a.parquet", b"PAR1 is not enough", "no readable parquet file"),
        ("a.csv", b"a,b\n", "cannot tell the kind"),
    ],
)
def test_bad_files_are_refused_with_a_hint(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_all(path)
    assert raised.value.hint


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        kind_of(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="holds no"):
        kind_of(str(tmp_path))


def test_a_folder_of_two_kinds_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    write_jsonl(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(DataError, match="cannot tell the kind"):
        kind_of(str(tmp_path))


def test_a_data_set_reads_like_its_file(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "set").mkdir()
    path = write_jsonl(
        tmp_path / "set" / "train.jsonl", *({"prompt": f"p{i}", "completion": f"c{i}"} for i in range(9))
    )
    assert read_all(f"hf:{tmp_path / 'set'}:train") == read_all(path)
    with pytest.raises(DataError, match="cannot load hf:"):
        read_all(f"hf:{tmp_path / 'set'}:missing")


@pytest.mark.parametrize("path", ["hf:", "hf:openai/gsm8k", "hf:a::b", "hf:a:b:c:d"])
def test_a_malformed_hub_name_is_refused(path):
    with pytest.raises(DataError, match="not of the form hf:owner/name:split"):
        open_hub(path)


def test_a_problem_is_held_out_whatever_its_case_and_spacing():
    held_out = {problem_digest("How  many\n apples?")}
    assert is_excluded(Text("Three.", "how many apples?\n"), held_out)
    assert is_excluded(Text("HOW MANY APPLES?"), held_out)
    assert is_excluded(Text(" apples?", "How many"), held_out)
    assert not is_excluded(Text("Three.", "How many pears?"), held_out)


def test_held_out_digests_are_read_with_or_without_prefix(tmp_path):
    hexes = [hashlib.sha256(text).hexdigest() for text in (b"a", b"b")]
    (tmp_path / "digests").write_text(f"sha256:{hexes[0]}\n\n{hexes[1].upper()}\n")
    assert load_held_out(tmp_path / "digests") == {f"sha256:{value}" for value in hexes}
    (tmp_path / "digests").write_text("How many apples?\n")
    with pytest.raises(DataError, match="line 1 is no sha256 digest"):
        load_held_out(tmp_path / "digests")


def test_reading_sources_and_configs_needs_no_torch():
    code = "import sys, agartha.data.mixture, agartha.data.sources; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
