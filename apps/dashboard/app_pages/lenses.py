"""The analyses of the group `lenses` on one pair."""

from apps.dashboard.pairs import group_page

group_page("lenses")
