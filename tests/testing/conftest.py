"""The plain formulas of `tests/objectives` serve here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "objectives"))
