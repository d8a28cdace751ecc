"""`python -m tests.fuzz`: random cases over all public functions, in parallel, and a table of what became of them."""

from tests.fuzz.run import main

if __name__ == "__main__":
    main()
