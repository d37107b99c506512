"""`regaze compare`: several methods on the same questions, in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze import cli
from regaze.cli import options
from regaze.cli.config import option_values


def compare(
    ctx: typer.Context,
    benchmark: options.Benchmarks = "pope",
    named: Annotated[
        str | None, typer.Option("--benchmark", help="Another way to give the benchmark.", show_default=False)
    ] = None,
    methods: options.Methods = None,
    controls: options.Controls = False,
    damage_check: options.DamageCheck = True,
    damage_data: options.DamageData = None,
    tune: options.Tune = None,
    tune_split: options.TuneSplit = None,
    tune_seed: options.TuneSeed = None,
    tune_criterion: options.TuneCriterion = None,
    tune_trials: options.TuneTrials = None,
    model: options.Model = "demo",
    model_arg: options.ModelArg = None,
    template_arg: options.TemplateArg = None,
    config: options.Config = None,
    data: options.Data = None,
    images: options.Images = None,
    bench: options.Bench = None,
    limit: options.Limit = None,
    few_shot: options.FewShot = None,
    allow_urls: options.AllowUrls = False,
    batch_size: options.BatchSize = 16,
    max_new_tokens: options.AnswerTokens = 16,
    thinking_tokens: options.ThinkingTokens = 0,
    generate: options.Generate = None,
    seed: options.Seed = 0,
    max_errors: options.MaxErrors = 10,
    share_prefix: options.SharePrefix = True,
    judge: options.Judge = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    output: options.Output = None,
    resume: options.Resume = False,
    export: options.Export = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare several methods on the same questions.

    Each is compared with the plain model; one that cannot run becomes a line with the reason. With --tune,
    parameters are chosen on some images (of the first benchmark), and compared on the others.
    """
    benchmark = named or benchmark
    methods = methods or (cli.grids.tuned_names(tune) if tune else "all")
    chosen = cli.methods.read_methods(methods)
    tuning = cli.grids.read_tuning(
        tune, chosen, split=tune_split, seed=tune_seed, criterion=tune_criterion, trials=tune_trials
    )
    source = cli.questions.QuestionSource(data, images, None, None, bench, limit, None, few_shot, allow_urls)
    generation = cli.generation.generation_options(generate, max_new_tokens)
    tasks = cli.questions.make_tasks(benchmark, source, generation, judge, model, device, model_arg)
    run = cli.run.Run(
        tasks=tasks,
        methods=chosen,
        config=cli.run.eval_config(ctx, raise_method_errors=False),
        name=f"compare-{benchmark.replace(',', '-')}",
        formats=cli.run.parse_formats(export or ""),
        options={**option_values(ctx), "benchmark": benchmark, "methods": methods},
        controls=controls,
        damage_check=cli.damage.find_task(tasks, model, damage_data, limit) if damage_check else None,
        tuning=tuning,
    )
    results, folder = cli.run.execute(run)
    if results is not None:
        cli.tables.show_page(results, cli.tables.comparison, json)
        cli.console.done(f"the report, all figures and the answers are in {folder}")
