# Reads: <model>/baseline.json, where it is there
# Writes: nothing
# Memory, disk, GPUs and time that the rules ask for, as functions of the size of the weights.


def weights_mb(wildcards):
    """Weights of a model in MB: recorded if the baseline is there, planned otherwise."""
    record = OUT / wildcards.model / "baseline.json"
    if record.is_file():
        return json.loads(record.read_text())["weight_bytes"] / 1e6
    return S.model(wildcards.model).weights_gb * 1e3


def edit_mb(wildcards, attempt):
    """Memory of a streamed edit: torch and a few copies of the largest tensor, not the model."""
    return int(900 + 0.15 * weights_mb(wildcards)) * attempt


def run_mb(wildcards, attempt):
    """Host memory of a run: torch, one batch, and on a CPU the model (twice the bytes in float32)."""
    model = weights_mb(wildcards) * (0.3 if ON_GPU else 2.2)
    return int(1500 + model) * attempt


def gpus(wildcards):
    """GPUs of a run: enough for the weights and a fifth more."""
    if not ON_GPU:
        return 0
    return max(1, -int(-1.2 * weights_mb(wildcards) // (1e3 * C["gpu_memory_gb"])))


def run_minutes(wildcards, attempt):
    """Wall time asked of a scheduler: loading, and the pass over all windows."""
    m = S.model(wildcards.model)
    minutes = pass_minutes(wildcards, m.seq_len * (m.preview + m.final))
    return min(int(minutes * attempt), int(C["timeout_minutes"]) + 10)


def pass_minutes(wildcards, tokens):
    """Loading a checkpoint and one pass over so many tokens."""
    per_second = 4e6 / weights_mb(wildcards) if ON_GPU else 6e4 / weights_mb(wildcards)
    return 10 + weights_mb(wildcards) / 3e3 + tokens / per_second / 60


def calibrate_minutes(wildcards, attempt):
    """Baseline and two null edits on the windows of every calibration seed."""
    tokens = S.model(wildcards.model).seq_len * 2 * C["calibration"]["windows"]
    runs = 3 * C["calibration"]["seeds"]
    return int(runs * pass_minutes(wildcards, tokens) * attempt)
