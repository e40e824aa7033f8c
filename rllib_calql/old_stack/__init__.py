"""Cal-QL on RLlib's Policy stack: thin translations between RLlib's objects and `core` and `data`."""
