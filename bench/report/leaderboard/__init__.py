"""The leaderboard: rows, ranks and its formats. No torch."""
