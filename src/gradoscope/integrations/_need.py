"""Packages that are no dependency: imported when they are asked for, with one clear message where they are missing."""

import importlib
from typing import Any

from gradoscope.errors import Usage

__all__ = ["need"]


def need(module: str, extra: str) -> Any:
    """Import `module`, which `pip install 'gradoscope[extra]'` brings.

    Raises:
        Usage: where it, or something that it needs, is not installed.

    Example:
        >>> need("json", "none").loads("1")
        1
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        what = f"{package} is not installed" if error.name == package else f"{module} cannot be imported ({error})"
        raise Usage(f"{what}: pip install 'gradoscope[{extra}]'") from error
