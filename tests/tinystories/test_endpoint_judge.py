"""A judge behind HTTP, against a small server in a thread: what it is asked, what it may answer, and how it may fail."""

import json
import math
import socket
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tinystories import endpoint_judge
from tinystories.endpoint_judge import EndpointJudge, read_answer
from tinystories.judging import score
from workbench.errors import UserError

QUESTION = "Is there a twist?"


def said(content):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


class Server(ThreadingHTTPServer):
    """Answers with `script` in order, its last entry for ever; a function gives the answer from the text."""

    script = ()

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.got = []
        self.wait = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.got.append((self.path, dict(self.headers), body))
        entry = server.script[min(len(server.got), len(server.script)) - 1]
        status, text = entry(server, body["messages"][-1]["content"]) if callable(entry) else entry
        self.send_response(status)
        if status == 302:
            self.send_header("Location", text)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.wait.set()
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """Pauses, which are not waited for."""
    pauses = []
    monkeypatch.setattr(endpoint_judge.time, "sleep", pauses.append)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return pauses


def by_text(server, content):
    return said("Yes." if "twist!" in content else "No")


def ask(server, **settings):
    return EndpointJudge(server.url, "small", "Twist", **{"question": QUESTION, **settings})


def test_it_asks_one_question_per_text_at_temperature_zero(server):
    server.script = (by_text,)
    assert ask(server).probability(["a twist! came", "nothing", "a twist! came"]).tolist() == [1, 0, 1]
    assert len(server.got) == 2  # equal texts are asked once
    path, headers, body = server.got[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("small", 0)
    assert body["messages"] == [{"role": "user", "content": f"{QUESTION}\n\na twist! came"}]
    assert "Authorization" not in headers


def test_the_key_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    server.script = (said("yes"),)
    ask(server, key_from_env="JUDGE_KEY").probability(["x"])
    assert server.got[0][1]["Authorization"] == "Bearer s3cret"


def test_the_question_is_about_the_feature(server, monkeypatch):
    stub = types.ModuleType("tinystories.features")
    stub.phrase = lambda name: f"a thing called {name}"
    monkeypatch.setitem(sys.modules, "tinystories.features", stub)
    assert "Is there a thing called Twist in it?" in ask(server, question="").asked


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_address_may_be_given_short_or_long(server, end):
    server.script = (said("no"),)
    EndpointJudge(server.url + end, "m", "Twist", question=QUESTION).probability(["x"])
    assert server.got[0][0] == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        ("Yes", 1.0),
        ("yes.", 1.0),
        ("**NO**", 0.0),
        ("No, there is none. No.", 0.0),
        ("I do not know", None),
        ("Nobody noticed; none", None),
        ("yesterday", None),
        ("Yes and no", None),
        ("", None),
        ("42", None),
    ],
)
def test_only_whole_words_are_answers(answer, meaning):
    found = read_answer(answer)
    assert math.isnan(found) if meaning is None else found == meaning


def test_nonsense_is_left_out_and_counted_and_never_a_no(server):
    server.script = (said("yes"), said("Banana?"), said(None), said("no"))
    found = score(ask(server), ["a", "b", "c", "d"])
    assert (found.n, found.positives, found.unparsed, found.rate) == (2, 1, 2, 0.5)
    assert any("not measured" in limit for limit in found.limits)


def test_answers_are_kept_by_model_question_and_text(server, tmp_path):
    cache = tmp_path / "new" / "answers.jsonl"
    server.script = (said("yes"), said("what?"), said("no"))
    first = ask(server, cache=cache).probability(["a", "b"])
    again = ask(server, cache=cache).probability(["b", "a"])
    assert np.array_equal(first, again[::-1], equal_nan=True)  # what was no answer is kept too
    assert len(server.got) == 2
    for changed in ({"question": "Another?"}, {"feature": "Conflict", "question": "Third?"}):
        EndpointJudge(
            **{"url": server.url, "model": "small", "feature": "Twist", "question": QUESTION, **changed, "cache": cache}
        ).probability(["a"])
    EndpointJudge(server.url, "large", "Twist", question=QUESTION, cache=cache).probability(["a"])
    assert len(server.got) == 5
    assert len(cache.read_text().splitlines()) == 5
    assert all(len(json.loads(line)["key"]) == 64 for line in cache.read_text().splitlines())


def test_a_last_line_cut_by_a_kill_is_asked_anew(server, tmp_path):
    cache = tmp_path / "answers.jsonl"
    server.script = (said("yes"),)
    ask(server, cache=cache).probability(["a", "b"])
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-20])
    assert ask(server, cache=cache).probability(["a", "b"]).tolist() == [1, 1]
    assert len(server.got) == 3
    assert cache.read_bytes() == whole


@pytest.mark.parametrize("content", ["not json\n", '["a list"]\n', '{"key": "x"}\n'])
def test_another_file_is_not_taken_for_the_cache(server, tmp_path, content):
    cache = tmp_path / "diary.txt"
    cache.write_text(content)
    with pytest.raises(UserError, match="is no file of a judge's answers"):
        ask(server, cache=cache).probability(["a"])
    assert cache.read_text() == content


@pytest.mark.parametrize("status", [429, 408, 500, 503])
def test_a_passing_refusal_is_asked_again_after_a_pause(server, slept, status):
    server.script = ((status, "later"), said("yes"))
    assert ask(server).probability(["x"]).tolist() == [1]
    assert slept == [1.0]


def test_after_four_tries_with_growing_pauses_it_gives_up_and_keeps_what_it_has(server, slept, tmp_path):
    server.script = (said("yes"), (429, "too many requests"))
    cache = tmp_path / "answers.jsonl"
    with pytest.raises(UserError, match=r"no answer in 4 tries \(it answered 429 .*too many requests\)"):
        ask(server, cache=cache).probability(["a", "b"])
    assert slept == [1, 2, 4]
    assert len(server.got) == 5
    assert len(cache.read_text().splitlines()) == 1


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_for_good_is_an_error_at_once_that_does_not_tell_the_key(server, slept, monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    server.script = ((status, "no such model"),)
    with pytest.raises(UserError, match=f"refuses \\(it answered {status} .*no such model") as error:
        ask(server).probability(["x"])
    assert "s3cret" not in str(error.value)
    assert (len(server.got), slept) == (1, [])


def test_the_key_does_not_follow_to_another_address(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    server.script = ((302, f"{server.url}/elsewhere"), said("yes"))
    with pytest.raises(UserError, match="it answered 302"):
        ask(server).probability(["x"])
    assert len(server.got) == 1


def test_a_server_that_is_down_is_named(slept):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=rf"the judge at http://127.0.0.1:{port}/v1/chat/completions gave no answer.*refused"):
        EndpointJudge(f"http://127.0.0.1:{port}", "m", "Twist", question=QUESTION).probability(["x"])
    assert len(slept) == 3


def test_a_server_that_does_not_answer_in_time_is_left(server):
    def hang(of, content):
        of.wait.wait(10)
        return said("yes")

    server.script = (hang,)
    with pytest.raises(UserError, match="timed out"):
        ask(server, timeout=0.05).probability(["x"])
    assert len(server.got) == 4


@pytest.mark.parametrize("body", ["<html>hello</html>", "{}", '{"choices": []}', "[1]", '{"choices": [{"text": "yes"}]}'])
def test_a_server_of_another_kind_is_told_apart(server, body):
    server.script = ((200, body),)
    with pytest.raises(UserError, match="does not answer like an OpenAI-compatible endpoint"):
        ask(server).probability(["x"])


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://", ""])
def test_an_address_that_is_none_is_refused_when_the_judge_is_made(url):
    with pytest.raises(UserError, match="the judge's address is"):
        EndpointJudge(url, "m", "Twist")
