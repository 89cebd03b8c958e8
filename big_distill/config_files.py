"""Re-exports `big_distill.config.template` under the name that config files import."""

from big_distill.config.template import copied, load_config, parse_arg, smoke, teacher_of, template, with_data_of

__all__ = ["copied", "load_config", "parse_arg", "smoke", "teacher_of", "template", "with_data_of"]
