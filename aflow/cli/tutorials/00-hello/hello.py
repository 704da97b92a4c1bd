"""Two steps, one after the other."""

from aflow import FlowSpec, step


class HelloFlow(FlowSpec):
    """Greet the world, and remember it."""

    @step
    def start(self):
        """Every flow begins here. What is assigned to self is kept."""
        self.greeting = "Hello, world!"
        print("aflow says:", self.greeting)
        self.next(self.end)

    @step
    def end(self):
        """Every flow ends here. What an earlier step has kept is there."""
        print("It was said:", self.greeting)


if __name__ == "__main__":
    HelloFlow()
