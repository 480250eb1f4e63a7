"""Writes docs/thresholds.md from the source of `gradoscope.thresholds`: `python docs/make_thresholds.py`."""

import ast
import itertools
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gradoscope" / "thresholds.py"
HEAD = """# Thresholds

Every number that decides a verdict, with the reason for its value. Written from `src/gradoscope/thresholds.py` by
`python docs/make_thresholds.py`; a test keeps the two together. S is the step size times the largest curvature in the optimizer's
metric, scaled so that 2 is the limit of stability.
"""


def rows() -> list[tuple[str, str, str, str]]:
    """(heading, name, value, reason) of every threshold, in the order of the file."""
    text = SOURCE.read_text(encoding="utf-8")
    lines, found = text.splitlines(), []
    body = ast.parse(text).body
    for node, after in itertools.pairwise(body):
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper()):
            continue
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            raise ValueError(f"{node.targets[0].id} has no reason below it")
        heading = next(line.strip("# -") for line in reversed(lines[: node.lineno]) if line.startswith("# ---"))
        found.append((heading, node.targets[0].id, ast.unparse(node.value), " ".join(str(after.value.value).split())))
    return found


def page() -> str:
    out, last = [HEAD], ""
    for heading, name, value, reason in rows():
        if heading != last:
            out += [f"\n## {heading}\n", "| name | value | reason |", "|---|---|---|"]
            last = heading
        out.append(f"| `{name}` | {value} | {reason.replace('|', chr(92) + '|')} |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "thresholds.md").write_text(page(), encoding="utf-8")
