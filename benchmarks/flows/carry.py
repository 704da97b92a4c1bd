"""A chain of steps that store an artifact, pass it on and print a line."""

from aflow import FlowSpec, step


class CarryFlow(FlowSpec):
    @step
    def start(self):
        self.data = bytes(range(256)) * 400
        print("made", len(self.data))
        self.next(self.second)

    @step
    def second(self):
        self.data = self.data[::-1]
        print("turned", len(self.data))
        self.next(self.third)

    @step
    def third(self):
        self.data = self.data + b"."
        print("grew", len(self.data))
        self.next(self.end)

    @step
    def end(self):
        print("kept", len(self.data))


if __name__ == "__main__":
    CarryFlow()
