"""Serves all commands: reads the config flag, and prints one line, not a traceback, for what a user can mend."""

from __future__ import annotations

import contextlib
import dataclasses
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

from big_distill.config import LAYOUTS
from big_distill.config.fields import by_common_name, fields_of, meant, type_at
from big_distill.config.template import load_config
from big_distill.errors import DISK_ERRORS, BigDistillError, ConfigError, Interrupted, Preempted, RunError, close

flags.disclaim_key_flags()  # the flags belong to the commands, whose --help lists them
_OTHER_DATA = {
    "name": "Names other data to evaluate on: folder, idx, a TFDS set.",
    "path": "Names the directory of a folder or of idx files. Alone it says where the run's own data lie now.",
    "layout": "Says which sub-folders of that folder are classes.",
    "label": "Names the feature of that TFDS set that is the label.",
}
_KINDS = {int: "an integer", float: "a number", bool: "True or False"}
_WORKDIRS = dict.fromkeys(("output", "output_dir", "out_dir", "save_dir", "logdir", "log_dir", "run"), "workdir")
_INTERRUPTED, _TERMINATED = 130, 143  # exit statuses in a shell after Ctrl-C and SIGTERM


def define_config_flag(values: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None) -> None:
    """Defines `--config=FILE[:argument]`. `argv`, or else the command line, holds its `--config.field=value`."""
    meaning = "Names the config file, with an optional argument: configs/digits_fm.py:smoke."
    config_flags.DEFINE_config_file("config", None, meaning, flag_values=values, sys_argv=argv)
    values["config"].parser = _ConfigFile()


def define_run_flags(split: str) -> None:
    """Defines the flags of a command that evaluates a run's student, by default on its 'test' or 'validation' split."""
    flags.DEFINE_string("workdir", None, "Names the run directory.")
    flags.DEFINE_string(
        "split", None, f"Names a split of the run's data set, in TFDS syntax. Default: its {split} split."
    )
    flags.DEFINE_string("step", "final", "Chooses the weights: final, latest, best, or the number of a checkpoint.")
    flags.DEFINE_string("data_dir", None, "Names the root of the TFDS sets. Default: the run's own.")
    for name, meaning in _OTHER_DATA.items():
        flag, meaning = f"config.source.{name}", f"{meaning} Default: the run's own."
        if name == "layout":
            flags.DEFINE_enum(flag, None, LAYOUTS, meaning)
        else:
            flags.DEFINE_string(flag, None, meaning)


def other_data() -> dict[str, str | None]:
    """Returns the fields of `config.source` that the flags replace for an evaluation. None is the run's own."""
    fields = {name: flags.FLAGS[f"config.source.{name}"].value for name in _OTHER_DATA}
    return {**fields, "data_dir": flags.FLAGS.data_dir}


def run_directory() -> pathlib.Path:
    """Returns the directory that `--workdir` names. Raises ConfigError if the flag is not set."""
    if not flags.FLAGS.workdir:
        raise ConfigError("--workdir=DIR is needed: a run directory")
    return pathlib.Path(flags.FLAGS.workdir)


def test_split(workdir: pathlib.Path) -> str:
    """Returns the split that `--split` names, else the one that the run's config calls its test split, else 'test'.

    Other data than the run's, which `--config.source.name` names, are taken whole: the run does not know their splits.
    """
    from big_distill.run_dir.layout import read_config

    if flags.FLAGS.split or other_data()["name"]:
        return flags.FLAGS.split or "all"
    return read_config(workdir).evaluated_on.test or "test"


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses absl's flags, or others. An error names the field, the value and the nearest right name."""
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        if name in ("config.teacher.config", "config.init_config"):
            path = "config.teacher.path" if "teacher" in name else "config.init_from"
            raise ConfigError(
                f"{name} is set in a config file; its fields can be set one by one, as --{name}.total_epochs=5, and "
                f"--{path}=RUN replaces it"
            )
        if (field := name.removeprefix("no")).startswith("config."):
            type_at(field)
    try:
        return values(list(argv))
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown_flag(error.flagname, values)) from error
    except flags.Error as error:
        raise ConfigError(_flag_error(str(error).removeprefix("flag --"))) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(_override_error(str(error))) from error


def config_value() -> ConfigDict:
    """Returns the config that the flags make. Raises ConfigError if `--config` is not set."""
    if flags.FLAGS.config is None:
        raise ConfigError("--config=FILE is needed, e.g. --config=configs/digits_fm.py")
    return flags.FLAGS.config


def another_config(file: str, overrides: Sequence[str]) -> ConfigDict:
    """Builds the config of another command line, which has this one's overrides before its own.

    `file` may carry an argument; if it is empty, this command line's file is taken. An override is
    `--config.field=value`.
    """
    given: Any = flags.FLAGS["config"]
    ours = [f"--config.{field}={value}" for field, value in given.override_values.items()]
    argv = ["", f"--config={file or given.config_filename}", *ours, *overrides]
    values = flags.FlagValues()
    define_config_flag(values, argv)
    parse_flags(argv, values)
    return values.config


def config_path() -> pathlib.Path:
    """Returns the file that `--config` names, without its argument."""
    flag: Any = flags.FLAGS["config"]
    return pathlib.Path(flag.config_filename.partition(":")[0])


class _ConfigFile(flags.ArgumentParser):
    """Reads the config of `--config=FILE[:argument]`. A file that is missing or wrong gives an error of one line."""

    def parse(self, argument: str) -> ConfigDict:
        path, _, arg = argument.partition(":")
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
        return config.lock()


def _nearest_field(name: str) -> str:
    found = meant(name)
    return f"; did you mean {found[0]!r}?" if found else "; --help of big_distill.main lists the fields"


def _unknown_flag(name: str, values: flags.FlagValues) -> str:
    """Says what to write instead of a flag that a command does not have. It names the command's own flags alone."""
    modules = {"big_distill", pathlib.Path(sys.argv[0]).stem}  # libraries define flags, too
    ours = [
        flag.name
        for module, own in values.flags_by_module_dict().items()
        if modules & {module.partition(".")[0], pathlib.Path(module).stem}
        for flag in own
    ]
    known = "; the flags of this command are " + ", ".join(f"--{one}" for one in ours)
    if "config" not in values:
        if name.startswith("config"):
            return f"unknown flag --{name}: this command reads a run's config, and replaces only its data{known}"
        found = [f"--{one}" for one in close(_WORKDIRS.get(name, name), ours)]
    else:
        spelt = close(name, [*ours, *by_common_name(), *_WORKDIRS])
        found = [f"--{one}" for one in [_WORKDIRS.get(one, one) for one in spelt] if one in ours] or [
            f"--{field}" for field in meant(name)
        ]
        known += ", and --config.FIELD=VALUE (--help lists the fields)"
    return f"unknown flag --{name}" + (f"; did you mean {' or '.join(found)}?" if found else known)


def _flag_error(message: str) -> str:
    """Words the error of a flag: as absl does, or for a field of the config by what was expected."""
    name, _, rest = message.partition("=")
    if name.startswith("config."):
        type_, value = type_at(name), repr(rest.partition(":")[0])
        if type_ in _KINDS:
            return f"{name}={value}: expected {_KINDS[type_]}"
        if dataclasses.is_dataclass(type_):
            inner = ", ".join(path for path, *_ in fields_of(type_, name))
            return f"{name}={value}: it has no value of its own, only fields: {inner}"
    return message.replace("\n", " ")


def _override_error(message: str) -> str:
    if found := re.search(r'Override (\S+) can not be applied because field "(\w+)" is None', message):
        unset = found[1].rpartition(f"{found[2]}.")[0] + found[2]
        return f"config.{found[1]} cannot be set: this config has no {unset}"
    return f"config: {message}".replace("\n", " ")


def run(main: Callable[[], None]) -> None:
    """Runs a command and exits with status 0, or after one line on stderr with the error's own."""

    def guarded(_: Sequence[str]) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # SystemExit lets clean-up code run
        main()

    def parser(argv: Sequence[str]) -> list[str]:
        try:
            rest = parse_flags(argv)
        except SystemExit:  # absl has printed the help, and calls that a failure
            sys.exit(0)
        if flags.FLAGS["verbosity"].using_default_value:  # absl would set INFO, under which Orbax prints much
            logging.set_verbosity(logging.WARNING)
            handler.addFilter(lambda record: "/orbax/" not in record.pathname)  # `Checkpoints` says what users can mend
        if rest[1:]:
            raise ConfigError(f"unexpected argument {rest[1]!r}: flags start with --{_as_flag(rest[1])}")
        return rest

    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(lambda record: not (record.exc_info and "/orbax/" in record.pathname))  # Orbax raises these, too
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)  # hides the other writes of a failed save
    sys.unraisablehook = _unraisable
    try:
        app.run(guarded, flags_parser=parser)
    except BigDistillError as error:
        if isinstance(error, Preempted):
            _leave(str(error), error.exit_status)
        _exit(str(error), error.exit_status)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _exit(f"{error.filename or 'a file'}: {error.strerror}", RunError.exit_status)
    except KeyboardInterrupt:
        _leave("interrupted", _INTERRUPTED)
    except SystemExit as left:
        if left.code != _TERMINATED:
            raise
        _leave("", _TERMINATED)


def _as_flag(argument: str) -> str:
    """Names the flag that a bare argument lacks: of a config file, or of a run directory."""
    flag = "config" if argument.partition(":")[0].endswith(".py") else "workdir"
    there = flag in flags.FLAGS and (flag == "config" or pathlib.Path(argument).is_dir())
    return f"; did you mean --{flag}={argument}?" if there else ""


def _unraisable(error: Any) -> None:
    """Reports an unraisable error as Python does, except in two cases.

    It hides a write that ends after its save has failed and closed the event loop. It sends a signal that arrived in a
    callback, such as JAX's in the garbage collector, again outside of it; `Preemption` handles those of a run.
    """
    match error.exc_value:
        case KeyboardInterrupt():
            _signal_again(signal.SIGINT)
        case SystemExit(code=code) if code == _TERMINATED:
            _signal_again(signal.SIGTERM)
        case Interrupted():
            pass
        case RuntimeError() if any(
            "/asyncio/" in frame.filename for frame in traceback.extract_tb(error.exc_traceback)
        ):
            pass
        case _:
            sys.__unraisablehook__(error)


def _signal_again(number: int) -> None:
    again = threading.Timer(0.1, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _exit(message: str, status: int) -> None:
    print(f"big_distill: {message}", file=sys.stderr)
    sys.exit(status)


def _leave(message: str, status: int) -> None:
    """Ends a process that a signal stopped, at once: Python does not take its modules apart.

    The signal may have interrupted the wait for a compilation. XLA goes on with it in another thread, which crashes
    when JAX's client is gone. A further signal changes nothing.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"big_distill: {message}\n" if message else "")):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            print(text, end="", file=stream, flush=True)
    os._exit(status)
