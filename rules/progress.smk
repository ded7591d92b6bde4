# Reads: <out>/logs/<model>/**/*.progress, which jobs that measure write while they run
# Writes: nothing; removes those files again
# How far the run is, and about how long it takes: invarlock/forecast.py, invarlock/progress_line.py.
# Of a plan of thousands of jobs, how many there are.

import atexit
import math

from snakemake.logging import logger as said
from snakemake.settings.enums import Quietness

from invarlock.forecast import Forecast, Work
from invarlock.progress_line import LargePlan, follow

SHOWN = []  # what follows this run
EVALUATIONS = ("evaluate", "repeat")
NAMES = {  # of rules that people wait for
    "baseline": "placing the baseline",
    "baseline_report": "the baseline's run",
    "calibrate": "null edits",
}


def work_of(job):
    """A job as the forecast sees it."""
    rule_name, given = job.rule.name, job.wildcards_dict
    model = S.model(given["model"]) if "model" in given else None
    scenario = S.scenario(given["scenario"]) if "scenario" in given else None
    words = [NAMES.get(rule_name, rule_name)] if rule_name not in EVALUATIONS else []
    several = [model.slug] if model and len(S.models) > 1 else []
    words += ["/".join([*several, *([scenario.id] if scenario else [])])]
    words += [f"run {given['run']}"] if given.get("run", "1") != "1" else []
    early = (
        rule_name in EVALUATIONS and scenario.is_control and bool(C["early_decision"])
    )
    tokens = tokens_of(rule_name, model)
    return Work(
        name=" ".join(filter(None, words)),
        kind=f"{rule_name} {model.slug if model else ''} {early}",
        tokens=tokens,
        early=early,
        counted=rule_name == "evaluate",
        told=Path(f"{job.log[0]}.progress") if tokens else None,
    )


def tokens_of(rule_name, model):
    """What a job is going to measure at least; it says itself what the text gives beside that."""
    if rule_name in (*EVALUATIONS, "baseline_report"):
        long = S.long_windows
        return model.seq_len * (model.preview + model.final) + long.seq_len * long.final
    if rule_name == "calibrate":
        return math.prod(null_runs(model))
    return 0


def show_progress():
    """Begin to follow the run that was planned."""
    if not ROOT_PROCESS or workflow.touch:
        return
    if {Quietness.ALL, Quietness.PROGRESS} & set(workflow.output_settings.quiet or ()):
        return
    dag = workflow.dag
    jobs = {dag.jobid(job): work_of(job) for job in dag.needrun_jobs()}
    evaluations = sum(job.rule.name == "evaluate" for job in dag.jobs)
    before = evaluations - sum(work.counted for work in jobs.values())
    side_by_side = max(1, cores // C["threads"]) if cores and not is_away() else 0
    if shown := follow(said, Forecast(jobs, side_by_side, before)):
        SHOWN.append(shown)
        atexit.register(shown.end)  # also where the run is interrupted


def end_progress():
    """Say what was done, and follow no more."""
    for shown in SHOWN:
        shown.end()


def sum_up(jobs):
    """Leave it at the table that Snakemake has just printed. The setting is what --quiet makes of
    it: a dry run then ends here, without putting each job into words, and without what it says
    after them."""
    workflow.output_settings.quiet = {Quietness.RULES, Quietness.PROGRESS}
    workflow.dag.print_reasons()
    workflow.log_provenance_info()
    said.info(
        f"invarlock: {jobs} jobs are counted here, not listed; with -p a dry run lists each."
    )
    said.info("This was a dry-run (flag -n).")


def is_listed():
    """Whether a dry run prints every job whatever their number; or nothing at all."""
    shown = workflow.output_settings
    silent = {Quietness.ALL, Quietness.PROGRESS} & set(shown.quiet or ())
    return bool(shown.printshellcmds or shown.verbose or shown.debug_dag or silent)


if ROOT_PROCESS and workflow.output_settings.dryrun and not is_listed():
    said.addHandler(LargePlan(sum_up))
