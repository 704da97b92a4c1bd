"""The step decorators: small frozen values that check themselves, one file each.

    @retry                                  bare, with the defaults
    @retry(times=2, seconds=10)             with options
    --with retry:times=2,seconds=10         on every step, from the command line (`attach.py`)

What they say is carried out elsewhere. A decorator that acts inside the task's process names its
behaviour in `hook_class`, a subclass of `aflow.task.hooks.StepHook`.
"""
