"""The analyses of the group `representations` on one pair."""

from apps.dashboard.pairs import group_page

group_page("representations")
