"""Random solves whose verdicts are checked by other means: `python -m tests.fuzz`; see CONTRIBUTING.md."""
