"""Stories: a prompt that base, tuned and revived model continue side by side, token by token, and how they were trained."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from apps.dashboard import pairs, parts, reading, token_html, writing
from workbench.figures import trainings, words
from workbench.studies.handle import Study
from workbench.studies.stage import PairPlan
from workbench.subjects import Pair

SAMPLES = 100
MOST_TOKENS = 120
BY: dict[token_html.By, str] = {"surprisal": "surprisal", "kl": "KL from the base", "none": "none"}


def empty() -> None:
    """A store without a study of texts."""
    st.info("There are no stories yet: no study of this store has models that write texts.", icon=":material/auto_stories:")
    st.markdown("This makes one from the bundled sample of stories, in a few minutes and without a network:")
    st.code("make tinystories", language="bash")
    st.caption(f"The store is {parts.plain(reading.store().root)}. To look at another one: `workbench app --store FOLDER`.")


def another(of: writing.Subject) -> None:
    """Put the opening of the next test story into the prompt."""
    found = writing.offered(of)
    st.session_state.opening = (st.session_state.get("opening", 0) + 1) % len(found)
    st.session_state.prompt = st.session_state.given = found[st.session_state.opening]


def ask(of: writing.Subject, context: int) -> writing.Request:
    """The prompt and how to go on from it; at first that of a test story."""
    given = st.session_state.get("given")
    if st.session_state.get("given_to") != of or "prompt" not in st.session_state:
        if st.session_state.get("prompt", given) == given:  # what a person wrote stays when another pair is picked
            found = writing.offered(of)
            st.session_state.prompt = st.session_state.given = found[st.session_state.get("opening", 0) % len(found)]
        st.session_state.given_to = of
    with st.form("ask"):
        text = st.text_area(
            "Prompt",
            key="prompt",
            height=110,
            help="A text to go on with. For models that were trained on instructions it may begin with their lines, such as "
            "`Features: Dialogue` and `Words: tree, ball`, and must then have `Story: ` after them.",
        )
        a, b, c = st.columns(3)
        tokens = a.number_input(
            "Tokens to write",
            1,
            max(1, context - 1),
            min(MOST_TOKENS, context // 2 + context // 8),
            help=f"Context: {context} tokens, prompt included.",
        )
        temperature = b.slider("Temperature", 0.0, 1.5, 1.0, 0.05, help="0 takes the most likely token every time.")
        seed = c.number_input("Seed of the samples", 0, 2**31, 0, help="All models use the same random numbers.")
        st.form_submit_button("Continue", type="primary", icon=":material/edit:")
    st.button("Another opening of a test story", on_click=another, args=(of,), icon=":material/casino:")
    return writing.Request(text, int(tokens), float(temperature), int(seed))


def side_by_side(found: dict[str, writing.Continuation]) -> None:
    """Each model's text in a column, coloured on one scale."""
    by = st.radio("Colour", list(BY), format_func=BY.__getitem__, horizontal=True, key="colour") or "none"
    numbers = [p.kl if by == "kl" else p.surprisal for one in found.values() for p in one.pieces]
    most = token_html.top(numbers)
    if by != "none":
        st.html(token_html.legend(by, most))
    for (name, one), column in zip(found.items(), st.columns(len(found), gap="medium"), strict=True):
        with column:
            st.markdown(f"**{parts.plain(title(name))}**")
            ended = "it ended" if one.ended else "it was cut"
            st.caption(f"{one.written} tokens, then {ended}; {one.nats:.2f} nats per written token under this model")
            st.html(token_html.spans(one.pieces, by, most))
    st.caption("One text of each model says little: what differs may be the draw. Hover over a token for its numbers.")


def title(model: str) -> str:
    """A model as the page calls it."""
    return words.MODELS.get(model, model.replace("_", " "))


def marked(found: dict[str, writing.Continuation], rules: dict[str, str]) -> None:
    """What the rules see in each text."""
    st.subheader("Features of these texts", divider="gray")
    models = list(found)
    rows = [f"| feature | {' | '.join(parts.plain(title(m)) for m in models)} | its rule |", "| --- " * (len(models) + 2) + "|"]
    for rule, said in rules.items():
        seen = " | ".join("**yes**" if found[m].marks[rule] else ":gray[no]" for m in models)
        rows.append(f"| {parts.plain(rule)} | {seen} | :gray[{parts.plain(said)}] |")
    st.markdown("\n".join(rows))
    st.caption("Of prompt and continuation together, without an instruction in front.")


def scores(of: writing.Subject, pair: Pair, request: writing.Request) -> None:
    """How often each model shows the ability after this prompt."""
    ability = words.capability(pair.capability)
    st.subheader(f"How often they show {parts.plain(ability)}", divider="gray")
    if st.button(f"Score {SAMPLES} continuations of this prompt", icon=":material/functions:"):
        st.session_state.scored = (of, request)
    if st.session_state.get("scored") != (of, request):
        st.caption(f"Each model writes {SAMPLES} texts, each with random numbers of its own.")
        return
    with parts.seam("scores"):
        found = writing.scored(of, request, SAMPLES)
        rows = [
            {
                "model": title(share.model),
                "judge": share.judge,
                "share [95 %]": _interval(share.rate, share.low, share.high),
                "n": share.n,
                "corrected for the judge's errors": _interval(*share.corrected) if share.corrected else "",
            }
            for share in found
        ]
        said = "; ".join(f"{row['model']} {row['share [95 %]']} by {row['judge']}" for row in rows)
        st.dataframe(pd.DataFrame(rows), hide_index=True, key="shares", alt=f"Share that shows {ability}: {said}")
        task = writing.task_of(pair)
        st.caption(parts.plain(f"Judged by {task.judged_by(pair.capability)}."))
        for judge, trust in {share.judge: share.trust for share in found if share.trust}.items():
            st.caption(parts.plain(f"{judge}: {trust}."))
        st.caption("Wilson intervals over samples of this one prompt: what other prompts give they do not say.")
        if task.shows(pair.capability, [task.without_instruction(request.text)])[0]:
            st.warning(
                f"The prompt itself shows {parts.plain(ability)}, so its continuations do too.", icon=":material/warning:"
            )


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def history(study: Study, planned: PairPlan) -> None:
    """Training curves of the pair's runs."""
    st.subheader("How they were trained", divider="gray")
    made = {"base": planned.base, **({"never_had_it": planned.never} if planned.never else {})}
    between = {} if planned.start.key == planned.base.key else {"start": planned.start}
    stages = [
        *(("pretraining", name, stage) for name, stage in {**made, **between}.items()),
        ("fine-tuning", "tuned", planned.tuned),
        *(("reverse fine-tuning", arm, stage) for arm, stage in planned.arms.items()),
    ]
    runs = study.store.find_all(stage.key for _, _, stage in stages)
    found = [
        trainings.Training(part, name, runs[stage.key].metrics(), runs[stage.key].evaluations())
        for part, name, stage in stages
        if stage.key in runs and runs[stage.key].done
    ]
    rows = trainings.table(found, planned.capability)
    said = trainings.alt(rows)
    parts.show_figure(trainings.figure(rows, planned.capability), said, "trainings")
    st.caption(parts.plain(said))
    with st.expander("Table", icon=":material/table:"):
        st.dataframe(rows, hide_index=True, key="trainings-rows", alt=f"Training curves, {len(rows)} rows")
        parts.downloads_of_table(rows, f"{study.name}-{planned.name}-s{planned.seed}-trainings")


def main() -> None:
    """The page."""
    st.title("Stories")
    st.caption(
        "The models of a pair go on from the same prompt: what each writes, how surprised it is, and where it left its base"
    )
    opened = {name: reading.study(name) for name in reading.store().studies()}
    names = [n for n, study in opened.items() if isinstance(study, Study) and writing.writes(study.plan.task)]
    if not names:
        empty()
        return
    chosen = pairs.pickers(names, pooled=False)
    if chosen is None:
        return
    study, name, seed = chosen
    of, planned = writing.subject(study, name, study.spec.seeds[0] if seed is None else seed)
    with parts.seam("continuations"):
        pair = writing.pair_of(of)
        task = writing.task_of(pair)
        request = ask(of, task.context)
        found = writing.written(of, request)
        side_by_side(found)
        marked(found, dict(task.rules))
        scores(of, pair, request)
    with parts.seam("training curves"):
        history(study, planned)


with parts.seam("Stories"):
    main()
