"""What transformers, and packages that it loads, may write: errors alone."""

from __future__ import annotations

import logging
from typing import Any

# Of kernels that are for other devices, and of inputs that they round.
PACKAGES = ("torchao", "bitsandbytes", "torch.utils._pytree")


def quiet() -> None:
    """Only errors of the library, and of packages that it loads: what matters is in ours."""
    import transformers

    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.ERROR)

    library_log: Any = transformers.utils.logging
    library_log.set_verbosity_error()
    library_log.disable_progress_bar()
