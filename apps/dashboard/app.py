"""The dashboard's script: `workbench app`, or `streamlit run apps/dashboard/app.py`."""

from __future__ import annotations

import streamlit as st

from apps.dashboard import parts, reading

st.set_page_config(page_title="Revival", page_icon=":material/science:", layout="wide")
pages = [
    st.Page("app_pages/overview.py", title="Overview", icon=":material/home:", default=True),
    st.Page("app_pages/study.py", title="Study", icon=":material/monitoring:", url_path="study"),
    st.Page("app_pages/run.py", title="Run", icon=":material/deployed_code:", url_path="run"),
]
page = st.navigation(pages)
with st.sidebar:
    st.caption(f"Store: {parts.plain(reading.store().root)}")
page.run()
