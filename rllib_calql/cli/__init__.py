"""The `rllib` command: `rllib train` and `rllib evaluate`, which Ray itself no longer ships."""
