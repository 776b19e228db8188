"""The analyses of the group `directions` on one pair."""

from apps.dashboard.pairs import group_page

group_page("directions")
