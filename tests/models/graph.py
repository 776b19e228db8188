"""What tests of edges and circuits share: every edge of a model, prompts to hold against others, and something to read."""

from dataclasses import replace

from workbench.models.paths import connected, receivers_of, senders_of


def edges_of(model):
    return [(u, v) for u in senders_of(model) for v in receivers_of(model) if connected(u, v)]


def read(logits, rows):
    """Something that is not symmetric in the tokens, and not linear."""
    return logits[:, 0, 3] - 0.5 * logits[:, 0, 1].tanh()


def against(examples):
    """The same questions about other texts, at the same positions."""
    return replace(examples, counterfactual=replace(examples, tokens=examples.tokens.roll(1, 0)))
