"""Lets transformers' Auto classes load masked folders as soon as `emmental` is imported, before or after transformers.

A masked class is made, and torch imported, only when a masked config is first asked for. What is registered until then
is a config that stands for it; importing model.masked_classes puts the real classes in its place.
"""

import sys
from importlib import import_module

from emmental.model.families import FAMILIES, MASKED

AUTO = "transformers.models.auto.configuration_auto"


def stand_in(family: str, plain: type) -> type:
    """A config class of a family's masked model_type, of which every instance is of the real class."""

    def new(cls, *args, **settings):
        classes = import_module("emmental.model.masked_classes")
        return classes.masked_class(family, "Config")(*args, **settings)

    name = f"Masked{FAMILIES[family].prefix}Config"
    return type(name, (plain,), {"model_type": MASKED + family, "__new__": new, "__module__": __name__})


def register_configs(auto) -> None:
    """Registers the stand-ins with the AutoConfig of transformers' module `auto`."""
    for family in FAMILIES:
        auto.AutoConfig.register(MASKED + family, stand_in(family, auto.PreTrainedConfig))


class AfterImport:
    """On sys.meta_path: has the configs registered whenever transformers' own finder loads AUTO, a reload included."""

    def find_spec(self, name: str, path=None, target=None):
        if name != AUTO:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec), None)
        if spec:
            execute = spec.loader.exec_module

            def exec_module(module) -> None:
                execute(module)
                if module.__name__ == AUTO:  # a loader may serve other modules too
                    register_configs(module)

            spec.loader.exec_module = exec_module
        return spec


FINDER = AfterImport()


def register_when_transformers_is_imported() -> None:
    """Now, if it is; otherwise as soon as it will be."""
    if AUTO in sys.modules:
        register_configs(import_module(AUTO))  # which waits for a thread that is importing it
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
