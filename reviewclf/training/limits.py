"""Bounds of what a training task may take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from reviewclf.errors import TrainingError


@contextlib.contextmanager
def memory_limit(gib: float | None) -> Iterator[None]:
    """Refuse this process more main memory than `gib` GiB while the block runs; None: no limit.

    So a training that grows too big ends with an error of its own, in place of the system's ending some other process.

    Raises
    ------
    TrainingError
        The block asked for more.
    """
    if gib is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch has no type of its own for main memory that runs out.
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise TrainingError(
                f"training needs more than REVIEWCLF_TRAINING__MAX_MEMORY_GIB={gib:g}; raise it, or lower batch_size and raise "
                "gradient_accumulation as much"
            ) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
