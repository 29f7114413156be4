"""data.fetch against a web server of our own on the loopback interface."""

import dataclasses
import hashlib
import http.server
import io
import json
import threading
import time
import urllib.parse
import zipfile

import pytest

from data import fetch as fetch_module
from data.fetch import CORPORA, FILES, PublicFile, fetch, main
from data.files import DataError
from data.records import Line, Skipped, read_dialogues

NAME = "“陌生来电” 诈骗 (2).csv"
BODY = "case,speaker,content,is_fraud\n1,客服,请把验证码念给我。,True\n".encode() * 4000  # several chunks
REST = b"\n{}\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.bodies`; `server.plan` holds what the next requests get instead of a proper answer."""

    def do_GET(self):
        path, asked = urllib.parse.unquote(self.path), self.headers.get("Range")
        self.server.requests.append((path, asked))
        do = self.server.plan.pop(0) if self.server.plan else "serve"
        if do == "hang":
            return time.sleep(0.5)
        body = self.server.bodies.get(path)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and do != "ignore range" else 0
        if isinstance(do, int) or body is None:
            return self._answer(do if isinstance(do, int) else 404, b"")
        if asked and start >= len(body):
            return self._answer(416, b"")
        headers = {}
        if asked and do != "ignore range":
            first = 0 if do == "wrong place" else start
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        self._answer(206 if headers else 200, body[start:], headers, cut=do == "close early")

    def _answer(self, status, body, headers=None, cut=False):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:len(body) // 2] if cut else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.plan = [], []
        server.bodies = {f"/csv/{NAME}": BODY, "/rest.jsonl": REST}
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def public_file(body=BODY, **changes):
    fields = {"source": f"csv/{NAME}", "target": f"dialogs/{NAME}", "sha256": hashlib.sha256(body).hexdigest()}
    return PublicFile(**{**fields, **changes})


def run(server, output, *files):
    return fetch(output, source=server.url, files=files or [public_file()], timeout=5, pause=0)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def leave_part(tmp_path, content):
    part = tmp_path / "dialogs" / f"{NAME}.part"
    part.parent.mkdir()
    part.write_bytes(content)


def test_fetches_every_file_whatever_its_name_and_leaves_nothing_else(server, tmp_path):
    rest = PublicFile("rest.jsonl", "rest.jsonl", hashlib.sha256(REST).hexdigest())
    assert run(server, tmp_path, public_file(), rest) == []
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    assert (tmp_path / "rest.jsonl").read_bytes() == REST
    assert names_in(tmp_path) == ["dialogs", "rest.jsonl"] and names_in(tmp_path / "dialogs") == [NAME]
    assert server.requests == [(f"/csv/{NAME}", None), ("/rest.jsonl", None)]


def test_names_are_percent_encoded_on_the_wire(server, tmp_path):
    with pytest.raises(DataError) as caught:
        run(server, tmp_path, public_file(source="“甲” 乙(1).csv"))
    assert f"{server.url}/%E2%80%9C%E7%94%B2%E2%80%9D%20%E4%B9%99%281%29.csv" in str(caught.value)


def test_a_partial_download_is_continued(server, tmp_path):
    leave_part(tmp_path, BODY[:1000])
    run(server, tmp_path)
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    assert names_in(tmp_path / "dialogs") == [NAME]
    assert server.requests == [(f"/csv/{NAME}", "bytes=1000-")]


def test_a_server_without_ranges_restarts_the_file(server, tmp_path):
    leave_part(tmp_path, BODY[:1000])
    server.plan = ["ignore range"]
    run(server, tmp_path)
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    assert len(server.requests) == 1


def test_a_part_that_is_too_long_restarts_the_file(server, tmp_path):
    leave_part(tmp_path, BODY + b"more")
    run(server, tmp_path)
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [f"bytes={len(BODY) + 4}-", None]


def test_a_continuation_at_another_place_restarts_the_file(server, tmp_path):
    leave_part(tmp_path, BODY[:1000])
    server.plan = ["wrong place"]
    run(server, tmp_path)
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    assert [asked for _, asked in server.requests] == ["bytes=1000-", None]


def test_a_connection_that_closes_early_is_continued_where_it_closed(server, tmp_path):
    server.plan = ["close early"]
    run(server, tmp_path)
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, f"bytes={len(BODY) // 2}-"]


def test_after_three_attempts_the_part_is_kept_for_the_next_run(server, tmp_path):
    server.plan = ["close early"] * 3
    with pytest.raises(DataError, match=r"\d+ of \d+ bytes .*3 ") as caught:
        run(server, tmp_path)
    assert str(caught.value).startswith(f"{NAME}: ") and "\n" not in str(caught.value)
    assert names_in(tmp_path / "dialogs") == [f"{NAME}.part"]
    run(server, tmp_path)
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    assert len(server.requests) == 4 and server.requests[3][1] is not None


def test_an_unavailable_server_is_asked_again(server, tmp_path):
    server.plan = [503, 503]
    run(server, tmp_path)
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    assert len(server.requests) == 3


def test_a_server_that_says_nothing_is_asked_again(server, tmp_path):
    server.plan = ["hang"]
    fetch(tmp_path, source=server.url, files=[public_file()], timeout=0.1, pause=0)
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_server_that_stays_unavailable_is_an_error(server, tmp_path):
    server.plan = [503] * 4
    with pytest.raises(DataError, match=r"503.*\(3 "):
        run(server, tmp_path)
    assert len(server.requests) == 3


def test_the_pause_doubles_between_attempts(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(fetch_module.time, "sleep", pauses.append)
    server.plan = [500, 502]
    fetch(tmp_path, source=server.url, files=[public_file()], pause=0.5)
    assert pauses == [0.5, 1.0]


def test_a_missing_file_is_asked_for_once(server, tmp_path):
    with pytest.raises(DataError, match="404"):
        run(server, tmp_path, public_file(source="csv/没有.csv"))
    assert len(server.requests) == 1


def test_a_good_file_is_not_requested_again(server, tmp_path):
    run(server, tmp_path)
    run(server, tmp_path)
    assert len(server.requests) == 1


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    run(server, tmp_path)
    (tmp_path / "dialogs" / NAME).write_bytes(BODY[:-1])
    run(server, tmp_path)
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY


def test_a_checksum_mismatch_deletes_the_part_and_names_both_hashes(server, tmp_path):
    with pytest.raises(DataError) as caught:
        run(server, tmp_path, public_file(b"something else"))
    message = str(caught.value)
    assert message.startswith(f"{NAME}: checksum mismatch") and "\n" not in message
    assert hashlib.sha256(BODY).hexdigest()[:12] in message
    assert hashlib.sha256(b"something else").hexdigest()[:12] in message
    assert "--source" in message
    assert names_in(tmp_path / "dialogs") == []


def test_a_checksum_mismatch_leaves_the_old_file(server, tmp_path):
    run(server, tmp_path)
    with pytest.raises(DataError, match="checksum mismatch"):
        run(server, tmp_path, public_file(b"a later version"))
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY


def test_the_whole_file_is_taken_too_where_the_measured_one_was_an_extract(server, tmp_path):
    extract = public_file(BODY[:500], characters=len(BODY.decode()))
    assert run(server, tmp_path, extract) == [extract]
    assert (tmp_path / "dialogs" / NAME).read_bytes() == BODY
    run(server, tmp_path, extract)
    assert len(server.requests) == 1


def test_one_character_less_than_the_whole_file_is_a_mismatch(server, tmp_path):
    with pytest.raises(DataError, match="checksum mismatch"):
        run(server, tmp_path, public_file(BODY[:500], characters=len(BODY.decode()) + 1))


def test_an_unreachable_server_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}"
    with pytest.raises(DataError, match=r"Connection refused \(3 "):
        fetch(tmp_path, source=url, files=[public_file()], pause=0)


def test_an_output_that_is_a_file_is_an_error(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        run(server, tmp_path / "file")


def test_the_table_lists_thirteen_dialogue_files_and_the_eval_set():
    assert len({file.target for file in FILES}) == len({file.sha256 for file in FILES}) == 14
    assert all(len(file.sha256) == 64 for file in FILES)
    folders = [file.target.rpartition("/")[0] for file in FILES]
    assert folders.count("dialogs") == 13 and FILES[-1].target == "eval0819.jsonl"


def give_corpus(monkeypatch, name, *files):
    monkeypatch.setitem(CORPORA, name, dataclasses.replace(CORPORA[name], files=files))


def test_the_command_names_the_licence_and_what_comes_next(server, tmp_path, capsys, monkeypatch):
    give_corpus(monkeypatch, "fraud", public_file())
    assert main(["--output", str(tmp_path), "--source", server.url, "--only", "fraud"]) == 0
    out, err = capsys.readouterr()
    assert "golfxiao/anti_fraud_sft" in out and "GPL-3.0" in out and err == ""
    assert f"--source {tmp_path}/dialogs" in out and "extract" not in out and "--ordinary" not in out


def test_the_command_says_when_the_files_are_not_the_measured_ones(server, tmp_path, capsys, monkeypatch):
    give_corpus(monkeypatch, "fraud", public_file(BODY[:500], characters=len(BODY.decode())))
    assert main(["--output", str(tmp_path), "--source", server.url, "--only", "fraud"]) == 0
    assert "extract" in capsys.readouterr().out


def test_the_command_ends_with_one_line_and_code_2(server, tmp_path, capsys):
    assert main(["--output", str(tmp_path), "--source", server.url, "--only", "fraud"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "404" in err


def test_a_source_that_is_no_web_address_is_an_error(tmp_path, capsys):
    assert main(["--output", str(tmp_path), "--source", "file:///etc", "--only", "kdconv"]) == 2
    assert capsys.readouterr().err.startswith("file:///etc: ")


def test_one_copy_cannot_be_the_source_of_three_corpora(tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["--output", str(tmp_path), "--source", "https://example.org"])
    assert caught.value.code == 2


# ---------------------------------------------------------------------------------------------- ordinary talk


def offer(server, monkeypatch, name, bodies):
    """Puts files of the corpus `name` on the server, of which `bodies` holds the content by target."""
    files = [dataclasses.replace(file, sha256=hashlib.sha256(bodies[file.target]).hexdigest())
             for file in CORPORA[name].files]
    server.bodies |= {f"/{file.source}": bodies[file.target] for file in files}
    give_corpus(monkeypatch, name, *files)


def zipped(value):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("val.json", json.dumps(value))
    return content.getvalue()


def test_crosswoz_becomes_dialogues_of_a_user_and_a_service(server, tmp_path, capsys, monkeypatch):
    messages = [{"role": "usr", "content": "你好，找家餐馆。", "dialog_act": []},
                {"role": "sys", "content": "推荐您去全聚德。"}]
    original = zipped({"11290": {"messages": messages}})
    offer(server, monkeypatch, "crosswoz", {"originals/crosswoz/val.json.zip": original})
    assert main(["--output", str(tmp_path), "--only", "crosswoz", "--source", server.url]) == 0
    (dialogue,) = read_dialogues(tmp_path / "everyday" / "crosswoz.csv", Skipped())
    assert (dialogue.case, dialogue.category) == ("crosswoz/crosswoz-11290", "crosswoz")
    assert dialogue.lines == (Line("用户", "你好，找家餐馆。", False), Line("客服", "推荐您去全聚德。", False))
    assert f"--ordinary {tmp_path}/everyday/crosswoz.csv" in capsys.readouterr().out


def test_kdconv_becomes_dialogues_of_two_who_take_turns(server, tmp_path, capsys, monkeypatch):
    said = [{"message": "看过吗？"}, {"attrs": [], "message": "看过。"}, {"message": "好看。"}]
    bodies = {f"originals/kdconv/{domain}/dev.json": json.dumps([{"messages": said, "name": domain}] * n).encode()
              for domain, n in (("film", 2), ("music", 1), ("travel", 1))}
    offer(server, monkeypatch, "kdconv", bodies)
    assert main(["--output", str(tmp_path), "--only", "kdconv", "--source", server.url]) == 0
    dialogues = read_dialogues(tmp_path / "everyday" / "kdconv.csv", Skipped())
    assert [dialogue.case for dialogue in dialogues] == [
        "kdconv/kdconv-filmdev-0", "kdconv/kdconv-filmdev-1", "kdconv/kdconv-musicdev-0", "kdconv/kdconv-traveldev-0"]
    assert [(line.speaker, line.content) for line in dialogues[0].lines] == [
        ("甲", "看过吗？"), ("乙", "看过。"), ("甲", "好看。")]
    assert f"--ordinary-judge {tmp_path}/everyday/kdconv.csv" in capsys.readouterr().out


@pytest.mark.parametrize("content", [
    b"no zip", zipped([]), zipped({"1": {"messages": [{"role": "bot", "content": "x"}]}})])
def test_an_original_of_another_format_is_an_error_of_one_line(server, tmp_path, capsys, monkeypatch, content):
    offer(server, monkeypatch, "crosswoz", {"originals/crosswoz/val.json.zip": content})
    assert main(["--output", str(tmp_path), "--only", "crosswoz", "--source", server.url]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"{tmp_path}/originals/crosswoz: ")
