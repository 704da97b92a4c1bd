"""The AWS resources of aflow: a CloudFormation template, and settings from a stack's outputs."""
