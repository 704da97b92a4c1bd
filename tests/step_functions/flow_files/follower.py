from aflow import FlowSpec, current, schedule, step, trigger_on_finish


@schedule(cron="0 6 ? * MON *", timezone="Europe/Berlin")
@trigger_on_finish(flow="Everything")
class Follower(FlowSpec):
    """One step, which reports what has started the run."""

    @step(start=True, end=True)
    def only(self):
        self.before = current.trigger.run.pathspec if current.trigger else None


if __name__ == "__main__":
    Follower()
