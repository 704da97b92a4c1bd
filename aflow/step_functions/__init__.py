"""Run flows on AWS Step Functions, as state machines whose tasks are AWS Batch jobs."""
