"""The smallest flow: one parameter, two steps.

    python parameter_flow.py run
    python parameter_flow.py run --alpha 0.05

What a step prints comes back with the time, the step and the task it belongs to. `self.alpha` is
read-only and the same in every step. The run is kept: look at it afterwards, from a notebook or
any other Python program in the same folder, with

    from aflow import Flow

    run = Flow("ParameterFlow").latest_run
    print(run.pathspec, run.successful, run["end"].task.stdout)
"""

from aflow import FlowSpec, Parameter, step


class ParameterFlow(FlowSpec):
    alpha = Parameter("alpha", help="Learning rate", default=0.01)

    @step
    def start(self):
        print(f"alpha is {self.alpha:f}")
        self.next(self.end)

    @step
    def end(self):
        print(f"alpha is still {self.alpha:f}")


if __name__ == "__main__":
    ParameterFlow()
