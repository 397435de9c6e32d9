"""The pack of real data: in the folder that FOURFOLD_PACK names, or beside the checkout. Without, tests of it skip."""

import os
from pathlib import Path

PACK = Path(os.environ.get("FOURFOLD_PACK") or Path(__file__).resolve().parents[2] / "shared" / "data")
