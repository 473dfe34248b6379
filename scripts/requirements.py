"""Print what the development environment holds: dependencies, extras and the dev group.

Which release of vLLM is the pins' business: they name one each.
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
for requirement in (
    *project["project"]["dependencies"],
    *project["project"]["optional-dependencies"]["vllm"],
    *project["project"]["optional-dependencies"]["plot"],
    *project["dependency-groups"]["dev"],
):
    print(re.sub(r"^vllm==.*", "vllm", requirement))
