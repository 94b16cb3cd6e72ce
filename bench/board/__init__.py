"""The leaderboard: what each row did, which rows can be told apart, and how it is written. No torch."""
