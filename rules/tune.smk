# Reads: <model>/models/baseline/, the windows of scenarios and of training, the preset
# Writes: <model>/tuning/{windows_<set>.json,run_<set>/,<edit type>.json}, tuned_edit_params.json
#         (target tune); state/tuned_edit_params.json (where a scenario takes tuned parameters)
# The parameters of tuned clean edits: searched on windows that no scenario is judged on.


TUNING = OUT / "{model}/tuning"
# A candidate is chosen on one set and confirmed on the other; seeds that nothing else has.
SEEDS = {
    "selection": S.calibration_seeds().stop + 1,
    "confirmation": S.calibration_seeds().stop + 2,
}
TUNED_TABLE = OUT / "tuned_edit_params.json"
# The table that the edits take their numbers from: read when the configuration is, no input, so
# that a table of an earlier search is taken as it is.
GIVEN = Path(C["tuned_edit_params"])


rule tune:
    """Search the parameters of tuned clean edits: then set tuned_edit_params to this table."""
    input:
        others=(
            [GIVEN]
            if GIVEN.is_file() and GIVEN.resolve() != TUNED_TABLE.resolve()
            else []
        ),
        found=stopping(L.searches),
    output:
        TUNED_TABLE,
    log:
        LOGS / "tune.log",
    localrule: True
    container:
        IMAGE
    params:
        code=code("tuned_params"),
    shell:
        "python -m invarlock advanced tuned-params --tables {input.others:q} {input.found:q}"
        " --out {output:q} > {log:q} 2>&1"


# Two disjoint sets; none that is judged or trained on.
use rule windows as tuning_windows with:
    input:
        revisions=OUT / "state/model_revisions.json",
        tokenizer=OUT / "{model}/models/baseline",
        others=L.kept_apart,
    output:
        windows=TUNING / "windows_{set}.json",
        pictures=[
            directory(folder)
            for folder in L.with_pictures(TUNING / "windows_{set}.json")
        ],
    log:
        LOGS / "{model}/tuning/windows_{set}.log",
    wildcard_constraints:
        set=any_of(SEEDS),
    params:
        cut=lambda wc: L.cut(
            wc, S.model(wc.model).preview, S.model(wc.model).final, seed=SEEDS[wc.set]
        ),
        apart="--exclude",


rule tuning_baseline:
    """Run the baseline once on each set; every candidate is compared with it."""
    input:
        model=OUT / "{model}/models/baseline",
        windows=TUNING / "windows_{set}.json",
        pictures=L.with_pictures(TUNING / "windows_{set}.json"),
    output:
        report=TUNING / "run_{set}/report.json",
        events=TUNING / "run_{set}/events.jsonl",
        tokens=TUNING / "run_{set}/guards.safetensors",
    log:
        LOGS / "{model}/tuning/run_{set}.log",
    wildcard_constraints:
        set=any_of(SEEDS),
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=run_mb,
        gpu=gpus,
        runtime=run_minutes,
    params:
        # candidates edit from the first block on
        options=lambda wc: L.measuring(RunOptions, wc, hidden_states_mb=0),
        code=code("run"),
    shell:
        "python -m invarlock run --model {input.model:q} --windows {input.windows:q} {params.options}"
        ' --gpus {resources.gpu} --out "$(dirname {output.report:q})" > {log:q} 2>&1'


rule search:
    """Try the candidates of one edit type, and keep the log of what was tried."""
    input:
        baseline=OUT / "{model}/models/baseline",
        selection=TUNING / "windows_selection.json",
        selection_run=TUNING / "run_selection/report.json",
        confirmation=TUNING / "windows_confirmation.json",
        confirmation_run=TUNING / "run_confirmation/report.json",
        judged=OUT / "{model}/windows.json",
        training=L.trained_on,
        preset=OUT / "{model}/presets/calibrated_preset_{model}.json",
    output:
        TUNING / "{edit}.json",
    log:
        LOGS / "{model}/tuning/{edit}.log",
    wildcard_constraints:
        edit=any_of(S.tuned_types()),
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=search_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        gpu=gpus,
        runtime=search_minutes,
    params:
        training=lambda wc, input: each("--training-windows", input.training),
        options=lambda wc: L.measuring(TuneOptions, wc),
        code=code("tune"),
    shell:
        USAGE
        + "python -m invarlock advanced tune --baseline {input.baseline:q} --edits {wildcards.edit}"
        ' --selection-windows {input.selection:q} --selection-run "$(dirname {input.selection_run:q})"'
        " --confirmation-windows {input.confirmation:q}"
        ' --confirmation-run "$(dirname {input.confirmation_run:q})"'
        " --judged-windows {input.judged:q} {params.training} --preset {input.preset:q}"
        " {params.options} --gpus {resources.gpu} --out {output:q} > {log[0]:q} 2>&1"


rule tuned_parameters:
    """What this run's models took from the table of tuned parameters, with the searches."""
    output:
        OUT / "state/tuned_edit_params.json",
    log:
        LOGS / "tuned_parameters.log",
    localrule: True
    container:
        on_host
    params:
        table=GIVEN,
        content=sha256_file(GIVEN) if S.tuned_types() and GIVEN.is_file() else "",
        models=each("--model", [m.model_id for m in S.models]),
        code=code("tuned_params"),
    shell:
        "python -m invarlock advanced tuned-params --tables {params.table:q} {params.models}"
        " --out {output:q} > {log:q} 2>&1"
