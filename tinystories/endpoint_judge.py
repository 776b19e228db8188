"""A language model behind an OpenAI-compatible endpoint as judge: one question with the answer yes or no per text, asked once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tinystories.judge_quality import Floats, Quality
from workbench.errors import UserError
from workbench.files import explain_full_disk

TRIES = 4
"""One request and three more."""
TOKENS = 16
"""Longest answer."""
_WORDS = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_PASSING = (408, 429)
"""Refusals that may pass, beside all of 500 and more."""
_SHOWN = 200
"""Characters of an answer that an error quotes."""


@dataclass(frozen=True)
class EndpointJudge:
    """Asks a served model at temperature 0. It sends the texts to the machine at `url`, and the key too where there is one.

    An answer with neither or both of the words yes and no is no answer: such a text gets NaN and is left out.
    """

    url: str
    """Of the server, with or without `/v1` or `/v1/chat/completions` at its end."""
    model: str
    """As the server calls it."""
    feature: str
    key_from_env: str = "OPENAI_API_KEY"
    """The environment variable with the key; no key is sent where it is empty. The key is written nowhere."""
    question: str = ""
    """Asked before each text; by default whether the feature is in it."""
    cache: Path | None = None
    """JSON lines with what was answered, by the hash of model, question and text; None asks anew each time."""
    timeout: float = 60.0
    """Seconds for one request."""
    pause: float = 1.0
    """Seconds before the second try; twice as long before each later one."""
    quality: Quality | None = None
    """Measured by `measure` on texts with known labels, if it was."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"the judge's address is {self.url!r}; it must begin with http:// or https:// and name a host.")

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model

    @property
    def exact(self) -> bool:
        """False."""
        return False

    @cached_property
    def asked(self) -> str:
        """The question."""
        if self.question:
            return self.question
        from tinystories.features import phrase

        return f"Read the story below. Is there {phrase(self.feature)} in it? Answer with one word, Yes or No."

    def probability(self, texts: Sequence[str]) -> Floats:
        """1 for yes, 0 for no, NaN for anything else. Each different text is asked once, one after the other.

        Raises:
            UserError: the endpoint cannot be reached, refuses, or does not speak the protocol. What it answered before is kept.
        """
        known = self._known()
        return np.array([read_answer(self._answer(text, known)) for text in texts])

    def _answer(self, text: str, known: dict[str, str]) -> str:
        content = json.dumps([self.model, self.asked, text], ensure_ascii=True)
        key = hashlib.sha256(content.encode()).hexdigest()
        if key not in known:
            known[key] = self._ask(text)
            if self.cache is not None:
                with explain_full_disk(self.cache), self.cache.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "answer": known[key]}) + "\n")
        return known[key]

    def _known(self) -> dict[str, str]:
        """What the cache holds; a last line that a kill cut short is dropped from it."""
        if self.cache is None:
            return {}
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        if not self.cache.exists():
            return {}
        data = self.cache.read_bytes()
        if whole := len(data) - (data.rfind(b"\n") + 1):
            with self.cache.open("r+b") as file:
                file.truncate(len(data) - whole)
        try:
            rows = [json.loads(line) for line in data[: len(data) - whole].decode("utf-8").splitlines()]
            return {str(row["key"]): str(row["answer"]) for row in rows}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.cache} is no file of a judge's answers; name another one or remove it.") from None

    def _ask(self, text: str) -> str:
        body = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": TOKENS,
            "messages": [{"role": "user", "content": f"{self.asked}\n\n{text}"}],
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_from_env, ""):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._address(), json.dumps(body).encode(), headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirect)
        reason = ""
        for number in range(TRIES):
            if number:
                time.sleep(self.pause * 2 ** (number - 1))
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    return self._content(response.read())
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read()[:_SHOWN].decode("utf-8", "replace").strip()
                reason = f"it answered {error.code} {error.reason}" + (f": {said}" if said else "")
                if error.code < 500 and error.code not in _PASSING:
                    raise UserError(
                        f"the judge at {self._address()} refuses ({reason}); mend the address, the model or {self.key_from_env}."
                    ) from None
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                reason = str(getattr(error, "reason", None) or error or type(error).__name__)
        raise UserError(
            f"the judge at {self._address()} gave no answer in {TRIES} tries ({reason}); start it, or judge without an endpoint."
        )

    def _content(self, raw: bytes) -> str:
        try:
            content: Any = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            shown = raw[:_SHOWN].decode("utf-8", "replace")
            raise UserError(
                f"the judge at {self._address()} does not answer like an OpenAI-compatible endpoint (it said {shown!r}); check the address."
            ) from None
        return content if isinstance(content, str) else ""

    def _address(self) -> str:
        base = self.url.rstrip("/")
        for end in ("/chat/completions", "/v1"):
            base = base.removesuffix(end)
        return f"{base}/v1/chat/completions"


def read_answer(answer: str) -> float:
    """1.0 for yes, 0.0 for no, as whole words; NaN where there is neither, or both."""
    said = {word.lower() for word in _WORDS.findall(answer)}
    return math.nan if len(said) != 1 else float(said == {"yes"})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host, and would turn the question into a GET."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
