"""What there is, for people: the problems, studies, obstacles and remedies, each with one line of explanation."""

import textwrap
from collections.abc import Iterable

__all__ = ["KINDS", "entries", "render"]

KINDS = ("problems", "studies", "obstacles", "remedies")


def entries(kind: str) -> list[tuple[str, str]]:
    """(name, explanation) of everything of one kind; obstacles and remedies by the first line of their file.

    Example:
        >>> [name for name, _ in entries("problems") if name.startswith("linear-network")]
        ['linear-network:healthy', 'linear-network:saddle']
    """
    if kind == "problems":
        from gradoscope.problems import all_problems

        found = []
        for problem in all_problems().values():
            options = ", ".join(f"{key}={value}" for key, value in problem.options().items() if key != "seed")
            found.append((problem.name, f"[{problem.obstacle}] {problem.says} Options: {options}."))
        return found
    if kind == "studies":
        from gradoscope.study import all_studies

        return [
            (study.name, f"{study.title}{'' if study.title.endswith('?') else '.'} {study.source}.") for study in all_studies().values()
        ]
    from gradoscope.registry import modules

    return [(m.__name__.rpartition(".")[2], (m.__doc__ or "").strip().partition("\n")[0]) for m in modules(kind)]


def render(kinds: Iterable[str] = KINDS, width: int = 100) -> str:
    """All entries of `kinds` as text of at most `width` columns."""
    lines: list[str] = []
    for kind in kinds:
        found = entries(kind)
        column = max((len(name) for name, _ in found), default=0) + 4
        lines += ["", kind.capitalize()] if lines else [kind.capitalize()]
        for name, says in found:
            lead = f"  {name}".ljust(column)
            lines += textwrap.wrap(says, width, initial_indent=lead, subsequent_indent=" " * column) or [lead.rstrip()]
    return "\n".join(lines) + "\n"
