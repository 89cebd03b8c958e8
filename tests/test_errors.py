"""Checks the suggestions in errors: the right name where one is close, else all of them."""

import pytest

from big_distill.errors import close, nearest

MODELS = ("mlp", "lenet5", "cnn", "bit", "efficientnet_lite0", "mobilenet_v3_large", "vit_small")


@pytest.mark.parametrize(
    ("typed", "names", "meant"),
    [
        ("resnet18", MODELS, None),
        ("resnet50", MODELS, None),
        ("all", ("container", "stablehlo", "tflite"), None),
        ("epochs", ("process_id", "workdir"), None),
        ("b", ("bit", "b1"), None),
        ("", ("bit",), None),
        ("vit", MODELS, "vit_small"),  # not bit
        ("LeNet-5", MODELS, "lenet5"),
        ("efficientnet-lite0", MODELS, "efficientnet_lite0"),
        ("mobilenet", MODELS, "mobilenet_v3_large"),
        ("flowers102", ("oxford_flowers102", "flowers_102_big"), "flowers_102_big"),
        ("minst", ("mnist", "digits"), "mnist"),
    ],
)
def test_only_a_close_name_is_suggested(typed, names, meant):
    assert close(typed, names) == ([meant] if meant else [])
    assert nearest(typed, names) == (f"; did you mean {meant!r}?" if meant else f"; expected one of {', '.join(names)}")


def test_many_choices_are_counted():
    names = [f"class {number}" for number in range(1000)]
    assert nearest("petunia", names).endswith("class 28, class 29 and 970 more")
    assert close("class 5", names, 3)[0] == "class 5"
