"""RLlib's new API stack: RLModule, Learner and env runner around the one update."""
