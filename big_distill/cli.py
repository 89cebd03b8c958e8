"""What the commands share: the config flag, and one line instead of a traceback for what a user can mend."""

from __future__ import annotations

import logging as std_logging
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from big_distill.config.fields import check_path, fields_of
from big_distill.config.files import load_config
from big_distill.errors import DISK_ERRORS, BigDistillError, ConfigError, Interrupted, Preempted, RunError, nearest

_INTERRUPTED, _TERMINATED = 130, 143  # what shells say of a program that Ctrl-C or SIGTERM ended


def define_config_flag() -> None:
    """`--config=FILE[:argument]`, with `--config.field=value` overrides."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file, with an optional argument: configs/digits_fm.py:smoke", lock_config=True
    )


def parse_flags(argv: Sequence[str], values: flags.FlagValues | None = None) -> list[str]:
    """absl's flags, or others, with errors that name the field, the value and the nearest right name."""
    values = flags.FLAGS if values is None else values
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        name, given, value = argument.lstrip("-").partition("=")
        if name == "config":
            _check_file(*(value if given else following).partition(":")[::2])
        elif name in ("config.teacher.config", "config.init_config"):
            path = "config.teacher.path" if "teacher" in name else "config.init_from"
            raise ConfigError(
                f"{name} is set in a config file; its fields can be set one by one, as --{name}.total_epochs=5, and "
                f"--{path}=RUN replaces it"
            )
        elif (field := name.removeprefix("no")).startswith("config."):
            check_path(field)
    try:
        return values(list(argv))
    except flags.UnrecognizedFlagError as error:
        ours = [f.name for module, own in values.flags_by_module_dict().items() if "absl" not in module for f in own]
        raise ConfigError(f"unknown flag --{error.flagname}{nearest(error.flagname, ours)}") from error
    except flags.Error as error:
        raise ConfigError(_flag_error(str(error).removeprefix("flag --"))) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(_override_error(str(error))) from error


def config_value() -> ConfigDict:
    """The config that the flags make.

    Raises:
      ConfigError: no `--config`.
    """
    if flags.FLAGS.config is None:
        raise ConfigError("--config=FILE is needed, e.g. --config=configs/digits_fm.py")
    return flags.FLAGS.config


def another_config(file: str, overrides: Sequence[str]) -> ConfigDict:
    """A config as another command line makes it, which had this one's overrides first.

    Args:
      file: with its argument, or this command line's if it is empty.
      overrides: `--config.field=value`.
    """
    given: Any = flags.FLAGS["config"]
    ours = [f"--config.{field}={value}" for field, value in given.override_values.items()]
    argv = ["", f"--config={file or given.config_filename}", *ours, *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, lock_config=True, flag_values=values, sys_argv=argv)
    parse_flags(argv, values)
    return values.config


def config_path() -> pathlib.Path:
    """The file that `--config` names, without its argument."""
    flag: Any = flags.FLAGS["config"]
    return pathlib.Path(flag.config_filename.partition(":")[0])


def _check_file(path: str, arg: str) -> None:
    """Raises ConfigError with one line about a config file that is not there, or not right."""
    try:
        config = load_config(path, arg)
    except BigDistillError:
        raise
    except (Exception, SystemExit) as error:  # the file is the user's program: it may raise anything
        if found := re.search(r'Key "(\w+)" does not exist', str(error)):
            message = f"assigns to {found[1]!r}, which is not a field of the config{_nearest_field(found[1])}"
        else:
            message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise ConfigError(f"{path}{f', line {line}' if line else ''}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config returned {type(config).__name__}, expected what template() makes")


def _nearest_field(name: str) -> str:
    paths = {path.rpartition(".")[2]: path for path, *_ in fields_of()}
    return nearest(name, list(paths)) if name not in paths else f"; did you mean {paths[name]!r}?"


def _flag_error(message: str) -> str:
    """absl's words, or for a field of the config what was expected."""
    name, _, rest = message.partition("=")
    kinds = {int: "an integer", float: "a number", bool: "True or False"}
    expected = {field: kinds[type_] for field, _, type_ in fields_of() if type_ in kinds}
    if name in expected:
        return f"{name}={rest.partition(':')[0]!r}: expected {expected[name]}"
    if inner := [field for field, *_ in fields_of() if field.startswith(f"{name}.")]:
        return f"{name}={rest.partition(':')[0]!r}: has no value of its own, only fields: {', '.join(inner)}"
    return message.replace("\n", " ")


def _override_error(message: str) -> str:
    if found := re.search(r'Override (\S+) can not be applied because field "(\w+)" is None', message):
        unset = found[1].rpartition(f"{found[2]}.")[0] + found[2]
        return f"config.{found[1]} cannot be set: this config has no {unset}"
    return f"config: {message}".replace("\n", " ")


def run(main: Callable[[], None]) -> None:
    """Runs a command: exit status 0, or the error's own after one line on stderr."""

    def guarded(_: Sequence[str]) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # so that what is half done is undone
        try:
            main()
        except BigDistillError as error:
            if isinstance(error, Preempted):  # a further signal changes nothing any more
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            _exit(str(error), error.exit_status)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            _exit(f"{error.filename or 'a file'}: {error.strerror}", RunError.exit_status)
        except KeyboardInterrupt:
            _exit("interrupted", _INTERRUPTED)

    def parser(argv: Sequence[str]) -> list[str]:
        try:
            rest = parse_flags(argv)
            if flags.FLAGS["verbosity"].using_default_value:  # absl would make it INFO: everything Orbax has to say
                logging.set_verbosity(logging.WARNING)
            if rest[1:]:
                raise ConfigError(f"unexpected argument {rest[1]!r}: flags start with --")
            return rest
        except BigDistillError as error:
            _exit(str(error), error.exit_status)
            raise

    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(lambda record: not (record.exc_info and "/orbax/" in record.pathname))  # it also raises these
    handler.addFilter(lambda record: not record.getMessage().startswith("Task was destroyed"))  # of a save that failed
    sys.unraisablehook = _unraisable
    app.run(guarded, flags_parser=parser)


def _unraisable(error: Any) -> None:
    """Python's own words, but for two things.

    A write that ends after the save it belonged to has failed and closed its loop is not spoken of. A signal that came
    in a callback, such as JAX's in the garbage collector, comes again outside: `Preemption` sees to those of a run.
    """
    match error.exc_value:
        case KeyboardInterrupt():
            _signal_again(signal.SIGINT)
        case SystemExit(code=code) if code == _TERMINATED:
            _signal_again(signal.SIGTERM)
        case Interrupted():
            pass
        case other if str(other) != "Event loop is closed":
            sys.__unraisablehook__(error)


def _signal_again(number: int) -> None:
    again = threading.Timer(0.1, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _exit(message: str, status: int) -> None:
    print(f"big_distill: {message}", file=sys.stderr)
    sys.exit(status)
