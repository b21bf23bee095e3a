"""The command line: mistakes in it are one line, told before torch is imported; then Hydra runs the job."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esupport.config import resolvers
from esupport.config.check import check_resources, check_types, nearest
from esupport.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
# before torch allocates: its CPU allocator then takes tensors in huge pages, where the system has them. Without, the C
# library's heap loses room between them (docs/performance.md)
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}

resolvers.register()


def run(main: Callable[[], Any], config_name: str) -> None:
    """Check the command line and run ``main``, a ``hydra.main`` function; exit 2 for a mistake, 1 for a failed job."""
    arguments = get_args_parser().parse_args()
    own = arguments.config_name in (None, config_name) and not arguments.config_path and not arguments.config_dir
    if own and not (arguments.help or arguments.hydra_help or arguments.shell_completion):
        try:
            check_command_line(
                config_name, arguments.overrides, sweep=arguments.multirun or _asks_for_sweep(arguments.overrides)
            )
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    for name, value in LARGE_PAGES.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what the job raised instead of printing it
    try:
        main()
    except UserError:  # told inside the job
        sys.exit(1)


def check_command_line(config_name: str, overrides: list[str], sweep: bool = False) -> None:
    """``UserError`` for overrides that do not compose or are ill-typed.

    In a sweep each value is checked once, and what only one job needs (a file, a token) is left to that job.
    """
    choices = [_values(override) if sweep else [override] for override in overrides]
    cases = [[values[0] for values in choices]]
    for index, values in enumerate(choices):
        cases.extend([*cases[0][:index], value, *cases[0][index + 1 :]] for value in values[1:])
    for case in cases:
        plain = check_types(config_name, composed(config_name, case))
        if not sweep:
            check_resources(plain)


def composed(config_name: str, overrides: list[str]) -> DictConfig:
    """The configuration that Hydra would hand to the job. Raises ``UserError`` where it does not compose."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                return compose(config_name, overrides)
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                raise UserError(_explain(config_name, overrides, error)) from None
    finally:
        GlobalHydra.instance().clear()


def _asks_for_sweep(overrides: list[str]) -> bool:
    """Whether a file of the group ``sweep``, or Hydra's own key, turns the run into a sweep."""
    return any((o.startswith("sweep=") and o != "sweep=null") or o == "hydra.mode=MULTIRUN" for o in overrides)


def _values(override: str) -> list[str]:
    """The values that a sweep gives one override, as overrides."""
    parsed = _parse(override)
    if parsed is None or not parsed.is_sweep_override():
        return [override]
    if not parsed.is_discrete_sweep():
        return [override.partition("=")[0] + "=" + str(parsed.value().start)]  # type: ignore[union-attr]
    key = override.partition("=")[0]
    if parsed.value_type is ValueType.GLOB_CHOICE_SWEEP:
        return [f"{key}={name}" for name in parsed.value().filter(_options(key))] or [override]  # type: ignore[union-attr]
    return [f"{key}={value}" for value in parsed.sweep_string_iterator()]


def _options(group: str) -> list[str]:
    # a file whose name begins with _ is part of others
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


def _parse(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _explain(config_name: str, overrides: list[str], error: Exception) -> str:
    """One line for what does not compose: which override, and the nearest key or option."""
    keys = _keys(OmegaConf.to_container(compose(config_name)))
    groups = sorted(str(folder.relative_to(CONF)) for folder in CONF.rglob("*") if folder.is_dir())
    for override in overrides:
        parsed = _parse(override)
        if parsed is None:
            return f"cannot read {override!r}; write key=value, and quote values that hold special characters"
        key = parsed.key_or_group
        if key in groups:
            options = _options(key)
            value = parsed.value()
            if value not in options:
                there = f"there are {', '.join(options)}"
                if value is None:
                    return f"{key}: no option None ({there}); Hydra leaves a group out with '~{override.partition('=')[0]}'"
                return f"{key}: no option {value!r}{nearest(str(value), options)} ({there})"
        elif not key.startswith("hydra") and not parsed.is_add() and key not in keys:
            top = key.partition(".")[0]
            below = [k for k in keys if k.startswith(top + ".")] if top in keys else keys + groups
            return f"{key}: unknown key{nearest(key, below) or nearest(key, keys + groups)}"
    return " ".join(str(error).split())


def _keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    found = []
    for name, value in node.items():
        found += [f"{prefix}{name}", *_keys(value, f"{prefix}{name}.")]
    return found
