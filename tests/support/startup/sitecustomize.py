"""Imported first by every Python that a test starts with `environment` (support/commands.py).

Leaves out what takes more than half of a tiny run's time and changes nothing that its test looks
at. Tests that do look pass AS_USERS_HAVE_IT. tests/gpu and setup_and_train.sh are left alone.
"""

import importlib
import os
import sys
from types import ModuleType, SimpleNamespace


class Dynamo(ModuleType):
    """Stands for torch._dynamo, whose import takes 2.3 s.

    Optimizers and DDP import it to keep torch.compile out of their functions, which do the same
    without it. Whatever else is asked of it, the real one is imported for.
    """

    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)

    @staticmethod
    def disable(function, recursive=True, *, wrapping=True):
        return function

    @staticmethod
    def graph_break():
        pass

    def __getattr__(self, name):
        if name.startswith("__") and name != "__path__":  # inspect asks every module for some
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
    sys.modules["torch._dynamo"] = Dynamo("torch._dynamo")
    if "DRAW_CURVES" not in os.environ:  # matplotlib's import, and half a second a picture
        sys.modules["resnet50.records.curves"] = SimpleNamespace(draw=lambda *_: None)
