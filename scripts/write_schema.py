"""Write the published schema of `report.json`, quantkit/verify/report.schema.json, from the classes that define it.

python scripts/write_schema.py
"""

from __future__ import annotations

import json
from pathlib import Path

from quantkit.verify.report import json_schema

TARGET = Path(__file__).parent.parent / "quantkit" / "verify" / "report.schema.json"


def schema_text() -> str:
    """What the file must hold."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(schema_text(), encoding="utf-8")
    print(TARGET)
