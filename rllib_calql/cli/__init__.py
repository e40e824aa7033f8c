"""The commands: `rllib` (train, evaluate), which Ray itself no longer ships, and `calql` (data)."""
