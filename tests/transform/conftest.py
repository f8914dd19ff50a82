"""Lets this folder's tests import `transform_checks`, which stands beside them."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
