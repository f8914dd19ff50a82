"""The CPU's native runtime: the program walker, its threads, and memory. Needs no C compiler."""
