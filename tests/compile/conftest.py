"""Lets this folder's tests import `exact_networks`, which stands beside them."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
