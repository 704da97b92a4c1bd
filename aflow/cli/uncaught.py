"""What `python flow.py` says of a flow that cannot even be defined.

Most faults of a flow are found when its command line begins. A decorator or a parameter that is
wrong raises earlier: in the body of the class, in which the script ends with a traceback through
aflow. In a script that defines a flow such an error is told as `aflow run` tells it.
"""

from __future__ import annotations

import os
import sys
from types import FrameType, TracebackType

from aflow.errors import AflowError

_OF_FUNCTIONS = 0x1  # CO_OPTIMIZED, which bodies of classes are not
_LANGUAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "flow", "")


def tell_definition_errors() -> None:
    """From now on tell them, if this program is a script, and nobody else looks at what it raises.
    May be called again."""
    main = sys.modules.get("__main__")
    if getattr(main, "__file__", None) and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    place = _place(traceback) if isinstance(error, AflowError) else None
    if place is None or not isinstance(error, AflowError):
        sys.__excepthook__(kind, error, traceback)
        return
    from aflow.cli.problems import USAGE, leave, show

    show(error.headline, f"{place}: {error}")
    leave(USAGE)


def _place(traceback: TracebackType | None) -> str | None:
    """File and line of the script where the definition of a flow raised; None if it was anything
    else that did."""
    if traceback is None or traceback.tb_frame.f_globals.get("__name__") != "__main__":
        return None
    inner = traceback.tb_next
    if traceback.tb_frame.f_code.co_name != "<module>" or inner is None:
        return None
    frame, line = traceback.tb_frame, traceback.tb_lineno
    if _is_class_body(inner.tb_frame):
        line = inner.tb_lineno
    elif not os.path.abspath(inner.tb_frame.f_code.co_filename).startswith(_LANGUAGE):
        return None
    return f"{frame.f_code.co_filename}, line {line}"


def _is_class_body(frame: FrameType) -> bool:
    return "__module__" in frame.f_locals and not frame.f_code.co_flags & _OF_FUNCTIONS
