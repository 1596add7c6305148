"""From records to what people read: leaderboard, comparison, plots, page. Needs no torch."""
