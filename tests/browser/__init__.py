"""The documentation in a real browser: `python -m tests.browser`; see CONTRIBUTING.md."""
