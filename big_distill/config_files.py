"""Re-exports `big_distill.config.files` under the name that config files import."""

from big_distill.config.files import copied, load_config, parse_arg, smoke, teacher_of, template, with_data_of

__all__ = ["copied", "load_config", "parse_arg", "smoke", "teacher_of", "template", "with_data_of"]
