"""Wrong lines that the tests must notice: `python -m tests.mutants`; see CONTRIBUTING.md."""
