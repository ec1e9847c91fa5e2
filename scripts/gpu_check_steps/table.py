"""The table that a run ends with."""


def figure_of(step, with_speed=True):
    """What a step's row says: its figure, and the first problem of one that failed."""
    first, others = step["problems"][:1], len(step["problems"]) - 1
    more = [f"{others} more problems"] if others > 0 else []
    parts = [step["figure"], step["speed"] if with_speed else "", *first, *more]
    return "; ".join(part for part in parts if part)


def markdown(heads, rows):
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |\n" for row in lines)


def print_table(report):
    rows = [
        [f"{letter}. {step['title']}", step["result"], figure_of(step), f"{step['seconds']:.1f}"]
        for letter, step in report["steps"].items()
    ]
    what = "a rehearsal on an emulated GPU" if report["is_rehearsal"] else report["gpu"] or "no GPU was found"
    print(f"\n{what}; {report['manifest'].get('weft', 'weft')}, {report['seconds']:.0f} s in all\n")
    print(markdown(["step", "result", "figure", "seconds"], rows))
