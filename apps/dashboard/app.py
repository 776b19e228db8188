"""The dashboard's script: `workbench app`, or `streamlit run apps/dashboard/app.py`."""

from __future__ import annotations

import streamlit as st

from apps.dashboard import parts, reading
from workbench.registry import GROUPS

# Drawn here: an icon by name would be fetched from the network.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#0072B2"/>'
    '<path d="M5 11 L12 24 L27 7" fill="none" stroke="#fff" stroke-width="3.5" stroke-linecap="round"/></svg>'
)
ICONS = {
    "lenses": "search",
    "patching": "swap_horiz",
    "directions": "arrow_outward",
    "weights": "scale",
    "representations": "scatter_plot",
    "curvature": "landscape",
}
"""Groups of analyses with a page of their own; the rest are on the page of the study."""
st.set_page_config(page_title="Revival", page_icon=ICON, layout="wide")
pages = [
    st.Page("app_pages/overview.py", title="Overview", icon=":material/home:", default=True),
    st.Page("app_pages/study.py", title="Study", icon=":material/monitoring:", url_path="study"),
    *(
        st.Page(f"app_pages/{group}.py", title=about.partition(":")[0], icon=f":material/{ICONS[group]}:", url_path=group)
        for group, about in GROUPS.items()
        if group in ICONS
    ),
    st.Page("app_pages/stories.py", title="Stories", icon=":material/auto_stories:", url_path="stories"),
    st.Page("app_pages/paper.py", title="Paper", icon=":material/menu_book:", url_path="paper"),
    st.Page("app_pages/run.py", title="Run", icon=":material/deployed_code:", url_path="run"),
]
page = st.navigation(pages)
with st.sidebar:
    st.caption(f"Store: {parts.plain(reading.store().root)}")
page.run()
