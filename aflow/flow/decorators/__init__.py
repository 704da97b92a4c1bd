"""The decorators of steps and flows: immutable values that validate their options.

    @retry                                  with the defaults
    @retry(times=2, seconds=10)             with options
    --with retry:times=2,seconds=10         on every step, from the command line (`attach.py`)

The behavior is implemented elsewhere. `hook_class` of a decorator that runs code in the process of
the task is a subclass of `aflow.task.hooks.StepHook`.
"""
