"""Which packages are installed, in which version: read from their metadata, nothing is imported.

`fits` functions ask here, so that a broken optional package is a reason in a plan and not a crash.
"""

from importlib import metadata

from packaging.version import InvalidVersion, Version


def version(name: str) -> str | None:
    """ "2.13.0+cpu"; None when no such distribution is installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requires(name: str) -> list[str]:
    """What the installed distribution says that it needs ("torch==2.13.0", ...); empty when it is not installed."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def has(name: str, at_least: str | None = None) -> bool:
    """Whether it is installed, in that version or a later one; a version that no one can read is not later."""
    installed = version(name)
    return installed is not None and (at_least is None or is_at_least(installed, at_least))


def is_at_least(installed: str, floor: str) -> bool:
    try:
        return Version(installed) >= Version(floor)
    except InvalidVersion:
        return False


def missing(name: str, at_least: str | None = None, hint: str | None = None) -> str | None:
    """Why it cannot be used, "needs sageattention >= 2.1: pip install sageattention"; None when it can.

    hint: how to get it, where that is not `pip install <name>`.
    """
    if has(name, at_least):
        return None
    installed = version(name)
    wanted = name if at_least is None else f"{name} >= {at_least}"
    found = "" if installed is None else f", {installed} is installed"
    upgrade = "" if installed is None else "--upgrade "
    return f"needs {wanted}{found}: {hint or f'pip install {upgrade}{name}'}"
