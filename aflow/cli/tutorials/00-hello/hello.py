"""A flow of two steps."""

from aflow import FlowSpec, step


class HelloFlow(FlowSpec):
    """Store a greeting in one step, and print it in the next."""

    @step
    def start(self):
        """Every flow starts with this step. Attributes of self are stored as artifacts."""
        self.greeting = "Hello, world!"
        print("aflow says:", self.greeting)
        self.next(self.end)

    @step
    def end(self):
        """Every flow ends with this step. It can read the artifacts of earlier steps."""
        print("It was said:", self.greeting)


if __name__ == "__main__":
    HelloFlow()
