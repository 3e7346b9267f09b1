"""Out of memory, told from other errors: for cards torch has an exception, for RAM a RuntimeError like any other."""

import re


def wanted(error: BaseException) -> str | None:
    """What the allocator was asked for, in words; None when the error is not about memory."""
    import torch

    message = str(error).partition("\n")[0]
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in message:
        return None
    if match := re.search(r"allocate (\d+) bytes", message):
        return f"it asked for {int(match[1]) / 2**30:.2f} GiB more"
    if match := re.search(r"Tried to allocate ([\d.]+ \w+)", message):
        return f"it asked for {match[1]} more"
    return message[:200] or "no size given"
