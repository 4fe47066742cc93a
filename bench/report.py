"""From rows to what people read: a page and pictures for each machine, and the README's section of numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from . import pictures, tables
from .cases import known_cases
from .recorded import Recorded, all_recorded

MEANS = (
    "Another system's time by fused_rnn's: above 1 fused_rnn is faster. Means over a grid of sizes; with single steps, "
    "and without."
)
BEGIN, END = "<!-- python -m bench report: begin -->", "<!-- python -m bench report: end -->"


def page(machine: Recorded) -> str:
    """All tables of a machine."""
    layers = machine.layers
    commits = ", ".join(sorted({row["commit"] for row in layers}))
    text = [
        f"# {machine.name}\n",
        "Written by `python -m bench report` from the CSV files here; how to read it: `bench/README.md`.\n",
    ]
    if layers:
        versions = ", ".join(sorted({row["torch"] for row in layers}))
        dates = sorted({row["date"] for row in layers})
        text.append(
            f"PyTorch {versions}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; fused_rnn at {commits}.\n"
        )

    known = known_cases("cuda" if machine.on_gpu else "cpu")

    def section(title: str, body: str) -> None:
        if body:
            text.extend([f"## {title}\n", body])

    for threads in machine.threads():
        where = f", threads: {threads}" if threads else ""
        if not machine.on_gpu:
            section(f"Targets{where}", tables.targets_table(machine, threads))
        for dtype, tf32 in machine.precisions():
            title = f"torch.nn's time by ours, {machine.called(dtype, tf32)}{where}"
            section(title, tables.ratios_table(machine, known, dtype, tf32, threads))
        section(f"Every system's time by ours{where}", tables.peers_table(machine, threads))
        section(
            f"Quantised weights and Stream: a system's time by that of a form of ours{where}",
            tables.forms_table(machine, threads),
        )
        section(f"After fused_rnn.tune: torch.nn's time by ours{where}", tables.tuned_table(machine, threads))
        section(f"Resets: the time of another way by ours{where}", tables.resets_table(machine, threads))
        if not machine.on_gpu:
            section(f"Part of the peak{where}", tables.share_table(machine, threads))
        section(f"Peak memory{where}", tables.memory_table(machine, threads))
    if machine.on_gpu:
        section("Every figure", tables.gpu_table(machine))
    section("Kernels", tables.kernels_table(machine))
    side_by_side, models = tables.app_tables(machine)
    section("LSTM and GRU", side_by_side)
    section("A language model of each", models)
    for name in pictures.pictures(machine):
        text.append(f"![{name}]({name})\n")
    return "\n".join(text)


def console(machine: Recorded, what: str | None) -> str:
    """The tables that a terminal shows after a run."""
    if what == "kernel":
        return tables.kernels_table(machine)
    if what == "app":
        return "\n".join(tables.app_tables(machine))
    if what == "tuned":
        return "\n".join(tables.tuned_table(machine, threads) for threads in machine.threads())
    if what == "resets":
        return "\n".join(tables.resets_table(machine, threads) for threads in machine.threads())
    parts = ["A system's time by fused_rnn's: above 1 fused_rnn is faster.\n"]
    for threads in machine.threads():
        where = f"threads: {threads}\n" if threads else ""
        parts += [where, tables.targets_table(machine, threads), tables.peers_table(machine, threads)]
        parts += [tables.forms_table(machine, threads)]
    return "\n".join(part for part in parts if part)


def readme_section(found: Sequence[Recorded], root: str) -> str:
    """What the project's README shows of each machine: the means, and the first picture."""
    parts = []
    for machine in found:
        folder = f"{root}/{machine.folder.name}"
        parts.append(f"**{machine.name}** ([all figures]({folder}/README.md))\n")
        if machine.on_gpu:
            parts.append(tables.summary_table(machine))
        else:
            for threads in machine.threads():
                if body := tables.means_table(machine, threads):
                    parts.append(f"Threads: {threads}. {MEANS}\n")
                    parts.append(body)
                if body := tables.forms_means_table(machine, threads):
                    parts.append(
                        f"Threads: {threads}. Quantised weights and `Stream`: a system's time by that of a form of "
                        "ours.\n"
                    )
                    parts.append(body)
        drawn = [name for name in pictures.pictures(machine) if name.startswith("speedup")]
        if drawn:
            parts.append(f"![speed-up over torch.nn]({folder}/{drawn[0]})\n")
    return "\n".join(parts)


def with_section(text: str, section: str) -> str:
    """A text with what stands between the marks replaced.

    Raises:
        ValueError: the marks are not there.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"the text has no lines {BEGIN} and {END}")
    return re.sub(
        f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n\n{section}\n{END}", text, flags=re.DOTALL
    )


def write(results: Path, readme: Path | None) -> list[Path]:
    """Write the page and the pictures of every machine, and the README's section; what was written."""
    found, written = all_recorded(results), []
    for machine in found:
        for name, draw in pictures.pictures(machine).items():
            draw(machine.folder / name)
            written.append(machine.folder / name)
        (machine.folder / "README.md").write_text(page(machine))
        written.append(machine.folder / "README.md")
    if readme is not None and found:
        root = results.relative_to(readme.parent).as_posix()
        readme.write_text(with_section(readme.read_text(), readme_section(found, root)))
        written.append(readme)
    return written
