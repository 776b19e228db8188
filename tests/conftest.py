"""What several test folders share: one thread, a cache of stories of their own, and examples of random tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from workbench.examples import Examples


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is left in the user's cache of data sets, and nothing of it is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield


def _random_examples(
    n: int = 6, t: int = 10, vocab: int = 20, k: int = 1, seed: int = 0, padded: bool = False, everywhere: bool = False
) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab, (n, t), generator=generator)
    position = torch.randint(1, t - k, (n,), generator=generator)  # ragged, the last one possible included
    position[0] = t - k - 1
    places = position[:, None] + 1 + torch.arange(k)
    loss_mask = torch.zeros(n, t, dtype=torch.bool).scatter(1, places, True)
    if everywhere:
        loss_mask = (torch.rand(n, t, generator=generator) < 0.7) & (torch.arange(t) > 0)
    return Examples(
        tokens=tokens,
        loss_mask=loss_mask,
        answer_position=position,
        answer=tokens.gather(1, places),
        candidates=torch.arange(vocab),
        attention_mask=torch.arange(t) <= places[:, -1:] if padded else None,
    )


@pytest.fixture(scope="session")
def random_examples() -> Callable[..., Examples]:
    """`(n, t, vocab, k, seed, padded, everywhere) -> Examples` with answers at ragged positions."""
    return _random_examples
