"""Fills the section of docs/cuda.md from a run's JSON, so that no figure there is typed."""
import json
import sys
from pathlib import Path

from .shapes import MODEL, Config
from .step import ROOT
from .table import figure_of, markdown

BEGIN, END = "<!-- scripts/gpu_check docs writes from here -->", "<!-- to here -->"
PAGE = ROOT / "docs/cuda.md"


def gigabytes(number):
    return "-" if number is None else f"{number / 1e9:.1f}"


def name_of(row):
    return Config(*[row[key] for key in Config._fields]).name()


def rows_of(report, letter):
    return report["steps"].get(letter, {}).get("details", {}).get("rows", [])


def speed_table(report):
    """Step e beside step f."""
    ratios = {name_of(row): row for row in rows_of(report, "f")}
    heads = ["step", "Weft s/step", "tokens/s", "share of the matmul rate", "peak GB", "planned GB", "PyTorch s/step"]
    heads += ["PyTorch / Weft", "PyTorch peak GB"]
    table = []
    for row in rows_of(report, "e"):
        peer = ratios.get(name_of(row), {})
        pytorch = peer.get("pytorch", {})
        line = [name_of(row), f"{row['step_seconds']:.3f}", f"{row['tokens_per_second']:,.0f}", f"{row['gemm_share']:.1%}"]
        line += [gigabytes(row["peak_bytes"]), gigabytes(row["planned_bytes"])]
        line += [f"{pytorch['step_seconds']:.3f}" if "step_seconds" in pytorch else "-"]
        line += [f"**{peer['ratio']:.2f}**" if "ratio" in peer else "-", gigabytes(pytorch.get("reserved"))]
        table.append(line)
    return markdown(heads, table) if table else ""


def kernel_table(report):
    """Step g's first configuration, its ten kernels that take longest."""
    rows = rows_of(report, "g")
    if not rows:
        return ""
    heads = ["kernel", "launches", "ms a step", "TFLOP/s", "GB/s", "ms that its bound allows"]
    table = [
        [
            f"**{kernel['kernel']}**" if kernel["kernel"] in rows[0]["slowest"] else kernel["kernel"],
            f"{kernel['launches']:,}",
            f"{1e3 * kernel['seconds']:.2f}",
            f"{kernel['tflops']:.1f}",
            f"{kernel['gbps']:,.0f}",
            f"{1e3 * kernel['bound_seconds']:.2f}",
        ]
        for kernel in rows[0]["kernels"][:10]
    ]
    return f"Kernels of {name_of(rows[0])}; in bold the three that lose most against their bound:\n\n" + markdown(heads, table)


def section(report):
    """The section's text."""
    is_real = report["gpu"] and not report["is_rehearsal"]
    steps = [
        [f"{letter}. {step['title']}", step["result"], figure_of(step, with_speed=is_real)]
        + ([f"{step['seconds']:.0f}"] if is_real else [])
        for letter, step in report["steps"].items()
    ]
    table = markdown(["step", "result", "figure", *(["seconds"] if is_real else [])], steps)
    manifest = report["manifest"]
    commit = f"{manifest.get('weft', 'weft')} at commit {manifest.get('commit', '?')[:12]}"
    commit += " with uncommitted changes" if manifest.get("has_changes") else ""
    if not is_real:
        told = "**Nothing has been measured on a GPU yet.** This is the rehearsal on the emulated GPU, with small shapes: it shows "
        return f"{told}that every\nstep works, and no speeds.\n\n{table}"
    details = report["steps"].get("a", {}).get("details", {})
    libraries = [f"{stem.removeprefix('lib')} {version}" for stem, version in details.get("libraries", {}).items()]
    driver = f"driver {details.get('driver') or '?'} (CUDA {details.get('cuda_of_driver', '?')})"
    where = ", ".join([report["gpu"], driver, *libraries[1:]])
    small = " Small shapes, so that the speeds say little." if report["is_small"] else ""
    parts = [f"Measured on {report['date']}: {where}; {commit}.{small}\n", table]
    if speeds := speed_table(report):
        parts.append(f"{MODEL}:\n\n{speeds}")
    if kernels := kernel_table(report):
        parts.append(kernels)
    return "\n".join(parts)


def filled(text, report):
    """The page with its section."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + section(report) + END + rest.split(END, 1)[1]


def fill(path, is_check, page=None):
    """Writes the page, or with `is_check` says whether it is what the JSON makes of it; the exit status."""
    page = Path(page) if page else PAGE
    text = page.read_text()
    if text.count(BEGIN) != 1 or END not in text.split(BEGIN)[-1]:
        sys.exit(f"error: {page} lacks the lines {BEGIN} and {END}")
    new = filled(text, json.loads(path.read_text()))
    if is_check and new != text:
        sys.exit(f"error: {page} is not what {path} says; `scripts/gpu_check docs {path}` writes it")
    if not is_check:
        page.write_text(new)
    return 0
