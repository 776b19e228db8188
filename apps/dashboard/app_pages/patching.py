"""The analyses of the group `patching` on one pair."""

from apps.dashboard.pairs import group_page

group_page("patching")
