# Reads: <model>/models/baseline/, the pinned text
# Writes: <model>/presets/{windows_seed_<seed>.json,calibration_stats.json,
#         calibrated_preset_<model>.yaml,calibrated_preset_<model>.json},
#         <calibrations>/<digest>.json, for the next subject of the baseline in whatever out
# What harmless edits do to this model, and the thresholds that follow.


PRESETS = OUT / "{model}/presets"


use rule windows as calibration_windows with:
    output:
        windows=PRESETS / "windows_seed_{seed}.json",
        pictures=[
            directory(folder)
            for folder in L.with_pictures(PRESETS / "windows_seed_{seed}.json")
        ],
    log:
        LOGS / "{model}/windows_seed_{seed}.log",
    wildcard_constraints:
        seed=any_of(map(str, S.calibration_seeds())),
    params:
        cut=lambda wc: L.cut(wc, C["calibration"]["windows"], seed=wc.seed),


rule calibrate:
    """Measure the baseline and its null edits on every calibration seed."""
    input:
        image=IMAGE_RECORD,
        opened=opened_subjects,
        model=OUT / "{model}/models/baseline",
        windows=expand(
            PRESETS / "windows_seed_{seed}.json",
            seed=S.calibration_seeds(),
            allow_missing=True,
        ),
        pictures=expand(
            L.with_pictures(PRESETS / "windows_seed_{seed}.json"),
            seed=S.calibration_seeds(),
            allow_missing=True,
        ),
    output:
        PRESETS / "calibration_stats.json",
    log:
        LOGS / "{model}/calibrate.log",
    priority: 40  # every evaluation waits for it
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=run_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        gpu=gpus,
        runtime=calibrate_minutes,
    params:
        options=lambda wc: L.measuring(CalibrateOptions, wc),
        code=code("calibrate"),
    shell:
        USAGE
        + PROGRESS
        + "python -m invarlock advanced calibrate --baseline {input.model:q} --windows {input.windows:q}"
        " {params.options} --gpus {resources.gpu}"
        ' ${{INVARLOCK_CALIBRATIONS:+--kept "$INVARLOCK_CALIBRATIONS"}} --out {output:q} > {log[0]:q} 2>&1'


rule preset:
    """Derive the thresholds of this model; every evaluation is judged by them."""
    input:
        PRESETS / "calibration_stats.json",
    output:
        yaml=PRESETS / "calibrated_preset_{model}.yaml",
        json=PRESETS / "calibrated_preset_{model}.json",
    log:
        LOGS / "{model}/preset.log",
    localrule: True
    container:
        IMAGE
    params:
        options=L.options(PresetOptions),
        code=code("preset"),
    shell:
        "python -m invarlock advanced preset --stats {input:q} {params.options}"
        " --out-yaml {output.yaml:q} --out-json {output.json:q} > {log:q} 2>&1"
