"""The loss around the models of a pair: spectra, landscapes, and below them spectra along a training and the labs of the Hessian."""

from __future__ import annotations

import streamlit as st

from apps.dashboard import labs, pairs, parts, reading
from workbench.figures.spectrum import TRAININGS, at_checkpoint, at_checkpoint_alt
from workbench.registry import labs as known
from workbench.studies.handle import Study


def along_training(study: Study, pair: str, seed: int | None, mark: str) -> None:
    """A slider over the checkpoints at which the spectrum was measured."""
    st.subheader("Spectra along a training", divider="gray")
    every = (
        reading.result(study.name, pair, "spectrum", seed, mark),
        *reading.variants(study.name, pair, "spectrum", seed, mark).values(),
    )
    result = next((found for found in every if found is not None and "path" in found.tables), None)
    if result is None:
        st.caption("Not measured yet. This adds the spectra at checkpoints of fine-tuning and reviving, where they were kept:")
        st.code(f"workbench spectrum {study.name}:{pair} --set points=6 --store {study.store.root}", language="bash")
        return
    path = result.tables["path"]
    trainings = list(dict.fromkeys(path["training"]))
    left, right = st.columns([1, 3])
    training = (
        left.radio("Training", trainings, format_func=lambda name: TRAININGS.get(name, name), key="training") or trainings[0]
    )
    steps = sorted(set(path[path["training"] == training]["step"]))
    step = right.select_slider("Checkpoint (step)", steps, key=f"step-{training}")
    fig, said = at_checkpoint(result, training, int(step)), at_checkpoint_alt(result, training, int(step))
    parts.show_figure(fig, said, "spectrum-at")
    st.caption(parts.plain(said))
    ends = result.tables["path_eigenvalues"]
    here = ends[(ends["training"] == training) & (ends["step"] == step)]
    with st.expander("Eigenvalues with residuals", icon=":material/table:"):
        st.dataframe(here, hide_index=True, key="path-ends", alt=f"Eigenvalues at step {step} of {training}")


def below(study: Study, pair: str, seed: int | None, mark: str) -> None:
    """What the page has besides the analyses of the pair."""
    with parts.seam("Spectra along a training"):
        along_training(study, pair, seed, mark)
    with parts.seam("Labs"):
        st.subheader("What shapes a Hessian", divider="gray")
        st.caption(
            "Experiments of their own on blobs, digits and counting: outliers follow the data, the bulk follows the width."
        )
        labs.section([name for name, entry in known.entries().items() if entry.group == "curvature"])


pairs.group_page("curvature", below)
