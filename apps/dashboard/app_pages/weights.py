"""The analyses of the group `weights` on one pair."""

from apps.dashboard.pairs import group_page

group_page("weights")
