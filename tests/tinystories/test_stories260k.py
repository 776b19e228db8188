"""A real model by others on real stories: text, tokenizer, rows and model must all fit for its known loss to come out."""

from __future__ import annotations

import gzip
import json

import numpy as np

from tinystories.packing import single
from tinystories.store import tokenise
from tinystories.tokenizer import load_tokenizer
from workbench.models.generation import surprisal
from workbench.models.given import load, resolve
from workbench.models.spec import ModelSpec
from workbench.seeds import numpy_generator

PUBLISHED = 1.338
"""Nats per token of 1,000 random stories of this file cut at 512 tokens, as the README beside the model says."""


def test_the_untouched_model_has_its_known_loss_on_random_stories(real_data, tmp_path):
    spec = ModelSpec(kind="checkpoint", path=str(real_data / "stories260K" / "hf"))
    _, found = resolve(spec)
    assert (found.parameters, found.blocks, found.heads, found.context) == (260_032, 5, 8, 512)
    with gzip.open(real_data / "tinystories" / "stories.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    chosen = numpy_generator(0, "loss of stories260K").choice(len(texts), 1000, replace=False)
    code = load_tokenizer(spec.path)
    store = tokenise((texts[i] for i in chosen), code, tmp_path / "store", "0" * 64)
    rows = single(store, np.arange(1000), 512, code.pad_id, code.bos_id, code.eos_id)
    nats = surprisal(load(spec), rows.tokens, rows.attention_mask)
    story = rows.loss_mask[:, 1:] & (rows.tokens[:, 1:] != code.eos_id)  # `<s>` behind a story is not scored either
    tokens = int(story.sum())
    means = (nats * story).sum(1) / story.sum(1)
    mean = float((nats * story).sum() / tokens)
    error = float(means.std() / 1000**0.5)
    assert 330_000 < tokens < 400_000
    assert abs(mean - PUBLISHED) < 3 * 2**0.5 * error  # another thousand stories: 1.346, standard error .009, 366,580 tokens
