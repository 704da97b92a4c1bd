"""Flows on AWS Step Functions: compiled to a state machine whose tasks are jobs of AWS Batch."""
