"""What the commands share: the config flag, and one line instead of a traceback for what a user can mend."""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from big_distill.config import check_path, fields_of, nearest
from big_distill.errors import BigDistillError, ConfigError


def define_config_flag() -> None:
    """`--config=FILE[:argument]`, with `--config.field=value` overrides."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file, with an optional argument: configs/digits_fm.py:smoke", lock_config=True
    )


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's flags, with errors that name the field, the value and the nearest right name."""
    for argument in argv[1:]:
        if argument.startswith("--config."):
            check_path(argument[2:].partition("=")[0])
    try:
        return flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(f"unknown flag --{error.flagname}{nearest(error.flagname, list(flags.FLAGS))}") from error
    except flags.Error as error:
        raise ConfigError(_flag_error(str(error).removeprefix("flag --"))) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(_config_file_error(error)) from error


def config_value() -> ConfigDict:
    """The config that the flags make.

    Raises:
      ConfigError: no `--config`, no such file, or the file assigns to a field that does not exist.
    """
    try:
        config = flags.FLAGS.config
        if config is None:
            raise ConfigError("--config=FILE is needed, e.g. --config=configs/digits_fm.py")
        path = config_path()
        if not path.is_file():
            there = sorted(str(file) for file in path.parent.glob("*.py"))
            raise ConfigError(f"config file {path} does not exist{nearest(str(path), there) if there else ''}")
        config.keys()  # where the file failed, ml_collections hands out a stand-in that raises what the file raised
        return config
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(_config_file_error(error)) from error


def _flag_error(message: str) -> str:
    """absl's words, or for a field of the config what was expected."""
    name, _, rest = message.partition("=")
    types = {field: type_.__name__ for field, _, type_ in fields_of() if type_ in (int, float, bool)}
    if name in types:
        return f"{name}={rest.partition(':')[0]!r}: expected {types[name]}"
    return message.replace("\n", " ")


def config_path() -> pathlib.Path:
    """The file that `--config` names, without its argument."""
    flag: Any = flags.FLAGS["config"]
    return pathlib.Path(flag.config_filename.partition(":")[0])


def _config_file_error(error: Exception) -> str:
    message = str(error)
    if found := re.search(r'Key "(\w+)" does not exist', message):
        names = sorted({name.rpartition(".")[2] for name, *_ in fields_of()})
        return f"the config file assigns to {found[1]!r}, which is not a field of the config{nearest(found[1], names)}"
    return f"config: {message}".replace("\n", " ")


def run(main: Callable[[], None]) -> None:
    """Runs a command: exit status 0, or the error's own after one line on stderr."""

    def guarded(_: Sequence[str]) -> None:
        try:
            main()
        except BigDistillError as error:
            _exit(error)

    def parser(argv: Sequence[str]) -> list[str]:
        try:
            rest = parse_flags(argv)
            if flags.FLAGS["verbosity"].using_default_value:  # absl would make it INFO: everything Orbax has to say
                logging.set_verbosity(logging.WARNING)
            if rest[1:]:
                raise ConfigError(f"unexpected argument {rest[1]!r}: flags start with --")
            return rest
        except BigDistillError as error:
            _exit(error)
            raise

    app.run(guarded, flags_parser=parser)


def _exit(error: BigDistillError) -> None:
    print(f"big_distill: {error}", file=sys.stderr)
    sys.exit(error.exit_status)
