"""`python -m muladd` is the command line, for where the program is not on the path."""
import sys

from muladd.cli import main

sys.exit(main())
