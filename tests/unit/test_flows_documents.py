"""The documents a digest reads: files, folders, URIs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastroai.errors import FastroAIError
from flows.documents import MAX_BYTES, DocumentError, read_documents
from tests.support.s3 import S3Service


def names(location: str | Path, max_documents: int = 20) -> list[str]:
    return [document.name for document in read_documents(str(location), max_documents).read]


def refusal(location: str | Path) -> str:
    with pytest.raises(DocumentError) as caught:
        read_documents(str(location), 20)
    return str(caught.value)


def test_a_folder_is_read_in_order_of_names_with_its_subfolders(tmp_path: Path):
    for name in ("b.md", "a.txt", "sub/c.rst", "d.HTML"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")
    assert names(tmp_path) == ["a.txt", "b.md", "d.HTML", "sub/c.rst"]


def test_hidden_and_other_files_are_not_read_and_the_others_are_listed(tmp_path: Path):
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "notes.md").write_text("hidden")
    documents = read_documents(str(tmp_path), 20)
    assert [d.name for d in documents.read] == ["a.md"]
    assert [left.split(":")[0] for left in documents.left_out] == ["data.csv"]


def test_documents_beyond_the_limit_and_empty_ones_are_listed(tmp_path: Path):
    for name in "abc":
        (tmp_path / f"{name}.md").write_text("text")
    (tmp_path / "a.md").write_text(" \n")
    documents = read_documents(str(tmp_path), 2)
    assert [d.name for d in documents.read] == ["b.md"]
    assert documents.left_out == ["c.md: beyond max_documents=2", "a.md: empty"]


def test_a_single_file_may_have_any_name(tmp_path: Path):
    (tmp_path / "LICENSE").write_text("\ufeffwith a mark")
    assert read_documents(str(tmp_path / "LICENSE"), 1).read[0].text == "with a mark"


def test_a_relative_path_and_a_file_uri_are_read(tmp_path: Path):
    (tmp_path / "a note.md").write_text("text")
    assert names("a note.md") == ["a note.md"]
    assert names((tmp_path / "a note.md").as_uri()) == ["a note.md"]


def test_html_is_read_as_its_text(tmp_path: Path):
    page = (
        "<html><head><title>t</title><style>p{}</style></head>"
        "<body><h1>Head</h1><p>One&amp;two<br>three</p></body>"
    )
    (tmp_path / "page.html").write_text(page + "<script>var x</script></html>")
    assert read_documents(str(tmp_path), 1).read[0].text == "Head\nOne&two\nthree"


def test_a_missing_path_is_named_with_where_it_was_looked_for(tmp_path: Path):
    said = refusal("nowhere/at/all")
    assert str(tmp_path / "nowhere/at/all") in said
    assert "Correct the path" in said


def test_an_unreadable_document_is_named_with_the_remedy(tmp_path: Path):
    (tmp_path / "good.md").write_text("text")
    bad = tmp_path / "scan.txt"
    for content, said in ((b"\xff\xfe\x00", "not UTF-8"), (b"abc\0def", "binary")):
        bad.write_bytes(content)
        message = refusal(tmp_path)
        assert str(bad) in message
        assert said in message
        assert "leave it out" in message


def test_a_document_that_is_too_big_is_refused_before_it_is_read(tmp_path: Path):
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "2,000,001 bytes" in refusal(tmp_path / "big.txt")


@pytest.mark.parametrize("content", [None, ""])
def test_a_folder_without_text_is_refused(tmp_path: Path, content: str | None):
    folder = tmp_path / "empty"
    folder.mkdir()
    if content is not None:
        (folder / "a.md").write_text(content)
    said = refusal(folder)
    assert str(folder) in said
    assert ".md" in said


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("ftp://example.org/a", "ftp:// can't be read"),
        ("file://host/a", "names the host 'host'"),
        ("s3://", "names no bucket"),
        ("", "is empty"),
        ("/dev/null", "neither a file nor a folder"),
    ],
)
def test_other_locations_are_refused_with_what_to_give(location: str, said: str):
    assert said in refusal(location)


def test_a_refusal_is_one_of_our_errors():
    assert issubclass(DocumentError, FastroAIError)


@pytest.fixture
def bucket(s3: S3Service, monkeypatch: pytest.MonkeyPatch) -> S3Service:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    for key, text in {
        "minutes/a.md": "first",
        "minutes/sub/b.txt": "second",
        "minutes-old/c.md": "third",
    }.items():
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=text.encode())
    s3.client.put_object(Bucket=s3.bucket, Key="minutes/scan.pdf", Body=b"%PDF")
    return s3


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_s3_prefix_is_read_like_a_folder(bucket: S3Service, slash: str):
    documents = read_documents(f"s3://{bucket.bucket}/minutes{slash}", 20)
    assert {d.name: d.text for d in documents.read} == {"a.md": "first", "sub/b.txt": "second"}
    assert [left.split(":")[0] for left in documents.left_out] == ["scan.pdf"]


def test_a_whole_bucket_and_a_single_object_are_read(bucket: S3Service):
    assert len(names(f"s3://{bucket.bucket}")) == 3
    assert names(f"s3://{bucket.bucket}/minutes/a.md") == ["a.md"]


def test_an_s3_prefix_with_nothing_under_it_is_refused(bucket: S3Service):
    assert f"s3://{bucket.bucket}/absent" in refusal(f"s3://{bucket.bucket}/absent")


def test_a_bucket_that_is_not_there_is_refused_with_what_to_check(bucket: S3Service):
    said = refusal("s3://no-such-bucket-here/x")
    assert "NoSuchBucket" in said
    assert "FASTROAI_S3_ENDPOINT_URL" in said


def test_an_s3_service_that_does_not_answer_is_refused(
    bucket: S3Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "EndpointConnectionError" in refusal("s3://bucket/x")
