"""How parameters were chosen, as text and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regaze.eval.report.tables import Table, figure_label, format_estimate, iter_estimates, leading_scorer


def tuning_notes(results: Mapping[str, Any]) -> list[str]:
    """What was tuned on and what decided; how many trials there were."""
    tuning = results["tuning"]
    used, name = tuning["criterion"], tuning["benchmark"]["name"]
    failed = f" ({tuning['left_out']} more failed, or stand with one)" if tuning["left_out"] else ""
    unused = (
        f" Questions in neither part, most of them about images that are tuned on: {tuning['not_used']}."
        if tuning["not_used"]
        else ""
    )
    chosen = (
        f"Parameters were chosen on {tuning['questions']} questions{failed} about {tuning['images']} images "
        f"of {name}, by {figure_label(used['figure'])} ({used['scorer']} scorer, {used['split']}; "
        f"{'less' if used['lower_is_better'] else 'more'} is better; {used['ties']}). Every figure but those "
        f"of the trials is of other images. {tuning['note']}{unused}"
    )
    numbers = trial_numbers(results)
    trials = (
        f"Trials: {', '.join(f'{label} {number}' for label, number in numbers.items())}. Holm's correction "
        "counts methods, not trials: these saw none of the questions that are tested."
    )
    if len(set(numbers.values())) > 1:
        trials += (
            " Their numbers differ, and the more trials a method has, the likelier one of them suits; "
            "--tune-trials gives each tuned method as many."
        )
    return [chosen, trials]


def trial_numbers(results: Mapping[str, Any]) -> dict[str, int]:
    """{method: number of its trials}, 1 where nothing was to choose."""
    tuned = results["tuning"]["methods"]
    return {label: len(tuned[label]["trials"]) if label in tuned else 1 for label in results["methods"]}


def chosen_table(results: Mapping[str, Any]) -> Table:
    """A row per method: its trials, what was chosen, and the figure that decided on both parts."""
    tuning = results["tuning"]
    used, name = tuning["criterion"], tuning["benchmark"]["name"]
    benchmark, figure = results["benchmarks"][name], used["figure"]
    numbers = benchmark["numbers"].get(used["scorer"], ())
    split, _ = leading_scorer(benchmark)

    def on_tuned(entry: Mapping[str, Any]) -> str:
        return format_estimate(figure, entry["figures"][figure], numbers)

    def on_tested(entry: Mapping[str, Any], condition: str) -> str:
        if entry.get("error"):
            return f"cannot run: {entry['error']}"
        return format_estimate(figure, entry["figures"][split][used["scorer"]][condition][figure], numbers)

    label = figure_label(figure)
    rows = [["", "trials", "chosen", f"{label} where tuned", f"{label} where tested"]]
    rows.append(["plain", "", "", on_tuned(tuning["plain"]), on_tested(benchmark["plain"], "plain")])
    for method, number in trial_numbers(results).items():
        tuned = tuning["methods"].get(method)
        tested = on_tested(benchmark["methods"][method], "edited")
        if tuned is None:
            rows.append([method, str(number), "as given", "", tested])
            continue
        rows.append(
            [method, f"{number} of {tuned['combinations']}", *_chosen(tuned, figure, on_tuned), tested]
        )
    return rows


def _chosen(tuned: Mapping[str, Any], figure: str, shown: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """The trial that was chosen, with the number of those that are equal to it, and its figure."""
    best = next((each for each in tuned["trials"] if each["parameters"] == tuned["chosen"]), None)
    if best is None:
        return ["none", ""]
    value = best["figures"][figure]["value"]
    ran = [each["figures"][figure]["value"] for each in tuned["trials"] if not each["error"]]
    tied = f" ({ran.count(value)} are equal)" if ran.count(value) > 1 else ""
    return [best["label"] + tied, shown(best)]


def trials_table(results: Mapping[str, Any]) -> Table:
    """A row per trial, with its figures on the questions that were tuned on."""
    tuning = results["tuning"]
    used, name = tuning["criterion"], tuning["benchmark"]["name"]
    numbers = results["benchmarks"][name]["numbers"].get(used["scorer"], ())
    plain = tuning["plain"]
    figures = [figure for figure, _ in iter_estimates(plain["figures"])]
    figures.sort(key=lambda figure: figure != used["figure"])  # the one that decides comes first
    length = [] if "words" in figures else ["words"]  # which some scorers have among their figures
    rows = [["", "trial", *map(figure_label, figures), *length, "changed", "chosen"]]

    def row(method: str, trial: str, entry: Mapping[str, Any], chosen: str) -> list[str]:
        cells = [format_estimate(figure, entry["figures"][figure], numbers) for figure in figures]
        if entry["difference"] is not None and entry["difference"]["value"] is not None:
            cells[0] += f" ({format_estimate(used['figure'], entry['difference'], numbers, '+')})"
        cells += [f"{entry['text'][name]:.1f}" for name in length]
        changed = entry["answers_changed"]
        return [method, trial, *cells, "" if changed is None else str(changed), chosen]

    rows.append(row("plain", "", plain, ""))
    for method, tuned in tuning["methods"].items():
        for each in tuned["trials"]:
            if each["error"]:
                error = f"cannot run: {each['error']}"
                rows.append([method, each["label"], error, *[""] * (len(rows[0]) - 3)])
            else:
                chosen = "yes" if each["parameters"] == tuned["chosen"] else ""
                rows.append(row(method, each["label"], each, chosen))
    return rows
